"""Clips of segments: every possible start and no other, padding, gaps, pixels, resuming."""

import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from counter_video import encode

from fastseq.video import (
    Augmentation,
    ClipLoader,
    ConsecutiveBlocks,
    PyAVEngine,
    SegmentClips,
    SegmentTuples,
    SynchronisedViews,
    TwoViews,
    VideoPairs,
    open_engine,
    probe,
    read_frames,
)
from fastseq.video.augment import apply_draw
from fastseq.video.engines import pyav
from fastseq.video.engines.choose import dali_version
from fastseq.video.gaps import sound_frames
from fastseq.video.readings import box_of
from fastseq.video.segments import clip_span, segment_starts
from fastseq.video.tuples import _two_of_each, anchors, order_labels

STILL = Augmentation(size=16, jitter=0, grayscale=0, blur=0)


def video(frames: int, name: str = "a", **more) -> SimpleNamespace:
    return SimpleNamespace(
        id=name,
        path=f"{name}.mp4",
        frames=frames,
        fps=25.0,
        width=24,
        height=16,
        action="pour",
        **more,
    )


def possible(frames: int, segments: int, span: int, least: int) -> list[list[int]]:
    """Starts in each segment, by looking at every frame."""
    edges = [s * frames // segments for s in range(segments + 1)]
    inside = [
        [t for t in range(frames) if first <= t and t + span <= stop]
        for first, stop in pairwise(edges)
    ]
    if min(map(len, inside)) >= least:
        return inside
    every = [t for t in range(frames) if t + span <= frames]
    edges = [s * len(every) // segments for s in range(segments + 1)]
    return [every[first:stop] for first, stop in pairwise(edges)]


def items_of(frames: int, **options) -> SegmentClips:
    return SegmentClips([video(frames)], STILL, **options)


def steps_of(items, count: int) -> np.ndarray:
    return np.stack([items.item(0, epoch, 0).steps for epoch in range(count)])


@pytest.mark.parametrize("least", [1, 2])
def test_starts_are_those_found_by_looking_at_every_frame(least):
    for frames, segments, span in product(range(1, 26), range(1, 6), range(1, 9)):
        first, counts = segment_starts(frames, segments, span, least)
        got = [list(range(a, a + n)) for a, n in zip(first, counts, strict=True)]
        assert got == possible(frames, segments, span, least), (frames, segments, span)


CASES = [(30, 3, 4, 1), (24, 3, 2, 3), (9, 2, 3, 2), (7, 3, 3, 2), (12, 1, 5, 2), (5, 5, 1, 1)]


@pytest.mark.parametrize(("frames", "segments", "length", "stride"), CASES)
def test_segment_clips_start_everywhere_and_nowhere_else(frames, segments, length, stride):
    items = items_of(frames, segments=segments, clip_frames=length, stride=stride)
    steps = steps_of(items, 300)
    assert steps.shape == (300, segments, length)
    assert (np.diff(steps) == stride).all()
    starts = possible(frames, segments, clip_span(length, stride), 1)
    assert [sorted(set(column)) for column in steps[..., 0].T] == starts
    for column, allowed in zip(steps[..., 0].T, starts, strict=True):
        mean = 300 / len(allowed)
        assert all(abs(count - mean) < 5 * mean**0.5 for count in Counter(column).values())


@pytest.mark.parametrize(("frames", "segments", "span"), [(30, 3, 4), (12, 3, 4), (9, 2, 3)])
def test_every_pair_of_clips_of_a_segment_occurs(frames, segments, span):
    generator = np.random.default_rng(0)
    drawn = np.stack([_two_of_each(frames, segments, span, generator) for _ in range(4000)])
    for segment, starts in enumerate(possible(frames, segments, span, 2)):
        pairs = Counter(zip(*drawn[..., segment].T, strict=True))
        assert pairs.keys() == {(a, b) for a, b in product(starts, starts) if a != b}
        mean = 4000 / len(pairs)
        assert all(abs(count - mean) < 5 * mean**0.5 for count in pairs.values())


def mmaction2_starts(frames: int, segments: int, length: int, stride: int) -> list[list[int]]:
    """Possible starts in SampleFrames._get_train_clips of mmaction2, if its interval is above 0."""
    interval = (frames - length * stride + 1) // segments
    return [list(range(s * interval, (s + 1) * interval)) for s in range(segments)]


def test_starts_are_those_of_mmaction2_where_the_docstring_states_it():
    def ours(*case):
        frames, segments, length, stride = case
        return possible(frames, segments, clip_span(length, stride), 1)

    for frames, segments in product(range(1, 40), range(1, 9)):
        same = ours(frames, segments, 1, 1) == mmaction2_starts(frames, segments, 1, 1)
        assert same == (frames % segments == 0), (frames, segments)
    for frames, length in product(range(8, 40), range(1, 8)):
        assert ours(frames, 1, length, 1) == mmaction2_starts(frames, 1, length, 1)
    # Several clips of several frames: segments of the frames, or of the starts.
    assert ours(30, 3, 4, 1) == [[*range(7)], [*range(10, 17)], [*range(20, 27)]]
    assert mmaction2_starts(30, 3, 4, 1) == [[*range(9)], [*range(9, 18)], [*range(18, 27)]]
    assert ours(9, 1, 3, 2) == [[0, 1, 2, 3, 4]]
    assert mmaction2_starts(9, 1, 3, 2) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("frames", "segments", "steps", "valid"),
    [
        (1, 1, [[0, 0, 0]], [[1, 0, 0]]),
        (1, 2, [[0, 0, 0]] * 2, [[1, 0, 0]] * 2),
        (2, 1, [[0, 1, 1]], [[1, 1, 0]]),
        (3, 2, [[0, 2, 2]] * 2, [[1, 1, 0]] * 2),
        (6, 4, [[0, 2, 4], [0, 2, 4], [1, 3, 5], [1, 3, 5]], [[1, 1, 1]] * 4),
    ],
)
def test_short_videos_repeat_their_last_frame_or_clips(frames, segments, steps, valid):
    stride = 2 if frames > 2 else 1
    item = items_of(frames, segments=segments, clip_frames=3, stride=stride).item(0, 0, 0)
    assert item.steps.tolist() == steps
    assert item.valid.tolist() == [[bool(one) for one in row] for row in valid]
    assert item.num_frames.tolist() == [frames] * segments


def test_more_segments_than_frames():
    (steps,) = set(map(bytes, steps_of(items_of(3, segments=8), 20)))
    assert np.frombuffer(steps, np.int64).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", [SegmentClips, SegmentTuples])
def test_gaps_are_never_shown_and_times_are_those_of_the_frames(kind):
    times = np.cumsum([0.0, *np.linspace(0.01, 0.3, 39)])
    damaged = video(40, gaps=((5, 9), (20, 28)), times=times)
    sound = sound_frames(40, damaged.gaps)
    items = kind([damaged], STILL, segments=3, clip_frames=3, stride=2)
    shown = set()
    for epoch in range(200):
        item = items.item(0, epoch, 0)
        assert np.isin(item.steps, sound).all()
        places = np.searchsorted(sound, item.steps)
        assert (np.diff(places) == 2).all()  # neighbours across a gap
        assert (item.times == times[item.steps]).all()
        assert item.valid.all()
        shown |= set(item.steps.flat)
    assert shown == set(sound)


def test_trimmed_videos_start_at_their_first_sound_frame():
    """A part of a video is one with gaps around it."""
    trimmed = video(40, gaps=((0, 12), (20, 40)))
    steps = steps_of(SegmentClips([trimmed], STILL, segments=2, clip_frames=2), 100)
    assert set(steps.flat) == {*range(12, 20)}
    items = SegmentTuples([trimmed], replace(STILL, per_clip=False), clip_frames=2)
    assert set(steps_of(items, 100).flat) == {*range(12, 20)}
    short = [trimmed, video(40, "whole")]
    items = SegmentTuples(short, replace(STILL, per_clip=False), clip_frames=4)
    assert items.left_out == [
        ("a", "has 8 sound frames, 3 segments of two clips that span 4 frames need 9")
    ]


def test_labels_and_anchors_of_clips_are_those_of_their_first_frames():
    items = SegmentTuples([video(60)], STILL, clip_frames=4, stride=3, anchor="any")
    steps = steps_of(items, 60)
    q, k = steps[:, :3, 0], steps[:, 3:6, 0]
    by_hand = [
        (list(a) != sorted(a)) + 2 * (list(b) != sorted(b)) for a, b in zip(q, k, strict=True)
    ]
    batch = torch.from_numpy(steps)
    assert order_labels(batch).tolist() == by_hand
    assert set(by_hand) == {0, 1, 2, 3}
    place = anchors(batch).numpy()
    assert (steps[np.arange(60), place] == steps[:, -1]).all()
    assert set(place) == {0, 1, 2}


def test_errors():
    for kind in (SegmentClips, ConsecutiveBlocks):
        with pytest.raises(ValueError, match=f"per_clip must be true for {kind.__name__}: .* pass"):
            kind([video(130)], replace(STILL, per_clip=False))
    for name in ("segments", "clip_frames", "stride"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            items_of(30, **{name: 0})
    with pytest.raises(TypeError) as error:
        ClipLoader([video(30)], 1, engine=PyAVEngine(16))
    for kind in (TwoViews, VideoPairs, SynchronisedViews):
        assert kind.__name__ in str(error.value)
    for kind in (SegmentTuples, SegmentClips, ConsecutiveBlocks):
        assert kind.__name__ in str(error.value)


def cached(items, *, workers: int = 0, batch_size: int = 2, **options) -> ClipLoader:
    """A loader of noise videos in memory."""
    generator = torch.Generator().manual_seed(0)
    shape = (items.side, round(items.side * 1.5), 3)
    frames = {
        one.path: torch.randint(0, 256, (one.frames, *shape), generator=generator).byte()
        for one in items.videos
    }
    engine = PyAVEngine(16, workers=workers, cache=frames)
    return ClipLoader(items, batch_size, engine=engine, **options)


VIDEOS = [video(24 + 5 * i, str(i)) for i in range(6)]


def test_batches_of_segment_clips():
    items = SegmentClips(VIDEOS, Augmentation(size=16), segments=4, clip_frames=3, stride=2)
    batch = next(iter(cached(items)))
    assert batch["frames"].shape == (2, 4, 3, 3, 16, 16)
    for key in ("steps", "valid", "times"):
        assert batch[key].shape == (2, 4, 3), key
    assert batch["lengths"].tolist() == [[3] * 4] * 2
    assert batch["actions"] == ["pour"] * 2


@pytest.mark.parametrize("kind", [SegmentClips, SegmentTuples])
def test_workers_and_resumed_loaders_return_the_same_clips(kind):
    spec = Augmentation(size=16, per_clip=kind is SegmentClips)
    items = kind(VIDEOS, spec, segments=3, clip_frames=3, stride=2)
    whole = [*cached(items).stream(5)]  # three batches an epoch
    assert pickle.loads(pickle.dumps(items)).item(0, 1, 2).steps.tolist() == (
        items.item(0, 1, 2).steps.tolist()
    )
    begun = cached(items)
    stream = begun.stream(5)
    for _ in range(2):
        next(stream)
    state = begun.state_dict()
    resumed = cached(items, workers=1)
    resumed.load_state_dict(state)
    rest = [*resumed.stream(5)]
    assert len(rest) == 3
    for batch, made in zip(whole[2:], rest, strict=True):
        assert batch["ids"] == made["ids"]
        assert torch.equal(batch["frames"], made["frames"])


@pytest.mark.parametrize("per_clip", [True, False])
def test_the_frames_of_a_clip_share_a_draw(per_clip):
    """Of a video whose frames are all the same, a clip is one picture, repeated."""
    items = SegmentTuples(
        [video(40)], Augmentation(size=16, per_clip=per_clip), clip_frames=4, stride=2
    )
    picture = torch.randint(0, 256, (items.side, round(items.side * 1.5), 3)).byte()
    engine = PyAVEngine(16, cache={"a.mp4": picture.expand(40, -1, -1, -1)})
    (clips,) = next(ClipLoader(items, 1, engine=engine).stream(1))["frames"]
    assert (clips == clips[:, :1]).all()
    different = len({bytes(clip.numpy()) for clip in clips[:, 0]})
    assert different == (3 if per_clip else 7)


@pytest.fixture(scope="module")
def counters(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    encode(path, 60)
    return [probe(path)]


@pytest.mark.parametrize("kind", [SegmentClips, SegmentTuples])
def test_a_video_is_opened_once_and_no_frame_is_decoded_twice(kind, counters, monkeypatch):
    """Clips of 12 of 60 frames overlap; pixels are those of the frames that the steps name."""
    calls = []

    def delivering(path, wanted, *rest):
        calls.append(wanted.tolist())
        return deliver(path, wanted, *rest)

    deliver = pyav.deliver
    monkeypatch.setattr(pyav, "deliver", delivering)
    items = kind(counters, STILL, segments=6, clip_frames=12)
    loader = ClipLoader(items, 1, engine=PyAVEngine(16))
    batch = next(loader.stream(1))
    (wanted,) = calls
    steps = batch["steps"][0].numpy()
    assert wanted == sorted(set(steps.flat))
    assert len(wanted) < steps.size
    (reading,) = loader.items_of(0)[0].readings
    frames = read_frames(reading.path)
    for clip, pixels, numbers in zip(reading.clips, batch["frames"][0], steps, strict=True):
        box = dict(zip(("top", "left", "height", "width"), box_of(clip, reading), strict=True))
        expected = apply_draw(frames[torch.from_numpy(numbers)], replace(clip.draw, **box), 16)
        assert torch.equal(pixels, expected)


@pytest.mark.parametrize("kind", [SegmentClips, SegmentTuples])
def test_dali_reads_clips_like_pyav(kind, counters):
    pytest.importorskip("nvidia.dali", reason='needs DALI: pip install "fastseq[dali]"')
    from fastseq.video.engines.dali import unsupported

    if (why := unsupported(counters[0], "cpu", dali_version())) is not None:
        pytest.skip(f"DALI {dali_version()} does not read H.264 on the CPU: {why}")
    # Without crops or flips: the counters in the pixels, by which a wrong frame is off.
    spec = replace(STILL, size=48, scale=(1, 1), ratio=(1.0, 1.0), flip=0)
    items = kind(counters, spec, segments=3, clip_frames=5, stride=2)
    batches = {}
    for name in ("dali-cpu", "pyav"):
        engine, _ = open_engine(name, counters, 48)
        batches[name] = next(ClipLoader(items, 1, engine=engine).stream(1))
        engine.close()
    dali, ours = batches["dali-cpu"], batches["pyav"]
    assert torch.equal(dali["steps"], ours["steps"])
    assert dali["frames"].shape == ours["frames"].shape
    gaps = (dali["frames"].int() - ours["frames"].int()).abs().float().mean((3, 4, 5))
    assert gaps.max() < 3
    shifted = (dali["frames"].int() - ours["frames"].roll(1, 2).int()).abs().float()
    assert shifted.mean((3, 4, 5)).min() > 3  # the measure does see a wrong frame
