"""The test views of a video: clips at fixed places, each with fixed crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastseq.video import Clip, Engine, Reading, VideoError
from fastseq.video.augment import ClipDraw
from fastseq.video.gaps import frames_of
from fastseq.video.readings import Source, area_of, reading_of
from training.data.dataset import read_each

if TYPE_CHECKING:
    import torch

    from training.data.index import VideoRecord

CROPS = (1, 3, 10)


@dataclass(frozen=True)
class Views:
    """The views of a video: ``clips`` times ``crops``.

    Args:
        clips: K, number of clips.
        crops: 1: the centre. 3: both ends and the middle of the longer side. 10: the four corners
            and the centre, then the same mirrored (torchvision's TenCrop). A crop is a square of
            ``size`` pixels of the frame whose shorter side is ``side`` pixels.
        length: L, number of frames of a clip.
        stride: distance of the frames of a clip, in frames of the video.
        segments: S. If it is set, a clip consists of one frame of each of S segments (TSM), and
            ``length`` and ``stride`` are not used.
    """

    clips: int
    crops: int = 1
    length: int = 1
    stride: int = 1
    segments: int | None = None

    def frames(self, count: int) -> np.ndarray:
        """int64 (K, L): places of the frames of the clips of a video of ``count`` frames.

        Clip k starts at ``floor((k + 1/2) n / K)`` of the n possible starts (mmaction2's test mode:
        the middle of each of K equal parts). With segments, its frame of a segment is at that place
        of the segment's n frames. Places beyond the last frame are the last frame.
        """
        # Integers: the middle of a part may be a whole number.
        middles = 2 * np.arange(self.clips)[:, None] + 1
        if self.segments is None:
            starts = max(1, count - (self.length - 1) * self.stride)
            first = middles * starts // (2 * self.clips)
            places = first + np.arange(self.length) * self.stride
        else:
            before = 2 * self.clips * np.arange(self.segments)
            places = (before + middles) * count // (2 * self.clips * self.segments)
        return np.minimum(places, count - 1)

    def boxes(self, height: int, width: int, size: int) -> list[tuple[int, int, int, int, bool]]:
        """(top, left, height, width, whether it is mirrored) of each crop of a frame, in pixels.

        The square is smaller than ``size`` if the frame is.
        """
        square = min(size, height, width)
        down, right = height - square, width - square
        middle = (down // 2, right // 2)
        if self.crops == 1:
            return [(*middle, square, square, False)]
        if self.crops == 3:
            along = (0, max(down, right) // 2, max(down, right))
            places = [(middle[0], a) if width >= height else (a, middle[1]) for a in along]
            return [(*place, square, square, False) for place in places]
        corners = [(0, 0), (0, right), (down, 0), (down, right), middle]
        # Of the mirrored frame: its left corner is the right corner of the frame.
        mirrored = [(top, right - left) for top, left in corners]
        return [(*place, square, square, False) for place in corners] + [
            (*place, square, square, True) for place in mirrored
        ]

    def reading(self, record: VideoRecord, size: int, side: int) -> Reading:
        """The reading of a video: crop after crop, each with all clips as one."""
        sound = frames_of(record)
        frames = sound[self.frames(len(sound))].reshape(-1)
        area = area_of(record, side)
        clips = [
            Clip(frames, ClipDraw(*box, flip=flip, colour=(), blur_sigma=0.0))
            for *box, flip in self.boxes(area.height, area.width, size)
        ]
        return reading_of(record, side, clips)


class _OneClip:
    """An engine whose readings have one clip, which has the frames of all clips."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def batches(self, source: Source, start: int, stop: int) -> Iterator[torch.Tensor]:
        for made in self.engine.batches(source, start, stop):
            yield made.flatten(1, 2)[:, None]


def read_views(
    records: Sequence[VideoRecord], views: Views, size: int, side: int, *, engine: Engine
) -> Iterator[torch.Tensor | VideoError]:
    """The views of each video, uint8 (crops * K, L, 3, size, size), crop after crop.

    For a video that cannot be read, yields the VideoError instead.

    Args:
        size: side of the views in pixels, that of the engine.
        side: shorter side of the frame in whose pixels crops are squares of ``size``.
    """
    counts = [int(len(frames_of(record)) > 0) for record in records]
    read = read_each(
        records,
        counts,
        lambda record, _: views.reading(record, size, side),
        engine=_OneClip(engine),
    )
    for frames in read:
        if isinstance(frames, Exception):
            yield frames
        else:
            yield frames.unflatten(0, (views.crops * views.clips, -1))


def views_of(cfg: Any, clips: int | None = None, crops: int = 1) -> Views:
    """The views that a recipe with data.clips=segments is tested on.

    ``clips``: K; None: as many as in training, data.segments, or one with model.shift, whose clip
    has a frame of each segment.
    """
    data = cfg.data
    if cfg.model.shift:
        return Views(clips or 1, crops, segments=data.segments)
    return Views(clips or data.segments, crops, data.tuple_frames, data.tuple_stride)
