"""Segments that do not overlap and fit their video, whose length is read from its header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.threads import in_threads
from training.datasets.dataset import DataSet

_SHORT = "segments without a frame dropped"
_ROUNDING = 1e-3  # frames: a segment of 0.04 s has a frame at 25 frames per second


@dataclass(frozen=True)
class Length:
    """The length of a video: number of frames, and frames per second on average."""

    frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """The end of the last frame."""
        return self.frames / self.fps


def lengths_of(files: Mapping[str, Path], what: str) -> dict[str, Length]:
    """Name -> length; videos that cannot be read are left out, as `training.prepare` names them.

    mp4, mov and avi have the number of frames in their header, which takes milliseconds; other
    files are read whole, but not decoded. Shows a bar.

    Args:
        what: words beside the bar.
    """
    found = in_threads(lambda name: length_of(files[name]), files, what, True)
    return {name: length for name, length in zip(files, found, strict=True) if length is not None}


def length_of(path: Path) -> Length | None:
    """The length of a video file; None if it cannot be read. See `lengths_of`."""
    from fastseq.video import VideoError, probe
    from fastseq.video._av import require_av

    av = require_av()
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            if stream.frames > 0 and stream.duration:
                seconds = stream.duration * stream.time_base
                return Length(stream.frames, float(stream.frames / seconds))
        info = probe(path)
    except (av.error.FFmpegError, VideoError, OSError, ValueError, IndexError):
        return None
    return Length(info.frames, float(info.fps))


def header_length(path: Path) -> Length | None:
    """The length that a video's header states, also of mkv and webm; None if it states none."""
    from fastseq.video._av import require_av

    av = require_av()
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            if stream.duration:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / 1e6  # of the longest stream
            rate = float(stream.average_rate or 0)
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        return None
    return Length(round(seconds * rate), rate) if seconds > 0 and rate > 0 else None


def exact_length(path: Path) -> Length | None:
    """The length by the times of all frames, which reads the whole file but decodes nothing."""
    from fastseq.video import VideoError, probe

    try:
        info = probe(path)
    except (VideoError, OSError, ValueError):
        return None
    return Length(info.frames, info.frames / (float(info.times[-1]) + 1 / float(info.fps)))


def usable_segments(
    data_set: DataSet,
    name: str,
    segments: Iterable[tuple[float, float, Any]],
    length: Length | None,
    *,
    seconds: bool,
) -> list[list[Any]]:
    """Segments for an entry of labels.json, sorted by their start; no two overlap.

    Where two segments overlap, the frames belong to the later one in the given sequence: a segment
    inside an earlier one splits it in two. Segments are cut at the ends of the video, and what is
    shorter than a frame is dropped. What was changed is added to the data set's remarks; a stop
    less than a frame past the end is not worth one.

    Args:
        name: name of the video, for the remarks.
        segments: (start, stop, label); the stop is not included.
        length: length of the video; None if it is not known.
        seconds: the unit of the segments; otherwise frames.
    """
    frame = 1 / length.fps if length and seconds else 1 if not seconds else 0
    end = None if length is None else length.seconds if seconds else length.frames
    kept: list[tuple[float, float, Any]] = []
    changes = set()
    for start, stop, label in segments:
        first, last = max(start, 0), stop if end is None else min(stop, end)
        if start < 0 or stop - last > frame:
            changes.add("segments cut to the length of the video")
        if first >= last:
            changes.add(_SHORT)
            continue
        parts = []
        for begin, finish, other in kept:
            if begin < last and finish > first and other != label:
                changes.add("segments overlap: the later one gets the frames of both")
            if begin < first:
                parts.append((begin, min(finish, first), other))
            if finish > last:
                parts.append((max(begin, last), finish, other))
        kept = [*parts, (first, last, label)]
    usable = [one for one in kept if one[1] - one[0] >= frame * (1 - _ROUNDING)]
    if len(usable) < len(kept):
        changes.add(_SHORT)
    for change in sorted(changes):
        data_set.remark(change, name)
    return [list(one) for one in sorted(usable)]
