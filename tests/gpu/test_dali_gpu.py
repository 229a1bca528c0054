"""The DALI engine on a real GPU: the decoder, and the graph that CI runs on a CPU."""

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("nvidia.dali", reason='needs DALI: pip install "fastseq[dali]"')

from video.counter_video import HEIGHT, WIDTH
from video.dali_cases import (
    ANY_VERSION,
    H264_AND_HEVC,
    check_colours,
    check_counters,
    check_rotation,
    check_stages,
    engine_of,
    plain,
    reading_of,
    run,
    tagged,
    texture,
)

from fastseq.video.engines.dali import why_no_gpu_decoder

pytestmark = pytest.mark.gpu
# Chroma is subsampled and interpolated in other ways than on the CPU, so noise differs more.
BORDER = 4


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


@pytest.mark.parametrize("name", [*ANY_VERSION, *H264_AND_HEVC])
def test_every_index_gives_its_frame(folder, make_engine, name):
    makers = {**ANY_VERSION, **H264_AND_HEVC}
    check_counters(make_engine(48), makers[name](folder / name))


def test_augmentation_is_that_of_apply_draw(folder, make_engine):
    check_stages(make_engine(40), texture(folder / "texture.webm"), BORDER)


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_applied(folder, make_engine, clockwise):
    path = texture(folder / "turned.mp4", count=6)
    check_rotation(make_engine(32), path, clockwise, BORDER)


@pytest.mark.parametrize(
    ("space", "full"), [(1, False), (6, False), (9, False), (1, True), (6, True)]
)
def test_colour_tags_are_honoured(folder, make_engine, space, full):
    video = tagged(folder / f"{space}_{full}.mp4", space, full, pixels="yuv420p")
    check_colours(make_engine(96), *video)


def test_batches_are_ready_on_the_current_stream(folder, make_engine):
    path = H264_AND_HEVC["b_frames.mp4"](folder / "stream.mp4")
    readings = [reading_of(path, [range(0, 90, 3)] * 2, [plain(HEIGHT, WIDTH)] * 2)] * 4
    engine = make_engine(48)
    want = run(engine, readings)[0]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for batch in engine.batches(lambda k: readings, 0, 20):
            torch.cuda._sleep(10_000_000)  # the copy out of DALI's memory waits behind this
            assert batch.is_cuda
            assert batch.shape == (4, 2, 30, 3, 48, 48)
            total = batch.long().sum()
            assert total.item() == want.long().sum().item()
            assert torch.equal(batch.cpu(), want)
