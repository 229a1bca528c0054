"""The DALI engine on the CPU: the graph that runs on a GPU, but for where it resizes and blurs."""

import gc
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("nvidia.dali", reason='needs DALI: pip install "fastseq[dali]"')

import av
from counter_video import HEIGHT, WIDTH, counter_frame
from dali_cases import (
    ANY_VERSION,
    COUNT,
    H264_AND_HEVC,
    X264,
    by_pyav,
    check_colours,
    check_counters,
    check_rotation,
    check_stages,
    check_turned_beside_upright,
    encode,
    engine_of,
    plain,
    reading_of,
    run,
    tagged,
    texture,
    vp9,
)

from fastseq.video import VideoError, probe, read_frames
from fastseq.video.augment import ClipDraw, apply_draw
from fastseq.video.engines import dali as dali_engine
from fastseq.video.engines.dali import DaliEngine, unsupported
from fastseq.video.work import Clip, Reading

VERSION = dali_engine._dali_version()
H264 = unsupported(SimpleNamespace(path="a.mp4", codec="h264", note=""), "cpu", VERSION) is None
needs_h264 = pytest.mark.skipif(not H264, reason=f"DALI {VERSION} has no H.264 on the CPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dali_videos")


@pytest.fixture
def engine():
    engine = engine_of(48)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", ANY_VERSION)
def test_every_index_gives_its_frame(folder, engine, name):
    check_counters(engine, ANY_VERSION[name](folder / name))


@needs_h264
@pytest.mark.parametrize("name", H264_AND_HEVC)
def test_every_index_gives_its_frame_h264_and_hevc(folder, engine, name):
    check_counters(engine, H264_AND_HEVC[name](folder / name))


@pytest.mark.skipif(H264, reason=f"DALI {VERSION} decodes H.264 on the CPU")
def test_h264_is_refused_with_the_way_out(folder, engine):
    path = encode(folder / "refused.mp4", 5, options=X264)
    with pytest.raises(VideoError, match=r"does not decode 'h264' on the CPU, 2\.1\.0 was the"):
        run(engine, [reading_of(path, [[0]], [plain(HEIGHT, WIDTH)])])


BOTH = pytest.mark.parametrize(
    ("gpu_operators", "border"), [(False, 1), (True, 4)], ids=["as on the CPU", "as on a GPU"]
)


@BOTH
def test_augmentation_is_that_of_apply_draw(folder, gpu_operators, border):
    """At the edges torch leaves out what lies outside, `fn.resize` repeats the last pixel."""
    engine = engine_of(40, gpu_operators=gpu_operators)
    check_stages(engine, texture(folder / "texture.webm"), border)
    engine.close()


@BOTH
@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_applied(folder, clockwise, gpu_operators, border):
    engine = engine_of(32, gpu_operators=gpu_operators)
    check_rotation(engine, texture(folder / "turned.mp4", count=6), clockwise, border)
    engine.close()


def test_a_large_batch_may_follow_the_small_one_that_ends_an_epoch(folder, engine):
    path = texture(folder / "small_first.mp4", count=1)
    reading = reading_of(path, [[0]], [plain(80, 96)])
    assert [len(batch) for batch in run(engine, [reading], [reading] * 300)] == [1, 300]


@BOTH
@pytest.mark.parametrize("coloured", [(), (0,), (1,), (0, 1)])
def test_turned_and_upright_files_share_a_batch(folder, gpu_operators, border, coloured):
    engine = engine_of(32, gpu_operators=gpu_operators)
    check_turned_beside_upright(engine, folder, coloured, 1, border, by_pyav)
    engine.close()


TAGGED = [(1, False), (6, False), (9, False), (1, True), (6, True)]


@pytest.mark.parametrize(("space", "full"), TAGGED)
def test_colour_tags_are_honoured(folder, space, full):
    engine = engine_of(96)
    check_colours(engine, *tagged(folder / f"{space}_{full}.webm", space, full, "libvpx-vp9"))
    if H264:
        check_colours(engine, *tagged(folder / f"{space}_{full}.mp4", space, full))
    engine.close()


