"""The DALI engine on a real GPU: the decoder, and the graph that other tests run on a CPU."""

import pytest
import torch

pytest.importorskip("av", reason='needs PyAV: pip install "fastseq[video]"')
pytest.importorskip("nvidia.dali", reason='needs DALI: pip install "fastseq[dali]"')

from video.counter_video import HEIGHT, WIDTH
from video.dali_cases import (
    ANY_VERSION,
    H264_AND_HEVC,
    MATRICES,
    check_colours,
    check_counters,
    check_rotation,
    check_stages,
    check_turned_beside_upright,
    engine_of,
    plain,
    reading_of,
    run,
    tagged,
    texture,
)

from fastseq.video import VideoError
from fastseq.video.engines.dali import why_no_gpu_decoder

pytestmark = pytest.mark.gpu
# Conversions to RGB differ by one grey level, which contrast and saturation enlarge. For the edges,
# see tests/video/test_dali.py.
CLOSE = {"inner": 3, "border": 6}
REFUSED = ("odd_444.mkv", "ten_bit.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dali_videos")


@pytest.fixture
def make_engine():
    reason = why_no_gpu_decoder()
    if reason:
        pytest.skip(reason)
    engines = []

    def make(size):
        engines.append(engine_of(size, "gpu"))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def by_cpu(reading, size):
    engine = engine_of(size)
    clips = run(engine, [reading])[0][0]
    engine.close()
    return clips


@pytest.mark.parametrize("name", [*ANY_VERSION, *H264_AND_HEVC])
def test_every_index_gives_its_frame(folder, make_engine, name):
    path = {**ANY_VERSION, **H264_AND_HEVC}[name](folder / name)
    if name in REFUSED:
        with pytest.raises(VideoError, match=r"do not decode h264 with pixels of yuv4.*--tran"):
            check_counters(make_engine(48), path)
    else:
        check_counters(make_engine(48), path)


def test_augmentation_is_that_of_the_cpu(folder, make_engine):
    path = texture(folder / "texture.webm", size=(160, 144), chroma=False)
    check_stages(make_engine(40), path, **CLOSE, reference=by_cpu)


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotation_and_mirrors_are_applied(folder, make_engine, matrix):
    path = texture(folder / "turned.mp4", size=(160, 144), count=6, chroma=False)
    check_rotation(make_engine(32), path, MATRICES[matrix], **CLOSE, reference=by_cpu)


@pytest.mark.parametrize("coloured", [(), (0,), (1,), (0, 1)])
def test_turned_and_upright_files_share_a_batch(folder, make_engine, coloured):
    how = {"size": (160, 144), "chroma": False, "reference": by_cpu}
    check_turned_beside_upright(make_engine(32), folder, coloured, **CLOSE, **how)


@pytest.mark.parametrize(
    ("space", "full"), [(1, False), (6, False), (9, False), (1, True), (6, True)]
)
def test_colour_tags_are_honoured(folder, make_engine, space, full):
    video = tagged(folder / f"{space}_{full}.mp4", space, full, pixels="yuv420p")
    check_colours(make_engine(96), *video, mean=1.5)  # in 4:2:0 neighbouring patches blend


def test_batches_are_ready_on_the_current_stream(folder, make_engine):
    path = H264_AND_HEVC["b_frames.mp4"](folder / "stream.mp4")
    readings = [reading_of(path, [range(0, 90, 3)] * 2, [plain(HEIGHT, WIDTH)] * 2)] * 4
    engine = make_engine(48)
    want = run(engine, readings)[0]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for batch in engine.batches(lambda k: readings, 0, 20):
            torch.cuda._sleep(10_000_000)  # copying out of DALI's memory has to wait for this
            assert batch.is_cuda
            assert batch.shape == (4, 2, 30, 3, 48, 48)
            total = batch.long().sum()
            assert total.item() == want.long().sum().item()
            assert torch.equal(batch.cpu(), want)
