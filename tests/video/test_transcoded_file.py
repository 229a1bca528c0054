"""One file: frame k of the copy equals frame k of the source, in a format that decodes fast."""

from fractions import Fraction

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from video.counter_video import (  # noqa: E402
    HEVC,
    OPEN_GOP,
    encode,
    read_counter,
    remux,
    set_rotation,
)

import fastseq.video.writer  # noqa: E402
from fastseq.video import (  # noqa: E402
    VideoError,
    probe,
    read_frames,
    transcode,
    write_video,
)
from fastseq.video.transcoding import even_size  # noqa: E402

COUNT = 61
IRREGULAR = np.cumsum([0, *np.random.default_rng(3).integers(5, 200, COUNT - 1)]).tolist()
HIDDEN = {"g": "40", "auto-alt-ref": "1", "lag-in-frames": "16", "crf": "6", "b": "2M"}

SOURCES = {
    "b_frames.mp4": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "late_start.ts": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "edit_list.mp4": lambda p: remux(
        encode(p.with_name("whole.mp4"), COUNT, options=OPEN_GOP), p, shift=35
    ),
    "vfr.mkv": lambda p: encode(p, COUNT, options=OPEN_GOP, stamps=IRREGULAR),
    "sound_first.mp4": lambda p: encode(p, COUNT, options=OPEN_GOP, audio_first=True),
    "odd_444.mkv": lambda p: encode(p, COUNT, options=OPEN_GOP, pix_fmt="yuv444p", size=(65, 49)),
    "hevc_10bit.mkv": lambda p: encode(
        p, COUNT, codec="libx265", options=HEVC, pix_fmt="yuv420p10le"
    ),
    "hidden_frames.webm": lambda p: encode(p, COUNT, codec="libvpx", options=HIDDEN),
    "mjpeg.avi": lambda p: encode(p, COUNT, codec="mjpeg", pix_fmt="yuvj420p"),
    "one_frame.mp4": lambda p: encode(p, 1),
}


@pytest.mark.parametrize("name", SOURCES)
def test_frame_k_is_frame_k(tmp_path, name):
    source, target = SOURCES[name](tmp_path / name), tmp_path / "copy.mp4"
    numbers = [read_counter(frame) for frame in read_frames(source)]
    first = 35 if name == "edit_list.mp4" else 0
    assert numbers == list(range(first, 1 if name == "one_frame.mp4" else COUNT))
    info = transcode(source, target)
    assert [read_counter(frame) for frame in read_frames(target)] == numbers
    assert info.frames == probe(target, decode=True).frames == len(numbers)
    assert (info.width, info.height, info.codec) == (64, 48, "h264")
    with av.open(str(target)) as container:
        (stream,) = container.streams  # the sound is dropped
        full_range = "yuvj420p"  # FFmpeg's old name for yuv420p with the full range
        expected = full_range if name == "mjpeg.avi" else "yuv420p"
        assert stream.codec_context.pix_fmt == expected
        step = 1 / (stream.average_rate * stream.time_base)
        packets = [packet for packet in container.demux(stream) if packet.size]
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert keys == list(range(0, len(numbers), 16))  # whatever the key frames of the source
    assert not any(packet.is_discard for packet in packets)
    assert [packet.pts for packet in packets] == [n * step for n in range(len(numbers))]
    assert [packet.dts for packet in packets] == [packet.pts for packet in packets]


