"""The DALI engine on the CPU: the graph that runs on a GPU, but for where it resizes and blurs."""

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("nvidia.dali", reason='needs DALI: pip install "fastseq[dali]"')

from counter_video import HEIGHT, WIDTH
from dali_cases import (
    ANY_VERSION,
    COUNT,
    H264,
    H264_AND_HEVC,
    MATRICES,
    SEGMENTED,
    VERSION,
    X264,
    by_pyav,
    check_colours,
    check_counters,
    check_rotation,
    check_stages,
    check_turned_beside_upright,
    encode,
    engine_of,
    needs_h264,
    plain,
    reading_of,
    run,
    tagged,
    texture,
    vp9,
)

from fastseq.video import VideoError, probe, read_frames
from fastseq.video.augment import ClipDraw, apply_draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dali_videos")


@pytest.mark.parametrize("name", ANY_VERSION)
def test_every_index_gives_its_frame(folder, engine, name):
    check_counters(engine, ANY_VERSION[name](folder / name))


@needs_h264
def test_key_frames_that_are_none_are_refused(folder, engine):
    path = encode(folder / "intra_refresh.mp4", COUNT, options=SEGMENTED)
    reading = reading_of(path, [[3]], [plain(HEIGHT, WIDTH)])
    with pytest.raises(VideoError, match="falsely marked as key frames"):
        run(engine, [reading])


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
@pytest.mark.parametrize("matrix", MATRICES)
def test_rotation_and_mirrors_are_applied(folder, matrix, gpu_operators, border):
    engine = engine_of(32, gpu_operators=gpu_operators)
    check_rotation(engine, texture(folder / "turned.mp4", count=6), MATRICES[matrix], border)
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


def tasks():
    return len(os.listdir("/proc/self/task"))


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_threads_end_and_memory_stays(folder):
    """A batch is 6 MB once decoded: 30 that are not given back would be seen."""
    how = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (320, 240)}
    path = encode(folder / "loop.mkv", 12, **how)
    draws = [plain(200, 200, flip=True), plain(240, 320, colour=(("hue", 0.1),), blur_sigma=1.0)]
    readings = [reading_of(path, [range(12)] * 2, draws)] * 2
    before, engine = tasks(), engine_of(32)
    for _ in range(3):
        assert len(list(engine.batches(lambda k: readings, 0, 4))) == 4
    files, memory = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(3):
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


@pytest.mark.process
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

    def pattern(off):
        return (off - off.mean((1, 2, 3), keepdim=True)).abs().mean()

    own, neighbours = off(frames), off(np.where(frames > 0, frames - 1, 1))
    assert own.abs().mean() < 1.4
    assert pattern(own) < pattern(neighbours)
