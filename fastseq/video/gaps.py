"""Sound frames of a damaged video, and its gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Gaps = Sequence[tuple[int, int]]  # ranges (first, stop), ascending


def sound_frames(frames: int, gaps: Gaps = ()) -> np.ndarray:
    """int64: the numbers 0 to `frames` - 1 that lie in no gap, ascending."""
    sound = np.ones(frames, dtype=bool)
    for first, stop in gaps:
        sound[first:stop] = False
    return np.flatnonzero(sound)


def frames_of(video: Any) -> np.ndarray:
    """`sound_frames` of a `fastseq.video.items.Video`; without `gaps` all its frames are sound."""
    return sound_frames(video.frames, getattr(video, "gaps", ()))


def gaps_of(missing: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ranges (first, stop) of ascending frame numbers."""
    numbers = np.fromiter(missing, dtype=np.int64)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return tuple((int(run[0]), int(run[-1]) + 1) for run in runs if run.size)
