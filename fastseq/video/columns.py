"""Properties of many videos as arrays.

A list of videos is read video by video. A lazy sequence is never walked: it has methods `column`
and `take`, and makes a video only when that is needed. Items and loaders support both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np

from fastseq.video.gaps import frames_of

_NUMBERS = {
    "frames": np.int64,
    "fps": np.float64,
    "sound": np.int64,
    "source": np.int64,
    "shard": np.int64,
}
_DEFAULTS = {"source": 0, "shard": -1}


def column(videos: Sequence[Any], name: str) -> np.ndarray:
    """One property of every video, (len(videos),).

    Args:
        videos: a list of objects like `fastseq.video.items.Video`, or a lazy sequence, whose method
            `column` returns the array.
        name: "frames", "source" (number of the folder, default 0), "shard" (number of the tar file,
            -1 = none) or "sound" (number of frames that lie in no gap): int64. "fps": float64.
            "id", "path", "action": arrays of str objects. A lazy sequence also has "special", bool:
            see `special`.

    Example:
        >>> from fastseq.video import VideoInfo
        >>> video = VideoInfo("a.mp4", 40, 32, 24, 0, 25.0, "h264", gaps=((3, 5),))
        >>> column([video, video], "frames").tolist(), column([video, video], "sound").tolist()
        ([40, 40], [38, 38])
    """
    if is_lazy(videos):
        return videos.column(name)  # type: ignore[attr-defined]
    if name == "sound":
        values = (_sound(video) for video in videos)
    elif name in _DEFAULTS:
        values = (getattr(video, name, _DEFAULTS[name]) for video in videos)
    else:
        values = (getattr(video, name) for video in videos)
    return np.fromiter(values, _NUMBERS.get(name, object), len(videos))


def special(videos: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """(position, video) of those that may have what most lack: gaps, crop, sync, note, slow access.

    These are all videos of a list, and those of the column "special" of a lazy sequence.
    """
    if not is_lazy(videos):
        yield from enumerate(videos)
        return
    for position in np.flatnonzero(column(videos, "special")).tolist():
        yield position, videos[position]


def is_lazy(videos: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a sequence has a method `column`."""
    return callable(getattr(videos, "column", None))


def take(videos: Sequence[Any], positions: np.ndarray) -> Sequence[Any]:
    """The videos at these positions: ``videos.take(positions)`` if there is one, else a list."""
    if is_lazy(videos):
        return videos.take(positions)  # type: ignore[attr-defined]
    return [videos[position] for position in positions.tolist()]


def chosen(videos: Sequence[Any], kept: np.ndarray) -> Sequence[Any]:
    """The videos with True in `kept`, bool (videos,); the sequence itself if these are all."""
    return videos if kept.all() else take(videos, np.flatnonzero(kept))


def values_of(videos: Sequence[Any], wanted: np.ndarray, *names: str) -> Iterator[tuple[Any, ...]]:
    """These columns of the videos with True in `wanted`, bool (videos,), video by video."""
    if not wanted.any():
        return iter(())
    some = take(videos, np.flatnonzero(wanted))
    return zip(*(column(some, name).tolist() for name in names), strict=True)


def having(videos: Sequence[Any], name: str, values: Collection[Any]) -> np.ndarray:
    """bool (videos,): whether the property of a video is one of `values`."""
    if not values:
        return np.zeros(len(videos), dtype=bool)
    found = (value in values for value in column(videos, name).tolist())
    return np.fromiter(found, bool, len(videos))


def numbered(values: np.ndarray) -> np.ndarray:
    """int64: the number of each value, in the order in which the values first occur."""
    numbers: dict[Any, int] = {}
    each = (numbers.setdefault(value, len(numbers)) for value in values.tolist())
    return np.fromiter(each, np.int64, len(values))


def _sound(video: Any) -> int:
    return len(frames_of(video)) if getattr(video, "gaps", ()) else video.frames
