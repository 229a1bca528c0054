"""Which engine is taken and why; a loader gives the same work on each of them."""

import importlib.util
import re
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")

import av
from counter_video import counter_frame
from dali_cases import MATRICES, check_rotation, check_stages, plain, texture
from torch.utils.data._utils.pin_memory import pin_memory

from fastseq.video import (
    Augmentation,
    Clip,
    ClipLoader,
    PyAVEngine,
    Reading,
    TwoViews,
    VideoError,
    choose_engine,
    open_engine,
    probe,
    write_video,
)
from fastseq.video.augment import ClipDraw
from fastseq.video.engines import choose
from fastseq.video.engines import pyav as pyav_engine

NO_GPU = "training runs on cpu"
needs_dali = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or choose.dali_version() is None,
    reason='needs DALI: pip install "fastseq[dali]"',
)


def video(codec="h264", note="", name="a.mp4"):
    return SimpleNamespace(id=name, path=name, codec=codec, note=note, rotation=0)


@pytest.mark.parametrize(
    ("videos", "dali", "gpu", "engine", "reason"),
    [
        ([video()], None, NO_GPU, "pyav", 'DALI is not installed .pip install "fastseq.dali."'),
        ([video()], "2.4.0", None, "dali-gpu", "on the GPU"),
        ([video()], "2.1.0", NO_GPU, "pyav", "fastest on a CPU; .*: training runs on cpu"),
        ([video(), video("ffv1", name="b.mkv")], "2.4.0", None, "pyav", "1 of 2 .* as b.mkv"),
        ([video(), video(name="b.flv")], "2.4.0", None, "pyav", "as b.flv: DALI opens no"),
        ([video(), video(note="cut off")], "2.1.0", None, "pyav", "damaged .cut off."),
    ],
)
def test_dali_where_the_gpu_reads_every_video_else_pyav(videos, dali, gpu, engine, reason):
    name, why = choose_engine(videos, dali=dali, gpu=gpu)
    assert name == engine
    assert re.search(reason, why), why


def test_what_is_in_memory_is_not_decoded():
    name, why = choose_engine([video()], dali="2.1.0", gpu=None, cached=True)
    assert (name, why) == ("pyav", "frames are cached in memory, nothing is decoded")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    rng = np.random.default_rng(0)
    for name in "abcd":
        base = torch.from_numpy(rng.random((1, 3, 6, 8), dtype=np.float32) * 255)
        picture = torch.nn.functional.interpolate(base, (48, 64), mode="bicubic")[0]
        picture = picture.clamp(0, 255).byte().permute(1, 2, 0).numpy()
        frames = [np.roll(picture, 2 * t, axis=1) for t in range(40)]
        write_video(folder / f"{name}.mp4", frames, 25, crf=10)
    return [probe(folder / f"{name}.mp4") for name in "abcd"]


def test_an_engine_asked_for_by_name_never_falls_back(files, monkeypatch):
    with pytest.raises(ValueError, match=r"engine must be one of auto, .*got 'decord'"):
        open_engine("decord", files, 32)
    with pytest.raises(ValueError, match="'dali-cpu' cannot read from the cache"):
        open_engine("dali-cpu", files, 32, cache={})
    with pytest.raises(RuntimeError, match="'dali-gpu' needs a CUDA device, got cpu"):
        open_engine("dali-gpu", files, 32)
    engine, why = open_engine("pyav", files, 32)
    assert (engine.name, why) == ("pyav", "chosen by name")
    monkeypatch.setattr(choose, "dali_version", lambda: None)
    with pytest.raises(ImportError, match=r'pip install "fastseq\[dali\]"'):
        open_engine("dali-cpu", files, 32)
    assert open_engine("auto", files, 32)[0].name == "pyav"


@needs_dali
def test_dali_says_which_video_it_cannot_read(files):
    odd = SimpleNamespace(**{k: getattr(files[0], k) for k in ("id", "path", "rotation", "note")})
    odd.codec = "mpeg4"
    with pytest.raises(ValueError, match="'dali-cpu' cannot read 1 of 5 videos, such as"):
        open_engine("dali-cpu", [*files, odd], 32)