def test_a_variable_rate_becomes_its_average(tmp_path):
    source = encode(tmp_path / "vfr.mkv", COUNT, options=OPEN_GOP, stamps=IRREGULAR)
    info = transcode(source, tmp_path / "copy.mp4")
    assert info.fps == pytest.approx((COUNT - 1) / (IRREGULAR[-1] / 1000), rel=1e-4)
    levels = [np.full((32, 32, 3), 8 * x, dtype=np.uint8) for x in range(9)]
    write_video(tmp_path / "ntsc.mp4", levels, 30000 / 1001)
    transcode(tmp_path / "ntsc.mp4", tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotation_is_baked_in(tmp_path, clockwise):
    source = set_rotation(encode(tmp_path / "turned.mp4", 20, options=OPEN_GOP), clockwise)
    info = transcode(source, tmp_path / "copy.mp4", short_side=36)
    assert info.rotation == 0
    assert (info.width, info.height) == ((36, 48) if clockwise % 180 else (48, 36))
    size = (64, 48) if clockwise % 180 else (48, 64)
    for number, frame in enumerate(read_frames(tmp_path / "copy.mp4", size=size)):
        assert read_counter(np.rot90(frame.numpy(), clockwise // 90)) == number


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((640, 360), 256, (456, 256)),  # 455.1
        ((1080, 1920), 256, (256, 456)),  # 455.1
        ((1088, 1920), 256, (256, 452)),  # 451.8
        ((256, 340), 256, (256, 340)),
        ((255, 341), 256, (254, 340)),  # no file is enlarged
        ((67, 49), 256, (66, 48)),
        ((257, 257), 256, (256, 256)),
        ((1, 3), 256, (2, 2)),
    ],
)
def test_even_sizes(size, short_side, expected):
    assert even_size(*size, short_side) == expected


def colours(path, *, pix_fmt="yuv420p", codec="libx264", tags=()):
    """Saturated moving colours, 160 x 120, written losslessly with the given tags."""
    y, x = np.mgrid[:120, :160] / 40
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, pix_fmt
        stream.options = {"qp": "0"} if codec == "libx264" else {}
        for name, value in tags:
            setattr(stream.codec_context, name, value)
        for t in range(9):
            waves = [np.sin(x + t / 5), np.cos(y - t / 4), np.sin(x - y + t / 3)]
            picture = np.round(127.5 + 127 * np.stack(waves, 2)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


BT709 = (("colorspace", 1), ("color_range", 1), ("color_primaries", 1), ("color_trc", 1))
COLOURS = {
    "untagged.mp4": {},
    "bt709.mp4": {"tags": BT709},
    "bt709_10bit.mp4": {"tags": BT709, "pix_fmt": "yuv420p10le"},
    "full_range.mp4": {"tags": (("color_range", 2),), "pix_fmt": "yuvj420p"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "rgb.mkv": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    "gray.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
}


@pytest.mark.parametrize("short_side", [120, 60])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_stay(tmp_path, name, short_side):
    source, target = colours(tmp_path / name, **COLOURS[name]), tmp_path / "copy.mp4"
    info = transcode(source, target, short_side=short_side, crf=12)
    old = read_frames(source, size=(info.height, info.width)).float()
    new = read_frames(target).float()
    # The reader's own scaling darkens by up to 1.6 levels; with a wrong matrix or range it is 6 and
    # more.
    assert (new - old).abs().mean() < 3
    assert (new - old).mean((0, 1, 2)).abs().max() < 2.5
    with av.open(str(source)) as a, av.open(str(target)) as b:
        was, now = (next(c.decode(video=0)) for c in (a, b))
    if name.startswith(("untagged", "bt709")):
        assert (now.colorspace, now.color_range) == (was.colorspace, was.color_range)
        assert (now.color_primaries, now.color_trc) == (was.color_primaries, was.color_trc)


def test_a_damaged_source_gives_no_copy(tmp_path):
    target = tmp_path / "copies" / "copy.mp4"
    target.parent.mkdir()
    index_first = {"movflags": "faststart"}
    cut = encode(tmp_path / "cut.mp4", COUNT, options=OPEN_GOP, container_options=index_first)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 7 // 10])
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "hole.mp4", noise, 25)  # packets in order, content damaged
    data = bytearray((tmp_path / "hole.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    (tmp_path / "hole.mp4").write_bytes(data)
    (tmp_path / "zero.mp4").write_bytes(b"")
    for name, reason in (
        ("cut.mp4", "breaks off"),
        ("hole.mp4", "decod(e|ing)"),
        ("zero.mp4", "empty"),
    ):
        with pytest.raises(VideoError, match=reason) as caught:
            transcode(tmp_path / name, target)
        assert caught.value.path == str(tmp_path / name)
        assert not list(target.parent.iterdir())


def test_what_was_there_stays_when_the_work_ends_early(tmp_path):
    source = encode(tmp_path / "source.mp4", 40, options=OPEN_GOP)
    transcode(source, tmp_path / "copy.mp4")
    before = (tmp_path / "copy.mp4").read_bytes()
    calls = []

    def stop(done, total):
        calls.append((done, total))
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcode(source, tmp_path / "copy.mp4", crf=30, on_frame=stop)
    assert calls == [(n, 40) for n in range(1, 8)]
    assert (tmp_path / "copy.mp4").read_bytes() == before
    with pytest.raises(VideoError, match="longer than the limit of 1e-09 s"):
        transcode(source, tmp_path / "copy.mp4", time_limit=1e-9)
    with pytest.raises(VideoError, match=r"none/copy.mp4: cannot be written: .*No such file"):
        transcode(source, tmp_path / "none" / "copy.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.mp4", "source.mp4"]


def test_a_copy_that_lost_a_frame_is_refused(tmp_path, monkeypatch):
    source = encode(tmp_path / "source.mp4", 40, options=OPEN_GOP)
    add = fastseq.video.writer.H264File.add
    seen = []

    def losing(self, frame):
        seen.append(frame)
        if len(seen) != 20:
            add(self, frame)

    monkeypatch.setattr(fastseq.video.writer.H264File, "add", losing)
    with pytest.raises(VideoError, match="the copy has 39 frames instead of 40"):
        transcode(source, tmp_path / "copy.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["source.mp4"]


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = encode(tmp_path / "source.mp4", 40, options=OPEN_GOP)
    for name in ("a.mp4", "b.mp4"):
        transcode(source, tmp_path / name, comment="of a test")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"] == "of a test"
    transcode(source, tmp_path / "b.mp4", crf=40)
    assert (tmp_path / "b.mp4").stat().st_size < (tmp_path / "a.mp4").stat().st_size
    info = transcode(source, tmp_path / "b.mp4", keyframe_every=10)
    assert len(info.timeline.keys) == 4
    assert torch.equal(read_frames(tmp_path / "b.mp4", [13]), read_frames(info.path, [12, 13])[1:])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"short_side": 255}, "even number from 2, got 255"),
        ({"short_side": 0}, "even number from 2, got 0"),
        ({"keyframe_every": 0}, "at least 1, got 0"),
        ({"crf": 52}, "from 0 to 51, got 52"),
    ],
)
def test_wrong_options(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        transcode(tmp_path / "none.mp4", tmp_path / "copy.mp4", **option)
