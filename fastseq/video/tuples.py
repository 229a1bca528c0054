"""Tuples of clips from the segments of a video (VCLR)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fastseq.video.arguments import as_int
from fastseq.video.augment import Augmentation, ClipDraw, draw_clip
from fastseq.video.gaps import frames_of
from fastseq.video.items import Item, Items, Video, times_of
from fastseq.video.readings import Clip, area_of, reading_of
from fastseq.video.segments import clip_span, frames_from, long_enough, segment_starts

ANCHORS = ("ends", "any")


class SegmentTuples(Items):
    """Two tuples of clips of one video, and one of these clips again (VCLR, sections 3.2 and 5.3).

    The video is cut into S segments, whose lengths differ by at most one frame. Two clips of L
    frames with different starts are drawn from each: one for the anchor tuple q, one for the
    positive tuple k. By default a clip is a single frame. One clip of q is the anchor and is
    included a second time with a new augmentation. These are 2 S + 1 clips: q, k, the anchor
    again. Either tuple is shuffled with probability 1/2.

    Clips lie inside their segments. If a segment has fewer than two possible clips, the starts are
    cut into segments instead of the frames, see `segment_starts`: clips of neighbouring segments
    may then overlap.

    In a batch, `steps` (N, 2 S + 1, L) has the information that a loss needs: a tuple is shuffled
    where its first frames do not ascend (`order_labels`), and the anchor is the clip of q with the
    first frame of the last clip (`anchors`).

    Args:
        videos: the videos to draw from; those with fewer than 2 S possible starts of a clip are
            left out.
        augmentation: with `per_clip=False` every clip has a separate draw (VCLR's released code),
            otherwise each tuple has one; the repeated anchor always has a separate draw. The frames
            of a clip share its draw.
        segments: S. Default 3: VCLR, section 4.2.
        anchor: segment of the anchor: "ends", the first or the last segment (released
            code), or "any" (the paper does not restrict it).
        reversal: whether a shuffled tuple may be in exactly reversed order. The released code never
            reverses; the paper does not state it. Two frames have no other order.
        side: short side of the frame in whose pixels crops are drawn, see `decode_side`.
        clip_frames: L, frames of a clip. 32 (S3D) and 5 (R3D-18) in VCLR's experiments with 3-D
            networks (A.3).
        stride: distance of the frames of a clip, in frames of the video.

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
        clip_frames: int = 1,
        stride: int = 1,
    ):
        segments = as_int("segments", segments, 2)
        self.clip_frames = as_int("clip_frames", clip_frames, 1)
        self.stride = as_int("stride", stride, 1)
        if anchor not in ANCHORS:
            raise ValueError(f"anchor must be one of {', '.join(ANCHORS)}, got {anchor!r}")
        self.segments, self.anchor, self.reversal = segments, anchor, reversal
        super().__init__(videos, augmentation, side)

    def _usable(self, videos: Sequence[Video]) -> Sequence[Video]:
        span = clip_span(self.clip_frames, self.stride)
        least = 2 * self.segments + span - 1
        what = "frames" if self.clip_frames == 1 else f"clips that span {span} frames"
        needed = f"{self.segments} segments of two {what} need {least}"
        kept, self.left_out = long_enough(videos, least, needed)
        return kept

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item:
        video = self.videos[position]
        sound = frames_of(video)
        span = clip_span(self.clip_frames, self.stride)
        starts = _two_of_each(len(sound), self.segments, span, generator)
        ends = (0, self.segments - 1)
        anchor = generator.choice(ends if self.anchor == "ends" else self.segments)
        again = starts[0, anchor]
        q, k = (self._in_order(tuple_, generator) for tuple_ in starts)
        starts = np.concatenate([q, k, [again]])
        steps = sound[frames_from(starts, self.clip_frames, self.stride)]
        draws = self._draws(video, generator)
        clips = tuple(Clip(frames, draw) for frames, draw in zip(steps, draws, strict=True))
        count = len(clips)
        return Item(
            video.id,
            video.action,
            (reading_of(video, self.side, clips),),
            steps,
            np.ones_like(steps, dtype=bool),
            np.full(count, video.frames),
            np.full(count, video.fps, dtype=np.float64),
            times_of(video, steps),
        )

    def _in_order(self, starts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The starts unchanged, or shuffled with probability 1/2."""
        if generator.random() < 0.5:
            return starts
        while True:
            order = generator.permutation(len(starts))
            ascends = (np.diff(order) > 0).all()
            descends = (np.diff(order) < 0).all() and not self.reversal and len(order) > 2
            if not (ascends or descends):
                return starts[order]

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


def _two_of_each(
    num_frames: int, segments: int, span: int, generator: np.random.Generator
) -> np.ndarray:
    """int64 (2, segments): starts of two different clips of each segment; row 0 has the first."""
    edges, counts = segment_starts(num_frames, segments, span, least=2)
    first = generator.integers(0, counts)
    second = (first + generator.integers(1, counts)) % counts
    return np.stack([first, second]) + edges


def anchors(steps: Tensor) -> Tensor:
    """Place of the anchor in q: (N,) from a batch's `steps` (N, 2 S + 1, L)."""
    q = steps[:, : steps.shape[1] // 2, 0]
    return (q == steps[:, -1, :1]).long().argmax(1)


def order_labels(steps: Tensor) -> Tensor:
    """(N,) from a batch's `steps`: 0 both tuples in order, 1 q shuffled, 2 k shuffled, 3 both."""
    count = steps.shape[1] // 2
    q, k = steps[:, :count, 0], steps[:, count:-1, 0]
    q_shuffled, k_shuffled = ((x[:, 1:] < x[:, :-1]).any(1).long() for x in (q, k))
    return q_shuffled + 2 * k_shuffled