def test_pyav_makes_clips_of_full_frames(tmp_path):
    check_stages(PyAVEngine(40), texture(tmp_path / "a.webm"), border=0, inner=0)


@pytest.mark.parametrize("matrix", list(MATRICES)[1:])
def test_pyav_crops_and_flips_the_upright_frame(tmp_path, matrix):
    engine = PyAVEngine(32)
    check_rotation(engine, texture(tmp_path / "a.mp4"), MATRICES[matrix], border=0, inner=0)


def test_pyav_keeps_no_more_time_stamps_than_it_says(files, monkeypatch):
    monkeypatch.setattr(pyav_engine, "_MOST_KNOWN", 100)  # of four videos of 40 frames
    engine = PyAVEngine(32)
    draw = ClipDraw(0, 0, 48, 48, False, (), 0.0)

    def frames(engine, info):
        clip = Clip(np.array([3, 30]), draw)
        return engine.read([Reading(info.path, info.height, info.width, 48, (clip,))])

    for info in 2 * files:
        assert torch.equal(frames(engine, info), frames(PyAVEngine(32), info))
        assert info.path in engine._infos
        assert sum(kept.frames for kept in engine._infos.values()) <= 100


def test_pyav_scales_a_frame_once_for_each_clip_that_shows_it(files):
    """Views share decoded frames; frames come in any order, with repeats."""
    crops = [ClipDraw(0, 0, 48, 48, False, (), 0.0), ClipDraw(4, 9, 40, 30, True, (), 0.0)]
    orders = [[7, 3, 3, 11], [3, 8, 7, 7]]
    info = files[0]

    def reading(clips):
        return Reading(info.path, info.height, info.width, 48, clips)

    clips = [Clip(np.array(o), c) for o, c in zip(orders, crops, strict=True)]
    both = PyAVEngine(32).read([reading(tuple(clips))])
    engine = PyAVEngine(32)
    alone = [engine.read([reading((clip,))])[0, 0] for clip in clips]
    assert torch.equal(both[0], torch.stack(alone))
    assert torch.equal(both[0, 0, 1], both[0, 0, 2])
    assert not torch.equal(both[0, 0, 0], both[0, 0, 1])


