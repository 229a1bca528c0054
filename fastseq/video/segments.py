"""Clips of the segments of a video, as temporal segment networks sample them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastseq.video.arguments import as_int
from fastseq.video.augment import Augmentation, draw_clip
from fastseq.video.columns import chosen, column, values_of
from fastseq.video.gaps import frames_of
from fastseq.video.items import Item, Items, Video, times_of
from fastseq.video.readings import Clip, area_of, reading_of


def clip_span(clip_frames: int, stride: int) -> int:
    """Number of frames from the first to the last frame of a clip, both included."""
    return (clip_frames - 1) * stride + 1


def segment_starts(
    num_frames: int, segments: int, span: int, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """First possible start of a clip in each segment, and the number of possible starts.

    The video is cut into segments whose lengths differ by at most one frame, and clips that span
    ``span`` frames lie inside them. If a segment has fewer than ``least`` possible starts, the
    starts are cut into segments instead of the frames: clips may then reach into the next segment,
    and their starts still ascend from segment to segment. If a number is below ``least`` even so,
    the video is too short.
    """
    edges = np.arange(segments + 1) * num_frames // segments
    counts = np.diff(edges) - span + 1
    if (counts < least).any():
        edges = np.arange(segments + 1) * max(num_frames - span + 1, 0) // segments
        counts = np.diff(edges)
    return edges[:-1], counts


def frames_from(starts: np.ndarray, clip_frames: int, stride: int) -> np.ndarray:
    """int64 (..., L): the places of the frames of the clips that start at ``starts`` (...)."""
    return starts[..., None] + np.arange(clip_frames) * stride


def long_enough(
    videos: Sequence[Video], least: int, needed: str
) -> tuple[Sequence[Video], list[tuple[str, str]]]:
    """The videos with ``least`` sound frames, and (id, reason) of the others.

    Raises ValueError if all are too short. ``needed``: what needs so many frames, for the texts.
    """
    counts = column(videos, "sound")
    short = counts < least
    left_out = [
        (name, f"has {count} {'sound ' * (count < frames)}frames, {needed}")
        for name, frames, count in values_of(videos, short, "id", "frames", "sound")
    ]
    if short.all():
        raise ValueError(f"all {len(videos)} videos are too short: {needed} frames")
    return chosen(videos, ~short), left_out


class SegmentClips(Items):
    """A clip of each segment of a video, for a classifier of its action (TSN).

    The video is cut into S segments, whose lengths differ by at most one frame. A clip of L frames
    starts at a random place of each, see `segment_starts`. All clips share one augmentation. An
    item has S clips of L frames: `frames` of a batch are (N, S, L, 3, size, size).

    A video that is shorter than a clip repeats its last frame, which `valid` marks. One with fewer
    possible starts than segments has evenly spaced clips, some of them twice. No video is left out
    because of its length.

    With clips of one frame, and with one segment, mmaction2's `SampleFrames` draws from the same
    distribution if S divides the number of frames and the stride is 1. For several clips of
    several frames it always cuts the starts into segments, not the frames. It leaves out what
    remains of the division by S, and counts a clip as L times the stride frames long.

    Args:
        videos: the videos to draw from; their `action` is the class.
        augmentation: augmentation, drawn once for each item.
        segments: S. 1: a single clip, as 3-D networks are trained.
        clip_frames: L, frames of a clip.
        stride: distance of the frames of a clip, in frames of the video.
        side: short side of the frame in whose pixels crops are drawn, see `decode_side`.

    Raises:
        ValueError: an option out of its range, or no video.

    Example:
        >>> from fastseq.video import Augmentation, ClipLoader, SegmentClips, open_engine
        >>> items = SegmentClips(videos, Augmentation(), segments=8)  # doctest: +SKIP
        >>> engine = open_engine("auto", videos, 224)  # doctest: +SKIP
        >>> for batch in ClipLoader(items, 32, engine=engine):  # doctest: +SKIP
        ...     batch["frames"].shape, batch["actions"][0]
        (torch.Size([32, 8, 1, 3, 224, 224]), 'archery')
    """

    def __init__(
        self,
        videos: Sequence[Video],
        augmentation: Augmentation,
        *,
        segments: int = 1,
        clip_frames: int = 1,
        stride: int = 1,
        side: int | None = None,
    ):
        self.segments = as_int("segments", segments, 1)
        self.clip_frames = as_int("clip_frames", clip_frames, 1)
        self.stride = as_int("stride", stride, 1)
        super().__init__(videos, augmentation, side)
        if not augmentation.per_clip:
            raise ValueError(
                f"per_clip must be true for {type(self).__name__}: the clips of a video share one "
                "draw; pass an Augmentation with per_clip=True"
            )

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item:
        video = self.videos[position]
        sound = frames_of(video)
        span = clip_span(self.clip_frames, self.stride)
        first, counts = segment_starts(len(sound), self.segments, span)
        if counts.all():
            starts = first + generator.integers(0, counts)
        else:  # evenly spaced, some of them twice
            starts = np.linspace(0, max(len(sound) - span, 0), self.segments).round().astype(int)
        places = frames_from(starts, self.clip_frames, self.stride)
        steps = sound[np.minimum(places, len(sound) - 1)]
        area = area_of(video, self.side)
        draw = draw_clip(area.height, area.width, self.augmentation, generator)
        return Item(
            video.id,
            video.action,
            (reading_of(video, self.side, [Clip(frames, draw) for frames in steps]),),
            steps,
            places < len(sound),
            np.full(self.segments, video.frames),
            np.full(self.segments, video.fps, dtype=np.float64),
            times_of(video, steps),
        )
