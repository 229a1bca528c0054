"""`transcode` of folders of pictures, and of ranges of frames from files and folders."""

import numpy as np
import pytest

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

from counter_video import (  # noqa: E402
    HEVC,
    OPEN_GOP,
    counter_frame,
    encode,
    read_counter,
    remux,
)
from test_damage import damage  # noqa: E402
from test_pictures import encoded, write_frames  # noqa: E402

import fastseq.video.transcoding  # noqa: E402
from fastseq.video import VideoError, probe, read_frames, transcode  # noqa: E402

COUNT = 61
HIDDEN = {"g": "40", "auto-alt-ref": "1", "lag-in-frames": "16", "crf": "6", "b": "2M"}
SOURCES = {
    "b_frames.mp4": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "edit_list.mp4": lambda p: remux(
        encode(p.with_name("whole.mp4"), COUNT + 35, options=OPEN_GOP), p, shift=35
    ),
    "hevc.mkv": lambda p: encode(p, COUNT, codec="libx265", options=HEVC, pix_fmt="yuv420p10le"),
    "hidden_frames.webm": lambda p: encode(p, COUNT, codec="libvpx", options=HIDDEN),
    "no_index.ts": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "mjpeg.avi": lambda p: encode(p, COUNT, codec="mjpeg", pix_fmt="yuvj420p"),
    "pictures": lambda p: write_frames(p, range(COUNT), "{}.png", "PNG"),
}


def numbers(path):
    return [read_counter(frame) for frame in read_frames(path)]


@pytest.mark.parametrize("name", SOURCES)
def test_a_range_is_cut_exactly(tmp_path, name):
    source, target = SOURCES[name](tmp_path / name), tmp_path / "part.mp4"
    whole = numbers(source)
    assert len(whole) == COUNT
    calls = []
    for first, stop in ((0, 7), (29, 47), (COUNT - 1, COUNT), (0, COUNT)):
        info = transcode(
            source, target, frames=(first, stop), on_frame=lambda *done: calls.append(done)
        )
        assert numbers(target) == whole[first:stop]
        assert info.frames == stop - first
        assert calls[-1] == (stop - first, stop - first)


def test_a_range_is_decoded_from_the_key_frame_before_it(tmp_path, monkeypatch):
    source = encode(tmp_path / "a.mp4", COUNT, options=OPEN_GOP)
    monkeypatch.setattr(fastseq.video.transcoding, "_frames", None)  # from the start of the file
    transcode(source, tmp_path / "part.mp4", frames=(40, 50))
    assert numbers(tmp_path / "part.mp4") == [*range(40, 50)]


def test_damage_outside_a_range_does_not_matter(tmp_path):
    folder = write_frames(tmp_path / "a", range(8))
    for name in ("000002.jpg", "000006.jpg"):
        (folder / name).write_bytes((folder / name).read_bytes()[:600])
    assert numbers_of(folder, tmp_path, (3, 6)) == [3, 4, 5]
    for frames in (None, (1, 3)):
        with pytest.raises(VideoError, match=r"frame 2 was requested, but 000002.jpg does not dec"):
            numbers_of(folder, tmp_path, frames)
    (folder / "000006.jpg").write_bytes(b"")
    assert numbers_of(folder, tmp_path, (3, 6)) == [3, 4, 5]
    with pytest.raises(VideoError, match=r"1 of 8 pictures do not decode: 000006.jpg \(frame 6"):
        numbers_of(folder, tmp_path, (3, 7))
    with pytest.raises(VideoError, match=r"1 of 8 pictures do not decode: 000006.jpg \(frame 6"):
        numbers_of(folder, tmp_path, None)
    cut = encode(
        tmp_path / "cut.mp4", COUNT, options=OPEN_GOP, container_options={"movflags": "faststart"}
    )
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 7 // 10])
    assert numbers_of(cut, tmp_path, (3, 11)) == [*range(3, 11)]


def test_damage_behind_a_range_from_the_first_frame_does_not_matter(tmp_path):
    """The decoder meets a damaged packet before it returns the last frames of the range."""
    video = damage(encode(tmp_path / "a.mp4", COUNT, options=OPEN_GOP), 20, "length")
    ((first, _), *_) = probe(video, decode=True).gaps
    for frames in ((0, first), (1, first)):
        assert numbers_of(video, tmp_path, frames) == [*range(*frames)]
    with pytest.raises(VideoError, match=f"frames? {first}.* damaged"):
        numbers_of(video, tmp_path, (first - 1, first + 3))


def numbers_of(source, folder, frames):
    transcode(source, folder / "part.mp4", frames=frames)
    return numbers(folder / "part.mp4")


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        ((4, 62), VideoError, "frame 61 was requested, but the video has 61 frames, 0 to 60"),
        ((70, 80), VideoError, "frame 79 was requested, but the video has 61 frames"),
        ((5, 5), ValueError, r"frames must be \(first, stop\) with first < stop, got \(5, 5\)"),
        ((-1, 5), ValueError, r"frames\[0\] must be at least 0, got -1"),
        ((1.5, 5), TypeError, r"frames\[0\] must be an integer, got float 1.5"),
        (5, ValueError, r"frames must be \(first, stop\), got 5"),
    ],
)
def test_ranges_that_do_not_exist(tmp_path, frames, error, message):
    source = encode(tmp_path / "a.mp4", COUNT, options=OPEN_GOP)
    with pytest.raises(error, match=message):
        transcode(source, tmp_path / "part.mp4", frames=frames)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_pictures_of_all_kinds_become_one_file(tmp_path):
    """Grey, palette and turned pictures, and other sizes: one size, one range of colours."""
    folder = tmp_path / "a"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    frames = [Image.fromarray(counter_frame(number)) for number in range(6)]
    lying = frames[5].transpose(Image.Transpose.ROTATE_90)
    for number, data in enumerate(
        (
            encoded(frames[0]),
            encoded(frames[1].convert("L")),
            encoded(frames[2].quantize(4), "PNG"),
            encoded(frames[3].resize((128, 96), 0), "PNG"),
            encoded(frames[4], "WEBP"),
            encoded(lying, exif=exif),
        )
    ):
        (folder / f"{number}.jpg").write_bytes(data)
    info = transcode(folder, tmp_path / "a.mp4", fps=12.5)
    assert (info.frames, info.fps, info.width, info.height) == (6, 12.5, 64, 48)
    frames = read_frames(tmp_path / "a.mp4").numpy()
    assert [read_counter(frame) for frame in frames] == [*range(6)]
    assert frames.max() > 250
    assert (frames[1][:, 32:].mean(), frames[3][:, 32:].mean()) == pytest.approx((0, 0), abs=3)
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.pix_fmt, int(codec.color_range)) == ("yuv420p", 1)
        assert int(codec.colorspace) in (5, 6)  # both are BT.601


def test_the_shade_of_pictures_is_that_of_their_copy(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for number, level in enumerate(range(5, 250, 40)):
        pixels = np.full((48, 64, 3), (level, 255 - level, 90), np.uint8)
        (folder / f"{number}.jpg").write_bytes(encoded(pixels, quality=98))
    transcode(folder, tmp_path / "a.mp4", crf=5)
    one, other = (read_frames(path).float() for path in (folder, tmp_path / "a.mp4"))
    assert (one - other).abs().amax() < 6


def test_a_rate_is_for_pictures_alone(tmp_path):
    source = encode(tmp_path / "a.mp4", 3)
    with pytest.raises(ValueError, match="fps is for folders of pictures"):
        transcode(source, tmp_path / "b.mp4", fps=5)
    assert probe(source).frames == 3
