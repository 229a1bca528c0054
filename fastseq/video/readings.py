"""The contents of a batch of clips, before any engine reads a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from fastseq.video._av import VideoError
from fastseq.video.augment import ClipDraw
from fastseq.video.decode import Area, scaled_area, scaled_size


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one video and their augmentation.

    Attributes:
        frames: int64 (T,), frame numbers in the video, in any order, repeats allowed.
        draw: crop, flip, colour and blur, the same for every frame; the crop is in pixels of the
            frame scaled to the `side` of its `Reading`.
    """

    frames: np.ndarray
    draw: ClipDraw


@dataclass(frozen=True, eq=False)
class Reading:
    """One file, opened once, and the clips made of it.

    Attributes:
        path: path of the file.
        height, width: size of its frames as displayed, after rotation, in pixels.
        side: short side of the scaled frame in whose pixels crops are drawn. Only frames in memory
            have this size; engines crop the full frame, see `box_of`.
        clips: clips, all with the same number of frames.
        kept: (top, left), in the scaled frame, of the part that is kept in memory: that of the
            video's `crop`.
    """

    path: str
    height: int
    width: int
    side: int
    clips: tuple[Clip, ...]
    kept: tuple[int, int] = (0, 0)


Source = Callable[[int], Sequence[Reading]]  # the readings of batch k, the same in every call


class Engine(Protocol):
    """Turns readings into pixels."""

    name: str
    size: int  # side of the output in pixels

    def batches(self, source: Source, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Yield, for batches start, start + 1, ..., stop - 1, a uint8 tensor.

        Its shape is (readings, clips, T, 3, size, size). Batches may be prepared ahead.

        Raises VideoError, with the path, for a file that cannot be read as requested. The iterator
        has then ended, and another call continues at any batch.
        """
        ...

    def close(self) -> None:
        """End processes and free memory. Safe to call twice."""
        ...


def area_of(video: Any, side: int) -> Area:
    """The used area of a `fastseq.video.items.Video`: its crop, with a shorter side of `side`.

    Clips are drawn for the area's height and width.
    """
    return scaled_area(video.height, video.width, side, getattr(video, "crop", None))


def reading_of(video: Any, side: int, clips: Iterable[Clip]) -> Reading:
    """Clips of one video, drawn for the height and width of its `area_of`."""
    area = area_of(video, side)
    kept = (area.top, area.left)
    if any(kept):
        clips = [replace(clip, draw=_moved(clip.draw, *kept)) for clip in clips]
    return Reading(video.path, video.height, video.width, area.side, tuple(clips), kept)


def _moved(draw: ClipDraw, down: int, right: int) -> ClipDraw:
    return replace(draw, top=draw.top + down, left=draw.left + right)


def shape_of(readings: Sequence[Reading], size: int) -> torch.Size:
    """Shape of an engine's tensor for a batch; ValueError if the clips do not form a tensor."""
    lengths = [[len(clip.frames) for clip in reading.clips] for reading in readings]
    clips = len(lengths[0]) if lengths else 0
    T = lengths[0][0] if clips else 0
    if not T or any(row != [T] * clips for row in lengths):
        raise ValueError(
            "the clips of a batch must not be empty and have the same number of frames, "
            f"got {lengths}"
        )
    return torch.Size((len(lengths), clips, T, 3, size, size))


def wanted_frames(reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """int64: ascending frame numbers that any clip needs, and (clips, T) their places in it."""
    asked = np.stack([clip.frames for clip in reading.clips])
    wanted, places = np.unique(asked, return_inverse=True)
    return wanted, places.reshape(asked.shape)


def box_of(clip: Clip, reading: Reading) -> tuple[int, int, int, int]:
    """The crop as (top, left, height, width) in whole pixels of the full upright frame."""
    draw = clip.draw
    height, width = scaled_size(reading.height, reading.width, reading.side)
    top, bottom = _rounded(draw.top, draw.height, reading.height / height, reading.height)
    left, right = _rounded(draw.left, draw.width, reading.width / width, reading.width)
    return top, left, bottom - top, right - left


def _rounded(start: int, length: int, scale: float, most: int) -> tuple[int, int]:
    first, last = round(start * scale), round((start + length) * scale)
    first = min(first, most - 1)
    return first, min(max(last, first + 1), most)


def check_size(reading: Reading, height: int, width: int) -> None:
    """VideoError unless the file's frames have the size that the clips were drawn for."""
    if (reading.height, reading.width) != (height, width):
        raise VideoError(
            reading.path,
            f"frames are {width} x {height}, but were expected as {reading.width} x "
            f"{reading.height}; call `fastseq.video.probe(path)` again",
        )
