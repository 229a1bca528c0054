"""Folders of numbered pictures are videos: their order, contents, damage and orientation."""

import io
import re

import numpy as np
import pytest

pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

from counter_video import HEIGHT, WIDTH, counter_frame, read_counter  # noqa: E402
from PIL import ImageOps  # noqa: E402

from fastseq.video import (  # noqa: E402
    Augmentation,
    ClipLoader,
    PyAVEngine,
    TwoViews,
    VideoError,
    choose_engine,
    open_engine,
    probe,
    read_frames,
)
from fastseq.video.engines.choose import dali_version  # noqa: E402
from fastseq.video.pictures import PictureFolder  # noqa: E402
from fastseq.video.pictures_format import header_of  # noqa: E402

ASSUMED = "no frame rate given, 25 is assumed: pass fps"


def encoded(pixels, kind="JPEG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_frames(folder, numbers, name="{:06d}.jpg", kind="JPEG", **options):
    """Picture k shows its place k, whatever its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(numbers):
        data = encoded(counter_frame(place), kind, **options)
        (folder / name.format(number)).write_bytes(data)
    return folder


def places(frames):
    return [read_counter(frame) for frame in frames.numpy()]


@pytest.mark.parametrize(
    ("name", "kind", "codec"),
    [("{}.jpg", "JPEG", "mjpeg"), ("img_{:05d}.PNG", "PNG", "png"), ("a1_{}.webp", "WEBP", "webp")],
)
def test_frames_count_in_numeric_order(tmp_path, name, kind, codec):
    folder = write_frames(tmp_path / "0001", range(7, 19), name, kind)  # 7.jpg before 10.jpg
    info = probe(folder)
    assert (info.frames, info.width, info.height, info.codec) == (12, WIDTH, HEIGHT, codec)
    assert (info.fps, info.note, info.gaps, info.remarks) == (25, "", (), (ASSUMED,))
    assert info.random_access
    assert places(read_frames(folder)) == [*range(12)]
    assert places(read_frames(folder, [11, 0, 5, 5], info=info)) == [11, 0, 5, 5]
    info = probe(folder, fps=12.5, decode=True)
    assert (info.fps, info.remarks) == (12.5, ())
    with pytest.raises(VideoError, match="frame 12 was requested, but the video has 12 frames"):
        read_frames(folder, [12])


def test_scaled_and_cropped_as_a_file_is(tmp_path):
    folder = write_frames(tmp_path / "a", range(3), "{}.png", "PNG")
    whole = read_frames(folder, [1])
    assert read_frames(folder, [1], short_side=24).shape == (1, 24, 32, 3)
    assert read_frames(folder, [1], size=(10, 20)).shape == (1, 10, 20, 3)
    part = read_frames(folder, [1], crop=(8, 4, 20, 30))
    assert (part == whole[:, 4:34, 8:28]).all()
    assert read_frames(folder, [], short_side=24).shape == (0, 24, 32, 3)
    with pytest.raises(VideoError, match="reaches past its picture of 64 x 48"):
        read_frames(folder, [1], crop=(8, 4, 60, 30))


def test_missing_numbers_and_other_sizes_are_remarks(tmp_path):
    folder = write_frames(tmp_path / "a", [1, 2, 5, 6, 8, 9])
    big = encoded(Image.fromarray(counter_frame(3)).resize((2 * WIDTH, 2 * HEIGHT), 0))
    (folder / "000006.jpg").write_bytes(big)
    (folder / "cover1.jpg").write_bytes(big)
    info = probe(folder)
    assert (info.frames, info.width, info.height, info.gaps) == (6, WIDTH, HEIGHT, ())
    assert info.remarks == (
        ASSUMED,
        "numbers missing between 1 and 9: 3 to 4, 7; the pictures around them are consecutive "
        "frames",
        f"pictures of another size than the first, 64 x 48: 1 of {2 * WIDTH} x {2 * HEIGHT}; "
        f"those are scaled to {WIDTH} x {HEIGHT}",
        "1 other picture: cover1.jpg",
    )
    assert places(read_frames(folder)) == [*range(6)]
    assert places(read_frames(folder, [3])) == [3]  # the first picture fixes the size
    assert probe(write_frames(tmp_path / "b", range(0, 30, 5)), fps=5).remarks == (
        "the numbers 0 to 25 count in steps of 5",
    )


def test_damage_becomes_gaps(tmp_path):
    folder = write_frames(tmp_path / "a", range(1, 9))
    data = (folder / "000004.jpg").read_bytes()
    (folder / "000004.jpg").write_bytes(data[:-30])  # FFmpeg would make up the rest
    (folder / "000007.jpg").write_bytes(b"")
    (folder / "000008.jpg").write_bytes(b"<html>")
    info = probe(folder)  # headers alone
    assert (info.frames, info.gaps) == (8, ((6, 8),))
    info = probe(folder, decode=True)
    assert (info.frames, info.gaps) == (8, ((3, 4), (6, 8)))
    assert re.match(
        r"3 of 8 pictures do not decode: 000004.jpg \(frame 3: Invalid data.*\), 000007.jpg \(frame"
        r" 6: not a JPEG, PNG or WebP picture: 0 bytes\), 000008.jpg",
        info.note,
    )
    assert places(read_frames(folder, [0, 2, 4, 5])) == [0, 2, 4, 5]
    with pytest.raises(VideoError, match=r"frame 3 was requested, but 000004.jpg does not decode"):
        read_frames(folder, [2, 3])
    with pytest.raises(VideoError, match="frame 3 was requested, but 3 of 8 pictures do not dec"):
        read_frames(folder, [3], info=info)
    (folder / "000000.jpg").write_bytes(b"")  # the size is that of the first readable picture
    assert probe(folder).gaps == ((0, 1), (7, 9))
    assert places(read_frames(folder, [1])) == [0]
    with pytest.raises(VideoError, match=r"the folder has changed .*: 9 pictures instead of 8"):
        read_frames(folder, [1], info=info)
    for path in folder.iterdir():
        path.write_bytes(data[:300])
    with pytest.raises(VideoError, match="no frame can be decoded: 9 of 9 pictures do not decode"):
        probe(folder)


def test_what_is_no_sequence_says_what_to_pass(tmp_path):
    def reason(*names, path="."):
        folder = tmp_path / f"{len([*tmp_path.iterdir()])}"
        folder.mkdir()
        for name in names:
            file = folder / name
            file.mkdir() if name.endswith("/") else file.write_bytes(b"")
        with pytest.raises(VideoError) as caught:
            probe(folder / path)
        assert caught.value.path == str(folder / path)
        return caught.value.reason.replace(str(folder), "FOLDER")

    assert reason() == "the folder is empty; expected numbered JPEG, PNG or WebP pictures"
    assert reason("a.mp4", "b.txt", "c.txt") == (
        "the folder has no JPEG, PNG or WebP pictures (2 .txt, 1 .mp4); pass a video file, or a "
        "folder of numbered pictures"
    )
    assert "(2 folders); pass a video file" in (why := reason("0001/", "0002/"))
    assert why.endswith("such as 'FOLDER/0001'")
    assert reason("a.jpg", "b.jpg").startswith(
        "none of the 2 pictures (a.jpg, b.jpg) has a number at the end of its name; rename them, "
    )
    rawframes = [f"{one}_{k}.jpg" for one in ("img", "flow_x", "flow_y") for k in (1, 2, 3)]
    assert reason(*rawframes) == (
        "the folder has 3 sequences of pictures, flow_x_*.jpg (3), flow_y_*.jpg (3), img_*.jpg "
        "(3): pass one of them, such as 'FOLDER/img_*.jpg'"
    )
    assert reason(*rawframes, path="im_*.jpg") == (
        "no JPEG, PNG or WebP picture matches 'im_*.jpg' with a number in place of the *; the "
        "folder has flow_x_*.jpg (3), flow_y_*.jpg (3), img_*.jpg (3)"
    )
    assert reason("1.jpg", "01.jpg") == "01.jpg and 1.jpg have the same number; remove one"
    with pytest.raises(VideoError, match="No such file or directory"):
        probe(tmp_path / "nowhere" / "img_*.jpg")


def test_a_pattern_picks_one_of_several_sequences(tmp_path):
    folder = write_frames(tmp_path / "a", range(4), "img_{:05d}.jpg")
    write_frames(folder, [5, 5, 5, 6], "flow_x_{:05d}.jpg")
    write_frames(folder, range(6), "cam_{}_left.png", "PNG")
    info = probe(folder / "img_*.jpg", fps=10)
    assert (info.frames, info.path, info.remarks) == (4, str(folder / "img_*.jpg"), ())
    assert places(read_frames(folder / "img_*")) == [*range(4)]
    assert probe(folder / "cam_*_left.png").frames == 6
    with pytest.raises(ValueError, match="fps must be positive and finite, got 0"):
        probe(folder / "img_*.jpg", fps=0)
    with pytest.raises(ValueError, match="fps is for folders of pictures"):
        probe(folder / "img_00001.jpg", fps=5)


GREY = np.add.outer(np.arange(48) * 2, np.arange(64) * 2).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
ALPHA = np.dstack([RGB, np.where(np.arange(64) < 32, 0, 255)[None].repeat(48, 0).astype(np.uint8)])


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (encoded(RGB, "PNG"), 0),
        (encoded(Image.fromarray(RGB).quantize(64), "PNG"), 0),
        (encoded(GREY, "PNG"), 0),
        (encoded(Image.fromarray(GREY).convert("1"), "PNG"), 0),
        (encoded(ALPHA, "PNG"), 0),  # the colour of transparent pixels stays
        (encoded(RGB, "WEBP", lossless=True), 0),
        (encoded(ALPHA, "WEBP", lossless=True, exact=True), 0),
        (encoded(GREY, "JPEG", quality=95), 0.5),
        (encoded(RGB, "JPEG", quality=95, subsampling=0), 0.5),
        (encoded(RGB, "JPEG", quality=95), 2),
        (encoded(RGB, "JPEG", quality=95, progressive=True), 2),
        (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95), 2),
        (encoded(RGB, "WEBP", quality=95), 2.5),
    ],
)
def test_kinds_of_pictures(tmp_path, data, most):
    (tmp_path / "1.jpg").write_bytes(data)  # the content counts, not the ending
    shown = read_frames(tmp_path)[0].numpy().astype(float)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
    assert np.abs(shown - expected).mean() <= most


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    (tmp_path / "1.png").write_bytes(encoded(GREY.astype(np.uint16) * 256 + 7, "PNG"))
    assert (read_frames(tmp_path)[0].numpy() == GREY[:, :, None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientations_in_exif_are_applied(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"subsampling": 0} if kind == "JPEG" else {"lossless": True}
    data = encoded(counter_frame(1233), kind, exif=exif, **options)
    (tmp_path / "1.jpg").write_bytes(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    info = probe(tmp_path)
    assert (info.width, info.height) == upright.size
    shown = read_frames(tmp_path)[0].numpy().astype(float)
    assert np.abs(shown - np.asarray(upright)).mean() < 1
    part = read_frames(tmp_path, [0], crop=(0, 0, 32, 16))[0].numpy().astype(float)
    assert np.abs(part - np.asarray(upright)[:16, :32]).mean() < 1


def test_each_picture_is_turned_by_its_own_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    lying = Image.fromarray(counter_frame(1)).transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "0.png").write_bytes(encoded(counter_frame(0), "PNG"))
    (tmp_path / "1.png").write_bytes(encoded(lying, "PNG", exif=exif))
    assert probe(tmp_path, fps=1).remarks == ()
    assert places(read_frames(tmp_path)) == [0, 1]


def test_headers_that_are_cut_off_or_foreign():
    for data in (encoded(RGB), encoded(RGB, "PNG"), encoded(RGB, "WEBP")):
        assert (header_of(data).width, header_of(data).height) == (64, 48)
        assert header_of(data[:12]) is None
    assert header_of(b"") is header_of(b"GIF89a" + bytes(40)) is header_of(b"\xff\xd8\0") is None


def test_another_source_of_pictures():
    class Member:
        def __init__(self, name, data):
            self.name, self.data = name, data

        def read(self):
            return self.data

    members = [Member(f"{k}.jpg", encoded(counter_frame(k))) for k in range(3)]
    from fastseq.video.decode import Converter
    from fastseq.video.timeline import Deadline

    folder, deadline = PictureFolder("a.tar", members), Deadline("a.tar", None)
    assert folder.probe(decode=False, deadline=deadline, fps=10).frames == 3
    seen = {}
    folder.deliver(
        np.array([0, 2]),
        Converter("a.tar", None, None),
        deadline,
        lambda place, pixels: seen.update({place: read_counter(pixels)}),
    )
    assert seen == {0: 0, 1: 2}


def test_a_time_limit(tmp_path):
    folder = write_frames(tmp_path / "a", range(3))
    for call in (probe, read_frames):
        with pytest.raises(VideoError, match="took longer than the limit of 1e-09 s"):
            call(folder, time_limit=1e-9)


def test_clips_are_drawn_from_pictures(tmp_path):
    folders = [write_frames(tmp_path / name, range(20), "{}.png", "PNG") for name in "ab"]
    videos = [probe(folder, fps=10) for folder in folders]
    engine, why = open_engine("auto", videos, HEIGHT)
    assert engine.name == "pyav", why
    items = TwoViews(videos, 6, Augmentation(size=HEIGHT), side=HEIGHT)
    cache = {video.path: read_frames(video.path, short_side=HEIGHT) for video in videos}
    direct, cached = (
        next(iter(ClipLoader(items, batch_size=2, engine=engine, seed=0)))
        for engine in (
            PyAVEngine(HEIGHT, workers=1, scale_first=True),
            PyAVEngine(HEIGHT, cache=cache),
        )
    )
    assert direct["frames"].shape == (2, 2, 6, 3, HEIGHT, HEIGHT)
    assert (direct["frames"] == cached["frames"]).all()
    assert (direct["times"] == direct["steps"].double() / 10).all()


def test_dali_refuses_pictures_with_the_remedy(tmp_path):
    info = probe(write_frames(tmp_path / "a", range(3)))
    name, why = choose_engine([info], dali="2.4.0", gpu=None)
    assert name == "pyav"
    assert re.search("1 of 1 .* DALI reads no folders of pictures; .* makes an H.264 file", why)
    if dali_version() is not None:
        with pytest.raises(ValueError, match="reads no folders of pictures; the PyAV engine does"):
            open_engine("dali-cpu", [info], 48)
