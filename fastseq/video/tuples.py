"""Tuples of single frames from the segments of a video (VCLR)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fastseq.video.arguments import as_int
from fastseq.video.augment import Augmentation, ClipDraw, draw_clip
from fastseq.video.columns import chosen, column, values_of
from fastseq.video.gaps import frames_of
from fastseq.video.items import Item, Items, Video, times_of
from fastseq.video.readings import Clip, area_of, reading_of

ANCHORS = ("ends", "any")


class SegmentTuples(Items):
    """Two tuples of single frames of one video, and one of these frames again (VCLR, 3.2).

    The video is cut into S segments, whose lengths differ by at most one frame. Two different
    frames of each are drawn: one for the anchor tuple q, one for the positive tuple k. One frame of
    q is the frame-level anchor and is included a second time with a new augmentation. These are
    2 S + 1 clips of one frame each: q, k, the anchor again. Either tuple is shuffled with
    probability 1/2.

    In a batch, `steps` (N, 2 S + 1, 1) has the information that a loss needs: a tuple is shuffled
    where they do not ascend (`order_labels`), and the anchor is the frame of q with the number of
    the last clip (`anchors`).

    Args:
        videos: the videos to draw from; those with fewer than 2 S frames are left out.
        augmentation: with `per_clip=False` every frame has a separate draw (VCLR's released code),
            otherwise each tuple has one; the repeated anchor always has a separate draw.
        segments: S. Default 3: VCLR, section 4.2.
        anchor: segment of the frame-level anchor: "ends", the first or the last segment (released
            code), or "any" (the paper does not restrict it).
        reversal: whether a shuffled tuple may be in exactly reversed order. The released code never
            reverses; the paper does not state it. Two frames have no other order.
        side: short side of the frame in whose pixels crops are drawn, see `decode_side`.

    Attributes:
        left_out: (id, reason) of videos that are too short.

    Raises:
        ValueError: an option out of its range, or no video that is long enough.

    Example:
        >>> from fastseq.video import Augmentation, ClipLoader, SegmentTuples, open_engine
        >>> items = SegmentTuples(videos, Augmentation(per_clip=False))  # doctest: +SKIP
        >>> engine = open_engine("auto", videos, 224)  # doctest: +SKIP
        >>> for batch in ClipLoader(items, 32, engine=engine):  # doctest: +SKIP
        ...     batch["frames"].shape, order_labels(batch["steps"]).shape
        (torch.Size([32, 7, 1, 3, 224, 224]), torch.Size([32]))
    """

    def __init__(
        self,
        videos: Sequence[Video],
        augmentation: Augmentation,
        *,
        segments: int = 3,
        anchor: str = "ends",
        reversal: bool = False,
        side: int | None = None,
    ):
        segments = as_int("segments", segments, 2)
        if anchor not in ANCHORS:
            raise ValueError(f"anchor must be one of {', '.join(ANCHORS)}, got {anchor!r}")
        self.segments, self.anchor, self.reversal = segments, anchor, reversal
        super().__init__(videos, augmentation, side)

    def _usable(self, videos: Sequence[Video]) -> Sequence[Video]:
        least = 2 * self.segments
        needed = f"{self.segments} segments of two frames need {least}"
        counts = column(videos, "sound")
        short = counts < least
        self.left_out = [
            (name, f"has {count} {'sound ' * (count < frames)}frames, {needed}")
            for name, frames, count in values_of(videos, short, "id", "frames", "sound")
        ]
        if short.all():
            raise ValueError(f"all {len(videos)} videos are too short: {needed} frames")
        return chosen(videos, ~short)

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item:
        video = self.videos[position]
        sound = frames_of(video)
        tuples = sound[_two_of_each(len(sound), self.segments, generator)]
        ends = (0, self.segments - 1)
        anchor = generator.choice(ends if self.anchor == "ends" else self.segments)
        again = tuples[0, anchor]
        q, k = (self._in_order(frames, generator) for frames in tuples)
        steps = np.concatenate([q, k, [again]])[:, None]
        draws = self._draws(video, generator)
        clips = tuple(Clip(frames, draw) for frames, draw in zip(steps, draws, strict=True))
        count = len(clips)
        return Item(
            video.id,
            video.action,
            (reading_of(video, self.side, clips),),
            steps,
            np.ones((count, 1), dtype=bool),
            np.full(count, video.frames),
            np.full(count, video.fps, dtype=np.float64),
            times_of(video, steps),
        )

    def _in_order(self, frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The frames unchanged, or shuffled with probability 1/2."""
        if generator.random() < 0.5:
            return frames
        while True:
            order = generator.permutation(len(frames))
            ascends = (np.diff(order) > 0).all()
            descends = (np.diff(order) < 0).all() and not self.reversal and len(order) > 2
            if not (ascends or descends):
                return frames[order]

    def _draws(self, video: Video, generator: np.random.Generator) -> list[ClipDraw]:
        area = area_of(video, self.side)
        once = self.augmentation.per_clip
        count = 3 if once else 2 * self.segments + 1
        draws = [
            draw_clip(area.height, area.width, self.augmentation, generator) for _ in range(count)
        ]
        if once:
            q, k, again = draws
            draws = [*[q] * self.segments, *[k] * self.segments, again]
        return draws


def _two_of_each(num_frames: int, segments: int, generator: np.random.Generator) -> np.ndarray:
    """int64 (2, segments): two different frames of each segment; row 0 has the first draws."""
    edges = np.arange(segments + 1) * num_frames // segments
    lengths = np.diff(edges)
    first = generator.integers(0, lengths)
    second = (first + generator.integers(1, lengths)) % lengths
    return np.stack([first, second]) + edges[:-1]


def anchors(steps: Tensor) -> Tensor:
    """Place of the frame-level anchor in q: (N,) from a batch's `steps` (N, 2 S + 1, 1)."""
    q = steps[:, : steps.shape[1] // 2, 0]
    return (q == steps[:, -1]).long().argmax(1)


def order_labels(steps: Tensor) -> Tensor:
    """(N,) from a batch's `steps`: 0 both tuples in order, 1 q shuffled, 2 k shuffled, 3 both."""
    count = steps.shape[1] // 2
    q, k = steps[:, :count, 0], steps[:, count:-1, 0]
    q_shuffled, k_shuffled = ((x[:, 1:] < x[:, :-1]).any(1).long() for x in (q, k))
    return q_shuffled + 2 * k_shuffled
