"""What a batch of clips is made of, before any engine reads a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from fastseq.video.augment import ClipDraw


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one video and what happens to them.

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
        path: the file.
        height, width: of its frames as they are shown, after rotation, in pixels.
        side: short side that frames are scaled to before they are cropped. (An engine may crop
            and scale at once.)
        clips: all with the same number of frames.
    """

    path: str
    height: int
    width: int
    side: int
    clips: tuple[Clip, ...]


Source = Callable[[int], Sequence[Reading]]  # the readings of batch k, always the same ones


class Engine(Protocol):
    """Something that turns readings into pixels."""

    name: str

    def batches(self, source: Source, start: int, stop: int) -> object:
        """Yield, for batches start, start + 1, ..., stop - 1, a uint8 tensor.

        Its shape is (readings, clips, T, 3, size, size). Batches may be worked on ahead.

        Raises VideoError, with the path, for a file that cannot be read as asked; the iterator has
        ended then, and another call continues at any batch.
        """
        ...

    def close(self) -> None:
        """End processes and free memory. Safe to call twice."""
        ...


def shape_of(readings: Sequence[Reading], size: int) -> torch.Size:
    """Shape of the tensor that an engine makes of a batch."""
    first = readings[0]
    return torch.Size((len(readings), len(first.clips), len(first.clips[0].frames), 3, size, size))
