"""Wrong arguments: the error names the argument, the value passed and what was expected."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    SegmentTuples,
    TwoViews,
    VideoInfo,
    VideoPairs,
    augment_clip,
    context_frames,
    eval_draw,
    eval_transform,
    open_engine,
    probe,
    sample_clip,
    sample_views,
    write_video,
)
from fastseq.video.arguments import as_int, as_path
from fastseq.video.augment import apply_draw
from fastseq.video.engines.dali import DaliEngine

INFO = VideoInfo("a.mp4", 40, 32, 24, 0, 25.0, "h264")
AUGMENTATION = Augmentation(size=16)
CLIP = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
RNG = np.random.default_rng(0)
KINDS = {
    "views": lambda videos, **more: TwoViews(videos, 8, AUGMENTATION, **more),
    "pairs": lambda videos, **more: VideoPairs(videos, 8, AUGMENTATION, **more),
    "tuples": lambda videos, **more: SegmentTuples(videos, AUGMENTATION, **more),
}


def loader(items=None, batch_size=1, engine=None, **more):
    items = TwoViews([INFO] * 2, 8, AUGMENTATION) if items is None else items
    engine = PyAVEngine(16) if engine is None else engine
    return ClipLoader(items, batch_size, engine=engine, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("videos", "error", "message"),
    [
        (["a.mp4"], TypeError, r"videos\[0\] .* fastseq.video.probe.* str 'a.mp4'.*probe\(path\)"),
        ([INFO, Path("b.mp4")], TypeError, r"videos\[1\] .*probe"),
        ({"a.mp4": INFO}, TypeError, r"videos\[0\] .*probe"),
        ("a.mp4", TypeError, "videos must be a list .* got one str"),
        (Path("a.mp4"), TypeError, "videos must be a list .* got one PosixPath"),
        (INFO, TypeError, "videos must be a list .* got one VideoInfo; pass a list"),
        (None, TypeError, "videos must be a list .* NoneType"),
        ([{"path": "a.mp4"}], TypeError, r"videos\[0\] .* got dict"),
        ([], ValueError, "no videos"),
        (iter([]), ValueError, "no videos"),
    ],
)
def test_videos_that_are_none(kind, videos, error, message):
    with pytest.raises(error, match=message):
        KINDS[kind](videos)


def test_what_a_video_lacks_is_named():
    class Half:
        id = path = "a.mp4"
        frames, action = 40, "all"

    with pytest.raises(TypeError, match=r"videos\[0\] .* without fps, width, height"):
        TwoViews([Half()], 8, AUGMENTATION)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tuple, iter, lambda v: np.array(v, dtype=object)])
def test_any_iterable_of_videos_will_do(kind, make):
    assert list(KINDS[kind](make([INFO, INFO])).videos) == [INFO, INFO]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TwoViews([INFO], AUGMENTATION, 8), TypeError, "augmentation .* got int"),
        (lambda: TwoViews([INFO], 8, {"size": 16}), TypeError, "augmentation .* got dict"),
        (lambda: TwoViews([INFO], 8.0, AUGMENTATION), TypeError, "num_frames .* float 8.0"),
        (lambda: TwoViews([INFO], 0, AUGMENTATION), ValueError, "num_frames must be at least 1"),
        (lambda: TwoViews([INFO], "8", AUGMENTATION), TypeError, "num_frames .* str '8'"),
        (lambda: KINDS["views"]([INFO], num_context="2"), TypeError, "num_context .* str '2'"),
        (lambda: KINDS["views"]([INFO], context_stride=1.5), TypeError, "context_stride .* 1.5"),
        (lambda: KINDS["views"]([INFO], positive_window=None), TypeError, "positive_window"),
        (lambda: KINDS["views"]([INFO], alpha="2"), TypeError, "alpha must be a number"),
        (lambda: KINDS["views"]([INFO], beta=None), TypeError, "beta must be a number"),
        (lambda: KINDS["views"]([INFO], span=0.5), TypeError, r"span must be \(low, high\)"),
        (lambda: KINDS["views"]([INFO], span=(0.5, 2)), ValueError, "span must be .* high <= 1"),
        (lambda: KINDS["views"]([INFO], side=(24, 32)), TypeError, "side must be an integer"),
        (lambda: KINDS["views"]([INFO], side=0), ValueError, "side must be at least 1, got 0"),
        (lambda: KINDS["tuples"]([INFO], segments=3.0), TypeError, "segments .* float 3.0"),
        (lambda: KINDS["tuples"]([INFO], segments=True), TypeError, "segments .* bool True"),
    ],
)
def test_other_arguments_of_items(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"items": [INFO]}, TypeError, "items must be TwoViews.* got list"),
        ({"items": "videos"}, TypeError, "items must be TwoViews.* got str"),
        ({"engine": "pyav"}, TypeError, "engine must be .* got str; .*open_engine"),
        ({"engine": (PyAVEngine(16), "why")}, TypeError, r"engine must be .* tuple; .*\[0\]"),
        ({"engine": PyAVEngine}, TypeError, "engine must be .* got type"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got float 2.0"),
        ({"batch_size": None}, TypeError, "batch_size must be an integer, got NoneType None"),
        ({"batch_size": PyAVEngine(16)}, TypeError, "batch_size must be an integer, got PyAV"),
        ({"seed": None}, TypeError, "seed must be an integer, got NoneType"),
        ({"seed": RNG}, TypeError, "seed must be an integer, got Generator"),
        ({"rank": "0"}, TypeError, "rank must be an integer"),
        ({"world_size": 1.0}, TypeError, "world_size must be an integer"),
    ],
)
def test_arguments_of_the_loader(given, error, message):
    with pytest.raises(error, match=message):
        loader(**given)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PyAVEngine((16, 24)), ValueError, "size is the side of a square"),
        (lambda: PyAVEngine("16"), TypeError, "size must be an integer, got str"),
        (lambda: PyAVEngine(0), ValueError, "size must be at least 1, got 0"),
        (lambda: PyAVEngine(16, workers=None), TypeError, "workers must be an integer"),
        (lambda: PyAVEngine(16, workers=-1), ValueError, "workers must be at least 0, got -1"),
        (lambda: PyAVEngine(16, cache="ram"), TypeError, "cache must be a dict .* got str"),
        (lambda: PyAVEngine(16, time_limit="60"), TypeError, "time_limit must be a number"),
        (lambda: open_engine("pyav", ["a.mp4"], 16), TypeError, r"videos\[0\] .*probe"),
        (lambda: open_engine("pyav", INFO, 16), TypeError, "videos must be a list"),
        (lambda: open_engine("pyav", [INFO], (16, 24)), ValueError, "size is the side"),
        (lambda: open_engine("pyav", [INFO], 16, workers="2"), TypeError, "workers must be"),
        (lambda: open_engine(None, [INFO], 16), ValueError, "engine must be one of .* None"),
        (lambda: DaliEngine(16.0), TypeError, "size must be an integer"),
        (lambda: DaliEngine(16, threads="2"), TypeError, "threads must be an integer"),
        (lambda: DaliEngine(16, prefetch=0), ValueError, "prefetch must be at least 1, got 0"),
    ],
)
def test_arguments_of_engines(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda generator: augment_clip(CLIP, AUGMENTATION, generator),
        lambda generator: sample_views(40, 8, generator),
        lambda generator: sample_clip(40, 8, generator, strategy="segment"),
    ],
)
@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (7, r"got int 7; pass numpy.random.default_rng\(7\)"),
        (torch.Generator(), r"got Generator; pass numpy.random.default_rng\(seed\)"),
        (np.random.RandomState(0), "got RandomState"),
        (None, "got NoneType"),
        (np.random, "got module"),
    ],
)
def test_only_numpy_draws(call, generator, message):
    with pytest.raises(TypeError, match="generator must be a numpy.random.Generator, " + message):
        call(generator)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": (16, 24)}, ValueError, r"size is the side of a square, .* got \(16, 24\)"),
        ({"size": [16, 16]}, ValueError, r"size is the side of a square, .* got \(16, 16\)"),
        ({"size": "16"}, TypeError, "size must be an integer, got str '16'"),
        ({"size": 16.0}, TypeError, "size must be an integer, got float 16.0"),
        ({"size": None}, TypeError, "size must be an integer, got NoneType"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"flip": "0.5"}, TypeError, "flip must be a number, got str '0.5'"),
        ({"flip": True}, TypeError, "flip must be a number, got bool True"),
        ({"blur": float("nan")}, ValueError, "blur must be a probability, 0 to 1, got nan"),
        ({"strength": float("nan")}, ValueError, "strength must be finite, got nan"),
        ({"hue": (0.1, 0.2)}, TypeError, r"hue must be a number, got tuple \(0.1, 0.2\)"),
        ({"scale": 0.8}, TypeError, r"scale must be \(low, high\), .* got float 0.8"),
        ({"ratio": (0.5, 1.0, 2.0)}, ValueError, r"ratio must be \(low, high\)"),
        ({"ratio": ("3/4", "4/3")}, TypeError, "ratio must be a number, got str '3/4'"),
        ({"per_clip": "no"}, TypeError, "per_clip must be True or False, got 'no'"),
    ],
)
def test_augmentations_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: augment_clip(CLIP.numpy(), AUGMENTATION, RNG), TypeError, "torch.from_numpy"),
        (lambda: augment_clip(CLIP, 16, RNG), TypeError, "spec must be .*Augmentation, got int"),
        (lambda: augment_clip(CLIP[:, :0], AUGMENTATION, RNG), ValueError, r"got \(5, 0, 32, 3\)"),
        (lambda: eval_transform(CLIP.float(), 16), TypeError, "frames must be uint8, got"),
        (lambda: eval_transform(CLIP[0], 16), ValueError, r"frames must be \(T, H, W, 3\)"),
        (lambda: eval_transform(CLIP, (16, 24)), ValueError, "size is the side of a square"),
        (lambda: eval_transform(CLIP, 16.0), TypeError, "size must be an integer"),
        (lambda: apply_draw(CLIP, (0, 0, 8, 8), 16), TypeError, "draw must be"),
        (lambda: apply_draw(CLIP, eval_draw(32, 32), 0), ValueError, "size must be at least 1"),
        (lambda: sample_views(40.0, 8, RNG), TypeError, "num_frames must be an integer"),
        (lambda: sample_views(40, None, RNG), TypeError, "T must be an integer"),
        (lambda: sample_clip(40, 8.0, RNG, strategy="segment"), TypeError, "T must be an integer"),
        (lambda: context_frames(np.arange(3), 2.0, 1), TypeError, "num_context must be"),
        (lambda: write_video(io.BytesIO(), [], 25), TypeError, "path must be .* got BytesIO"),
        (lambda: write_video("a.mp4", CLIP, "25"), TypeError, "fps must be a number, got str"),
        (lambda: write_video("a.mp4", CLIP, float("inf")), ValueError, "fps must be positive"),
        (lambda: write_video("a.mp4", CLIP, float("nan")), ValueError, "fps must be positive"),
        (lambda: write_video("a.mp4", None, 25), TypeError, "frames must be arrays"),
        (lambda: write_video("a.mp4", "frames", 25), TypeError, "frames must be arrays"),
        (lambda: write_video("a.mp4", CLIP, 25, crf=20.5), TypeError, "crf must be an integer"),
        (lambda: write_video("a.mp4", CLIP, 25, crf=52), ValueError, "crf must be at most 51"),
    ],
)
def test_arguments_of_functions(call, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path):
    """The same clips, and a state that torch.load(weights_only=True) takes."""
    path = str(tmp_path / "a.mp4")
    frames = RNG.integers(0, 255, (40, 24, 32, 3), dtype=np.uint8)
    write_video(path, frames, np.float32(25), crf=np.int64(20))
    info = probe(path)

    def batches(integer, real):
        augmentation = Augmentation(size=integer(16), flip=real(0.5), scale=(real(0.5), real(1)))
        items = TwoViews(
            [info] * 2,
            integer(8),
            augmentation,
            num_context=integer(2),
            context_stride=integer(1),
            side=integer(20),
        )
        made = ClipLoader(items, integer(2), engine=PyAVEngine(integer(16)), seed=integer(3))
        return next(iter(made))["frames"], made.state_dict()

    expected, plain = batches(int, float)
    for integer, real in ((np.int64, np.float64), (np.uint8, np.float32)):
        got, state = batches(integer, real)
        assert torch.equal(got, expected)
        assert [type(v) for v in state.values()] == [type(v) for v in plain.values()]
    drawn = [sample_views(n(40), n(8), np.random.default_rng(0)) for n in (int, np.int16)]
    assert np.array_equal(drawn[0], drawn[1])


def test_paths():
    assert as_path(Path("a b.mp4")) == as_path(b"a b.mp4") == "a b.mp4"
    for wrong in (io.BytesIO(), 3, None, ["a.mp4"], INFO):
        with pytest.raises(TypeError, match=f"path must be .* got {type(wrong).__name__}"):
            as_path(wrong)


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_integers(value):
    assert type(as_int("n", value)) is int
    for wrong in (True, np.True_, 3.0, np.float32(3), "3", None):
        with pytest.raises(TypeError, match="n must be an integer"):
            as_int("n", wrong)
