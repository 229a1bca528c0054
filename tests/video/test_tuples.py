"""SegmentTuples: the frames, the draws, and that every engine and the loader support them."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from counter_video import encode

from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    SegmentTuples,
    TwoViews,
    open_engine,
    probe,
    read_frames,
)
from fastseq.video.augment import apply_draw
from fastseq.video.engines.choose import dali_version
from fastseq.video.readings import box_of
from fastseq.video.tuples import anchors, order_labels

PER_FRAME = Augmentation(size=16, per_clip=False)


def video(frames: int, name: str = "a") -> SimpleNamespace:
    return SimpleNamespace(
        id=name, path=f"{name}.mp4", frames=frames, fps=25.0, width=48, height=32, action="pour"
    )


def tuples_of(frames: int, count: int, **options) -> np.ndarray:
    items = SegmentTuples([video(frames)], PER_FRAME, **options)
    # They take most of the time and are drawn last in an item, so no frame depends on them.
    items._draws = lambda video, generator: [None] * (2 * items.segments + 1)
    return np.stack([items.item(0, epoch, 0).steps[:, 0] for epoch in range(count)])


@pytest.mark.parametrize(("frames", "segments"), [(6, 3), (7, 3), (11, 5), (90, 3), (4, 2)])
def test_two_different_frames_of_every_segment(frames, segments):
    steps = tuples_of(frames, 200, segments=segments)
    assert steps.shape == (200, 2 * segments + 1)
    q, k = np.sort(steps[:, :segments]), np.sort(steps[:, segments:-1])
    edges = np.arange(segments + 1) * frames // segments
    for tuple_ in (q, k):
        assert (tuple_ >= edges[:-1]).all()
        assert (tuple_ < edges[1:]).all()
    assert (q != k).all()
    if frames <= 11:  # every pair of different frames of a segment occurs
        for segment, (start, stop) in enumerate(pairwise(edges)):
            pairs = set(zip(q[:, segment], k[:, segment], strict=True))
            assert len(pairs) == (stop - start) * (stop - start - 1)


def test_frames_are_uniform_within_a_segment():
    counts = Counter(np.sort(tuples_of(30, 4000)[:, :3])[:, 1].tolist())
    assert sorted(counts) == list(range(10, 20))
    assert all(abs(count - 400) < 5 * 400**0.5 for count in counts.values())


@pytest.mark.parametrize(("anchor", "allowed"), [("ends", {0, 2}), ("any", {0, 1, 2})])
def test_the_anchor_is_a_frame_of_the_first_tuple(anchor, allowed):
    steps = tuples_of(90, 600, anchor=anchor)
    segment = (np.sort(steps[:, :3]) == steps[:, -1:]).argmax(1)
    shares = {place: (segment == place).mean() for place in range(3)}
    assert {place for place, share in shares.items() if share} == allowed
    assert all(abs(shares[place] - 1 / len(allowed)) < 0.1 for place in allowed)
    place = anchors(torch.from_numpy(steps)[..., None])
    assert (steps[np.arange(600), place] == steps[:, -1]).all()


@pytest.mark.parametrize(
    ("segments", "reversal", "orders"), [(3, False, 4), (3, True, 5), (2, False, 1), (4, False, 22)]
)
def test_tuples_are_shuffled_half_of_the_time(segments, reversal, orders):
    steps = tuples_of(90, 2000, segments=segments, reversal=reversal)
    q, k = np.argsort(steps[:, :segments]), np.argsort(steps[:, segments:-1])
    in_order = np.arange(segments)
    label = (q != in_order).any(1) + 2 * (k != in_order).any(1)
    assert order_labels(torch.from_numpy(steps)[..., None]).tolist() == label.tolist()
    assert np.abs(np.bincount(label, minlength=4) / 2000 - 0.25).max() < 0.05
    shuffled = {tuple(row) for row in q if (row != in_order).any()}
    assert len(shuffled) == orders
    assert (tuple(in_order[::-1]) in shuffled) == (reversal or segments == 2)


def test_frames_do_not_depend_on_the_draws():
    items = SegmentTuples([video(90)], PER_FRAME)
    steps = np.stack([items.item(0, epoch, 0).steps[:, 0] for epoch in range(3)])
    assert (tuples_of(90, 3) == steps).all()


def test_labels_and_anchors_by_hand():
    steps = torch.tensor([[1, 5, 9, 2, 6, 8, 9], [5, 1, 9, 2, 6, 8, 1], [1, 5, 9, 8, 2, 6, 1]])
    assert order_labels(steps[..., None]).tolist() == [0, 1, 2]
    assert anchors(steps[..., None]).tolist() == [2, 1, 0]


def test_every_frame_or_every_tuple_has_a_draw():
    each = SegmentTuples([video(30)], PER_FRAME).item(0, 0, 0).readings[0].clips
    assert len({clip.draw for clip in each}) == 7
    spec = Augmentation(size=16)
    once = [clip.draw for clip in SegmentTuples([video(30)], spec).item(0, 0, 0).readings[0].clips]
    assert len(set(once[:3])) == len(set(once[3:6])) == 1
    assert len({once[0], once[3], once[6]}) == 3  # the anchor is augmented anew


def test_short_videos_are_left_out_with_a_reason():
    items = SegmentTuples([video(5, "short"), video(6, "long")], PER_FRAME)
    assert [v.id for v in items.videos] == ["long"]
    assert items.left_out == [("short", "has 5 frames, 3 segments of two frames need 6")]
    with pytest.raises(ValueError, match="all 1 videos are too short: 3 segments"):
        SegmentTuples([video(5)], PER_FRAME)


def test_errors():
    with pytest.raises(ValueError, match="segments must be at least 2, got 1"):
        SegmentTuples([video(30)], PER_FRAME, segments=1)
    with pytest.raises(ValueError, match="anchor must be one of ends, any, got 'middle'"):
        SegmentTuples([video(30)], PER_FRAME, anchor="middle")
    with pytest.raises(ValueError, match="no videos"):
        SegmentTuples([], PER_FRAME)
    with pytest.raises(ValueError, match="per_clip must be true for clips of several frames"):
        TwoViews([video(30)], 8, PER_FRAME)


def test_batches_hold_the_frames_that_their_steps_name(tmp_path):
    paths = [tmp_path / f"{name}.mp4" for name in "ab"]
    for path, frames in zip(paths, (20, 31), strict=True):
        encode(path, frames)
    videos = [probe(path) for path in paths]
    items = SegmentTuples(videos, Augmentation(size=16, per_clip=False))
    loader = ClipLoader(items, 2, engine=PyAVEngine(16))
    (batch,) = loader
    assert batch["frames"].shape == (2, 7, 1, 3, 16, 16)
    for key in ("steps", "valid", "times"):
        assert batch[key].shape == (2, 7, 1), key
    assert batch["valid"].all()
    assert batch["lengths"].tolist() == [[1] * 7] * 2
    for item, frames, steps in zip(
        loader.items_of(0), batch["frames"], batch["steps"], strict=True
    ):
        (reading,) = item.readings
        for clip, made, step in zip(reading.clips, frames, steps, strict=True):
            decoded = read_frames(reading.path, step.tolist())
            box = dict(zip(("top", "left", "height", "width"), box_of(clip, reading), strict=True))
            assert torch.equal(made, apply_draw(decoded, replace(clip.draw, **box), 16))
    again = ClipLoader(items, 2, engine=PyAVEngine(16, workers=1))
    assert torch.equal(next(again.stream(1))["frames"], batch["frames"])


def test_dali_reads_them_like_pyav(tmp_path):
    pytest.importorskip("nvidia.dali", reason='needs DALI: pip install "fastseq[dali]"')
    from fastseq.video.engines.dali import unsupported

    path = tmp_path / "a.mp4"
    encode(path, 30)
    still = Augmentation(size=16, jitter=0, grayscale=0, blur=0, per_clip=False)
    videos = [probe(path)]
    if (why := unsupported(videos[0], "cpu", dali_version())) is not None:
        pytest.skip(f"DALI {dali_version()} does not read H.264 on the CPU: {why}")
    items = SegmentTuples(videos, still)
    batches = {}
    for name in ("dali-cpu", "pyav"):
        engine, _ = open_engine(name, videos, 16)
        batches[name] = next(ClipLoader(items, 1, engine=engine).stream(1))
        engine.close()
    assert torch.equal(batches["dali-cpu"]["steps"], batches["pyav"]["steps"])
    gap = (batches["dali-cpu"]["frames"].int() - batches["pyav"]["frames"].int()).abs()
    assert gap.float().mean() < 3