def test_box_is_in_pixels_of_the_scaled_frame(folder):
    """Frames of 96 x 80, drawn for a short side of 40: everything is twice as large."""
    path = texture(folder / "scaled.webm", count=3)
    engine = engine_of(20)
    half = reading_of(path, [[2]], [plain(31, 27, top=5, left=9)], side=40)
    full = reading_of(path, [[2]], [plain(62, 54, top=10, left=18)])
    one, two = run(engine, [half], [full])
    assert torch.equal(one, two)
    # Crops that the rounding would push over the edge, or to nothing.
    for side, box in ((33, (0, 0, 33, 40)), (640, (639, 767, 1, 1)), (640, (0, 0, 2, 2))):
        draw = ClipDraw(*box, flip=False, colour=(), blur_sigma=0.0)
        assert run(engine, [reading_of(path, [[0]], [draw], side=side)])[0].shape[-1] == 20
    engine.close()


def test_batches_start_anywhere_and_give_the_same(folder, engine):
    path = vp9(folder / "resumed.webm", 40)
    draws = [plain(HEIGHT, WIDTH), plain(40, 30, top=3, flip=True, colour=(("hue", 0.1),))]
    frames = np.random.default_rng(0).integers(0, 40, (6, 2, 2, 5))
    batches = [[reading_of(path, f, draws) for f in batch] for batch in frames]
    whole = run(engine, *batches)
    assert whole[0].shape == (2, 2, 5, 3, 48, 48)
    assert whole[0].dtype == torch.uint8
    asked = []

    def source(k):
        asked.append(k)
        return batches[k]

    rest = list(engine.batches(source, 2, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert asked == [2, 3, 4, 5]
    assert list(engine.batches(source, 3, 3)) == []
    # A last batch with fewer readings, and one reading of a single clip and frame.
    small_first = [batches[2][:1], *batches[:2]]
    for short in (small_first, small_first[::-1], [[reading_of(path, [[7]], draws[:1])]]):
        for got, readings in zip(run(engine, *short), short, strict=True):
            assert got.shape[:2] == (len(readings), len(readings[0].clips))


def broken(folder, name):
    """A file that opens, and whose middle does not decode."""
    path = encode(folder / name, COUNT, options=X264)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(bytes(data))
    return path


@needs_h264
def test_a_file_that_fails_in_dali_is_named_with_the_reason(folder, engine):
    """The batches before it come out, it is found among the others, another run works."""
    frames, draws = [range(0, COUNT, 3)], [plain(HEIGHT, WIDTH)]
    good = reading_of(encode(folder / "good.mp4", COUNT, options=X264), frames, draws)
    bad = reading_of(broken(folder, "broken.mp4"), frames, draws)
    got = []
    with pytest.raises(VideoError, match=r"frame \d+ was asked for.* stops after \d+") as expected:
        read_frames(bad.path, frames[0])
    with pytest.raises(VideoError, match=re.escape(str(expected.value))) as caught:
        got.extend(engine.batches(lambda k: [good, bad if k == 3 else good], 0, 9))
    assert len(got) == 3
    assert caught.value.path == bad.path
    again = list(engine.batches(lambda k: [good, good], 3, 5))
    assert torch.equal(again[0], got[0])


def test_files_that_cannot_be_read_say_why(folder, engine):
    good = vp9(folder / "whole.webm", 40)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    cut = ANY_VERSION["mjpeg.avi"](folder / "cut.avi")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    draw = plain(HEIGHT, WIDTH)
    reasons = {
        "empty.mp4": "empty",
        "noise.mp4": "not a video file",
        "missing.mp4": "No such file",
        "cut.avi": r"the file is damaged \(the file breaks off.*--transcode",
    }
    good = reading_of(good, [[3]], [draw])
    for name, reason in reasons.items():
        clip = Clip(np.array([3]), draw)
        bad = Reading(str(folder / name), HEIGHT, WIDTH, HEIGHT, (clip,))
        with pytest.raises(VideoError, match=reason) as caught:
            run(engine, [good], [good, bad])
        assert caught.value.path == bad.path
    for frames in ([0, 40], [-1, 3]):
        wrong = Reading(good.path, 144, 160, 144, (Clip(np.array(frames), draw),))
        with pytest.raises(VideoError, match=rf"frame ({frames[0]}|40) was asked for.* 40 frames"):
            run(engine, [wrong])
    stale = Reading(good.path, HEIGHT + 8, WIDTH, HEIGHT, good.clips)
    with pytest.raises(VideoError, match="160 x 144, but were announced as 64 x 56"):
        run(engine, [stale])
    assert len(run(engine, [good])) == 1


def test_what_dali_says_when_pyav_reads_the_file(folder, engine, monkeypatch):
    path = ANY_VERSION["mjpeg.mkv"](folder / "unknown.mkv")
    mpeg4 = encode(folder / "unknown.avi", 30, codec="mpeg4")
    draw = plain(HEIGHT, WIDTH)
    readings = [reading_of(path, [[3]], [draw]), reading_of(mpeg4, [[3]], [draw])]
    with pytest.raises(VideoError, match="does not decode the codec 'mpeg4' on the CPU"):
        run(engine, readings)
    monkeypatch.setattr(dali_engine, "unsupported", lambda *_: None)
    with pytest.raises(
        RuntimeError, match=r"PyAV reads \(.*unknown\.mkv, .*unknown\.avi\): .*pipeline"
    ):
        run(engine, readings)


def two_streams(path):
    """The first stream is small, the second one is what FFmpeg calls best."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libvpx-vp9", rate=25) for _ in range(2)]
        for stream, size in zip(streams, ((160, 144), (320, 240)), strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"cpu-used": "8"}
        streams[0].disposition = av.stream.Disposition.dub
        streams[1].disposition = av.stream.Disposition.default
        for number in range(5):
            for stream in streams:
                pixels = counter_frame(number, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def test_another_stream_than_the_first_is_never_decoded(folder, engine, monkeypatch):
    path = two_streams(folder / "two_streams.mkv")
    reading = reading_of(path, [[3]], [plain(HEIGHT, WIDTH)])
    assert (reading.height, reading.width) == (144, 160)
    with pytest.raises(VideoError, match="DALI takes another one than the first"):
        run(engine, [reading])
    # And what comes out of the decoder is looked at, whatever the reason.
    file = dali_engine.inspect(str(ANY_VERSION["vp9.webm"](folder / "one.webm")), "cpu", VERSION, 9)
    monkeypatch.setattr(dali_engine, "inspect", lambda *_: file)
    with pytest.raises(
        VideoError, match=r"decodes \[1, 240, 320, 3\] instead of \[1, 144, 160, 3\]"
    ):
        run(engine, [reading])


def test_errors_of_the_source_come_through(folder, engine):
    path = vp9(folder / "source.webm", 10)
    good = [reading_of(path, [[3]], [plain(HEIGHT, WIDTH)])]

    def source(k):
        if k == 2:
            raise KeyError("no such batch")
        return good

    got = []
    with pytest.raises(KeyError, match="no such batch"):
        got.extend(engine.batches(source, 0, 5))
    ragged = [good[0], reading_of(path, [[3, 4]], [plain(HEIGHT, WIDTH)])]
    with pytest.raises(ValueError, match=r"same number of frames, got \[\[1\], \[2\]\]"):
        run(engine, ragged)


def tasks():
    return len(os.listdir("/proc/self/task"))


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_threads_end_and_memory_stays(folder):
    """A batch is 6 MB once decoded: 40 that are not given back would be seen."""
    how = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (320, 240)}
    path = encode(folder / "loop.mkv", 12, **how)
    draws = [plain(200, 200, flip=True), plain(240, 320, colour=(("hue", 0.1),), blur_sigma=1.0)]
    readings = [reading_of(path, [range(12)] * 2, draws)] * 2
    before, engine = tasks(), engine_of(32)
    for _ in range(3):
        assert len(list(engine.batches(lambda k: readings, 0, 4))) == 4
    files, memory = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(4):
        assert len(list(engine.batches(lambda k: readings, 0, 10))) == 10
    assert len(os.listdir("/proc/self/fd")) == files
    assert resident() - memory < 120
    unfinished = engine.batches(lambda k: readings, 0, 100)
    next(unfinished)
    assert tasks() > before + 1
    unfinished.close()
    unfinished = engine.batches(lambda k: readings, 0, 100)
    next(unfinished)
    engine.close()
    gc.collect()
    deadline = time.monotonic() + 60  # a thread that was joined is listed a moment longer
    while tasks() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tasks() <= before + 1  # PyTorch's own threads stay
    with pytest.raises(RuntimeError, match="closed"):
        next(unfinished)
    assert len(list(engine.batches(lambda k: readings, 0, 1))) == 1  # opens again
    engine.close()
    engine.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("fastseq-dali")]


def test_the_interpreter_exits_with_batches_under_way(folder):
    path = vp9(folder / "exit.webm", 40)
    code = (
        "from dali_cases import *\n"
        "engine = engine_of(48)\n"
        f"reading = reading_of({str(path)!r}, [[1, 2]], [plain(48, 64)])\n"
        "batches = engine.batches(lambda k: [reading], 0, 1000)\n"
        "print(next(batches).shape)\n"
    )
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.dirname(here), os.path.dirname(os.path.dirname(here))])
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr
    assert "48, 48" in out.stdout


def test_what_is_missing_is_named(monkeypatch):
    code = (
        "import sys; sys.modules['nvidia.dali'] = None\n"
        "from fastseq.video.engines.dali import DaliEngine\n"
        "try: DaliEngine(48)\n"
        "except ImportError as e: print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "fastseq[dali]"' in out.stdout
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="PyTorch sees no CUDA device"):
        DaliEngine(48, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(dali_engine.ctypes, "CDLL", no_library)
    with pytest.raises(RuntimeError, match=r"libnvcuvid\.so\.1.*driver capability `video`"):
        DaliEngine(48, device="gpu")
    for wrong in ({"device": "tpu"}, {"prefetch": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DaliEngine(48, **wrong)


def test_unsupported():
    def reason(codec, device="cpu", version="2.4.0", note="", path="a.mp4"):
        return unsupported(SimpleNamespace(path=path, codec=codec, note=note), device, version)

    for codec in ("vp8", "vp9", "mjpeg"):
        assert reason(codec) is reason(codec, version="2.1.0") is reason(codec, "gpu") is None
    for codec in ("h264", "hevc"):
        assert reason(codec, version="2.1.0") is reason(codec, "gpu") is None
        assert "2.1.0 was the last" in reason(codec)
        assert "2.1.0 was the last" in reason(codec, version="2.1.1")
        assert "2.1.0 was the last" in reason(codec, version="2.10.0")
    assert "--transcode" in reason("mpeg4", version="2.1.0")
    assert "PyAV" in reason("mpeg4")
    assert "--transcode" in reason("prores", "gpu")
    for device in ("cpu", "gpu"):
        assert "damaged (breaks off)" in reason("vp9", device, note="breaks off")
        assert "DALI opens no .flv" in reason("h264", device, "2.1.0", path="live/A.FLV")


@needs_h264
@pytest.mark.parametrize("name", ["h264.flv", "h264.mpg", "h264.ts"])
def test_containers_that_dali_does_not_open_are_named(folder, engine, name):
    path = encode(folder / name, 30)
    readings = [reading_of(path, [[4]], [plain(48, 64)])]
    if name.endswith(".ts"):
        return check_counters(engine, path)
    with pytest.raises(VideoError, match=r"DALI opens no .*; the PyAV engine reads them"):
        run(engine, readings)


REAL = [
    "golf_swing/golfdb_test_video.mp4",
    "golf_swing/hsway_CM_range.mp4",
    "golf_swing/hsway_MJR_range.mp4",
    "golf_swing/wayne_swing6.mp4",
    "misc/decord_video_90.mov",
    "misc/torchcodec_nasa_13013_rotated.mp4",
]


@needs_h264
@pytest.mark.parametrize("name", REAL)
def test_real_clips_look_as_with_pyav(real_clips, name):
    """Different conversions of the same frames: PyAV's, which is not made for accuracy, is a level
    darker. But for that, a frame is nearer to itself than to its neighbour."""
    path = real_clips / name
    info = probe(path)
    frames = np.random.default_rng(0).integers(0, info.frames, 6)
    draw = plain(info.height, info.width, flip=True, colour=(("contrast", 0.9),))
    engine = engine_of(96)
    got = run(engine, [reading_of(path, [frames], [draw])])[0][0, 0].float()
    engine.close()

    def off(frames):
        return got - apply_draw(read_frames(path, frames, info=info), draw, 96).float()

    def pattern(frames):
        return (off(frames) - off(frames).mean((1, 2, 3), keepdim=True)).abs().mean()

    assert off(frames).abs().mean() < 1.4
    assert pattern(frames) < pattern(np.where(frames > 0, frames - 1, 1))