def test_pyav_refuses_other_frames_than_were_announced(files):
    clip = Clip(np.array([0]), ClipDraw(0, 0, 10, 10, False, (), 0.0))
    wrong = Reading(files[0].path, files[0].height, files[0].width + 2, 48, (clip,))
    with pytest.raises(VideoError, match=r"were expected as .*video\.probe\(path\)` again"):
        PyAVEngine(32).read([wrong])
    for frame, message in ((-1, "count from 0"), (files[0].frames, "was requested, but the video")):
        clip = Clip(np.array([frame]), clip.draw)
        with pytest.raises(VideoError, match=message):
            PyAVEngine(32).read(
                [Reading(files[0].path, files[0].height, files[0].width, 48, (clip,))]
            )


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """20 frames of 64 x 48, then 20 of 160 x 96, in one stream."""
    path = tmp_path_factory.mktemp("growing") / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for start, size in ((0, (64, 48)), (20, (160, 96))):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = *size, "yuvj420p"
            encoder.time_base = Fraction(1, 25)
            packets = []
            for number in range(start, start + 20):
                frame = av.VideoFrame.from_ndarray(counter_frame(number, *size), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    return probe(path)


@pytest.mark.parametrize("scale_first", [False, True])
def test_pyav_gives_a_frame_the_first_ones_size(growing, scale_first):
    """Whichever frames of a stream that changes its size are asked for."""
    engine = PyAVEngine(40, scale_first=scale_first)
    assert (growing.frames, growing.width, growing.height) == (40, 64, 48)

    def read(*frames):
        clip = Clip(np.array(frames), plain(24, 30, top=5, left=9))
        return engine.read([Reading(growing.path, 48, 64, 40, (clip,))])[0, 0]

    assert torch.equal(read(3, 25)[1:], read(25))


@pytest.mark.parametrize("lengths", [[], [[]], [[0]], [[2, 3]], [[2], [3]], [[2], [2, 2]]])
def test_pyav_refuses_clips_that_make_no_tensor(files, lengths):
    readings = [
        Reading(files[0].path, 48, 64, 48, tuple(Clip(np.arange(n), plain(9, 9)) for n in row))
        for row in lengths
    ]
    with pytest.raises(ValueError, match=re.escape(f"same number of frames, got {lengths}")):
        PyAVEngine(32).read(readings)


@pytest.mark.parametrize("workers", [0, 1])
def test_pyav_names_the_bad_file_with_pinned_memory_too(tmp_path, workers, monkeypatch):
    """Older versions of torch make a list of a tuple there."""

    def pinned(*args, **options):
        for batch in DataLoader(*args, **options):
            yield [*batch] if isinstance(batch, tuple) else pin_memory(batch)

    DataLoader = pyav_engine.DataLoader
    monkeypatch.setattr(pyav_engine, "DataLoader", pinned)
    (tmp_path / "a.mp4").write_bytes(b"")
    bad = Reading(str(tmp_path / "a.mp4"), 48, 64, 48, (Clip(np.arange(2), plain(9, 9)),))
    with pytest.raises(VideoError, match="the file is empty") as caught:
        next(PyAVEngine(32, workers=workers).batches(lambda k: [bad], 0, 1))
    assert caught.value.path == bad.path


def test_spawned_workers_share_no_memory_that_is_written_to(files):
    clip = Clip(np.arange(2), plain(9, 9))
    readings = [Reading(files[0].path, 48, 64, 48, (clip,))]
    engine = PyAVEngine(32)
    frames = engine.read(readings)
    # As processes that are spawned get it.
    copies = [ForkingPickler.loads(ForkingPickler.dumps(engine)) for _ in range(2)]
    assert all(torch.equal(copy.read(readings), frames) for copy in copies)
    assert copies[0]._resized.data_ptr() != copies[1]._resized.data_ptr()


@needs_dali
def test_a_loader_gives_the_same_work_on_every_engine(files):
    items = TwoViews(files, 16, Augmentation(size=32), side=48)

    def loader():
        engine, _ = open_engine("dali-cpu", files, 32)
        return ClipLoader(items, 2, engine=engine, seed=3)

    dali, pyav = loader(), ClipLoader(items, 2, engine=PyAVEngine(32), seed=3)
    batches = [*dali.stream(5)]
    for one, two in zip(batches, pyav.stream(5), strict=True):
        assert one["ids"] == two["ids"]
        for key in ("steps", "valid", "num_frames"):
            assert torch.equal(one[key], two[key])
        difference = (one["frames"].float() - two["frames"].float()).abs()
        assert difference.mean() < 3  # decoders convert colours differently
        wrong = (one["frames"].float() - two["frames"].float().flip(-1)).abs()
        assert wrong.mean() > 4 * difference.mean()
    continued = loader()
    continued.load_state_dict(dali.state_dict() | {"position": 3})
    for one, two in zip(continued.stream(5), batches[3:], strict=True):
        assert torch.equal(one["frames"], two["frames"])


@needs_dali
def test_a_file_that_breaks_later_is_replaced(files, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    names = ("frames", "fps", "width", "height", "action", "codec", "note", "rotation")
    good = [
        SimpleNamespace(id=f"good{n}", path=one.path, **{k: getattr(one, k) for k in names})
        for n, one in enumerate(files * 25)
    ]
    bad = SimpleNamespace(**(vars(good[0]) | {"id": "bad", "path": str(broken)}))
    items = TwoViews([bad, *good], 4, Augmentation(size=16))
    engine, _ = open_engine("dali-cpu", files, 16)
    loader = ClipLoader(items, 101, engine=engine)
    with pytest.warns(RuntimeWarning, match=r"left out bad: .*\(1 of 101 videos\)"):
        batch = next(iter(loader))
    assert "bad" not in batch["ids"]
    assert [*loader.bad] == [str(broken)]
