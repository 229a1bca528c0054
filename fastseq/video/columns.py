"""Properties of many videos as arrays.

A list of videos is read video by video. A sequence with a method ``column`` is never walked: it may
make a video when that is needed, from a database for example. Items and loaders support both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fastseq.video.gaps import frames_of

_NUMBERS = {
    "frames": np.int64,
    "fps": np.float64,
    "sound": np.int64,
    "source": np.int64,
    "shard": np.int64,
}
_DEFAULTS: dict[str, Any] = {"gaps": (), "crop": None, "sync": None, "source": 0, "shard": -1}


def column(videos: Sequence[Any], name: str) -> np.ndarray:
    """One property of every video, (len(videos),).

    It is ``videos.column(name)`` if the sequence has that method and the method does not raise
    KeyError; otherwise each video is read.

    Args:
        videos: objects like `fastseq.video.items.Video`.
        name: an attribute of the videos, or "sound", the number of frames that lie in no gap.
            "frames", "sound", "source" and "shard" are int64, "fps" is float64, all others are
            arrays of objects. Videos may lack "gaps", "crop" and "sync" (none), "source" (0: the
            first folder) and "shard" (-1: a file that is in no shard).

    Example:
        >>> from fastseq.video import VideoInfo
        >>> video = VideoInfo("a.mp4", 40, 32, 24, 0, 25.0, "h264", gaps=((3, 5),))
        >>> column([video, video], "frames").tolist(), column([video, video], "sound").tolist()
        ([40, 40], [38, 38])
    """
    if is_lazy(videos):
        try:
            return videos.column(name)  # type: ignore[attr-defined]
        except KeyError:  # the sequence has no such array
            pass
    if name == "sound":
        values = (_sound(video) for video in videos)
    elif name in _DEFAULTS:
        values = (getattr(video, name, _DEFAULTS[name]) for video in videos)
    else:
        values = (getattr(video, name) for video in videos)
    return np.fromiter(values, _NUMBERS.get(name, object), len(videos))


def is_lazy(videos: Any) -> bool:
    """Whether a sequence returns its columns itself."""
    return callable(getattr(videos, "column", None))


def take(videos: Sequence[Any], positions: np.ndarray) -> Sequence[Any]:
    """The videos at these positions: ``videos.take(positions)`` if there is one, else a list."""
    if is_lazy(videos):
        return videos.take(positions)  # type: ignore[attr-defined]
    return [videos[position] for position in positions.tolist()]


def having(videos: Sequence[Any], name: str, values: Collection[Any]) -> np.ndarray:
    """int64, ascending: positions of the videos whose property is one of `values`."""
    if not values:
        return np.zeros(0, dtype=np.int64)
    found = (value in values for value in column(videos, name).tolist())
    return np.flatnonzero(np.fromiter(found, bool, len(videos)))


def numbered(values: np.ndarray) -> np.ndarray:
    """int64: the number of each value, in the order in which the values first occur."""
    numbers: dict[Any, int] = {}
    each = (numbers.setdefault(value, len(numbers)) for value in values.tolist())
    return np.fromiter(each, np.int64, len(values))


def _sound(video: Any) -> int:
    return len(frames_of(video)) if getattr(video, "gaps", ()) else video.frames
