"""Seconds and segments of a labels file as the frames of one video."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from training.data.label_values import in_seconds, in_unit

UNLABELLED = -1
_TOLERANCE = 1e-3  # frames: 2.4 s is frame 60 at 25 frames per second
_SLACK = 1.0  # frames behind the end: annotations round the duration
_SHOWN = 5


class Timed(Protocol):
    """What has frames: `fastseq.video.VideoInfo` and `VideoRecord`, which have ``times`` too."""

    frames: int
    fps: float


class Clock:
    """The times of a video's frames in seconds since the first one.

    Attributes:
        frames, fps: of the video.
        times: float64 (frames,); None = k / fps.
        end: the end of the last frame.
    """

    def __init__(self, info: Timed):
        self.frames, self.fps = info.frames, info.fps
        self.times = getattr(info, "times", None)
        if self.times is None or not self.frames:
            self.end = self.frames / self.fps
        else:
            self.end = float(self.times[-1]) + 1 / self.fps

    def time(self, frame: int) -> float:
        return frame / self.fps if self.times is None else float(self.times[frame])

    def first(self, seconds: float) -> int:
        """The first frame whose time is ``seconds`` or later, with a tolerance of 0.001 frame.

        Returns the number of frames for a time after the last frame and up to one frame behind the
        end; larger numbers mean later times.
        """
        if self.times is None:
            found = math.ceil(seconds * self.fps - _TOLERANCE)
        else:
            found = int(np.searchsorted(self.times, seconds - _TOLERANCE / self.fps, side="left"))
        return max(found, 0) if found < self.frames else self.frames + self._past(seconds)

    def last(self, seconds: float) -> int:
        """The last frame whose time is ``seconds`` or earlier, with a tolerance of 0.001 frame.

        Returns -1 for a time before the first frame, and at least the number of frames for a time
        more than one frame behind the end.
        """
        if self.times is None:
            found = math.floor(seconds * self.fps + _TOLERANCE)
        else:
            late = seconds + _TOLERANCE / self.fps
            found = int(np.searchsorted(self.times, late, side="right")) - 1
        return max(found, -1) if found < self.frames - 1 else self.frames - 1 + self._past(seconds)

    def _past(self, seconds: float) -> int:
        """Frames by which a time lies behind the end, 0 up to _SLACK."""
        frames = (seconds - self.end) * self.fps
        return 0 if frames <= _SLACK + _TOLERANCE else math.ceil(frames)

    def words(self, seconds: bool) -> str:
        """The end, as messages show it."""
        return f"{self.end:.4g} s" if seconds else f"{self.frames}"

    def around(self, frame: int) -> str:
        """The times of a frame and of the one before it."""
        near = [k for k in (frame - 1, frame) if 0 <= k < self.frames]
        return "the nearest frames are " + " and ".join(
            f"{k} at {self.time(k):.4g} s" for k in near
        )


def in_frames(entry: Mapping[str, Any], info: Timed) -> dict[str, Any]:
    """A copy of a valid entry with frame numbers in place of seconds, and without "unit".

    With times t_k of the frames (``info.times``, else k / fps):

    - boundaries, the ends of segments, unlabelled_from: the first frame k with t_k >= the time
    - trim: the first frame with t_k >= its first time, the last one with t_k <= its second
    - the offset of sync: offset * fps, rounded to the nearest whole frame

    An entry in frames keeps its numbers. Times more than one frame behind the end become numbers
    past the last frame, which `phases_of` and `footage_of` report.

    Raises:
        ValueError: a segment, trim or the phase between two boundaries contains no frame; equal
            boundaries are right, for a phase that the video skips.
    """
    made = {key: value for key, value in entry.items() if key != "unit"}
    if not in_seconds(entry):
        return made
    clock = Clock(info)
    problems: list[str] = []
    made |= _part_in_frames(entry, clock, problems)
    if "labels" in entry:
        made["labels"] = {
            name: {**part, **_part_in_frames(part, clock, problems)}
            for name, part in entry["labels"].items()
        }
    if "unlabelled_from" in entry:
        made["unlabelled_from"] = clock.first(entry["unlabelled_from"])
    made |= _footage_in_frames(entry, clock, problems)
    if problems:
        raise ValueError(joined(problems))
    return made


def footage_in_frames(entry: Mapping[str, Any], info: Timed) -> dict[str, Any]:
    """The "trim" and "sync" of a valid entry in frames, see `in_frames`; the rest is not checked.

    Raises:
        ValueError: trim contains no frame.
    """
    if not in_seconds(entry):
        return {key: entry[key] for key in ("trim", "sync") if key in entry}
    problems: list[str] = []
    made = _footage_in_frames(entry, Clock(info), problems)
    if problems:
        raise ValueError(joined(problems))
    return made


def joined(problems: Sequence[str]) -> str:
    """The problems of one video in one line; the first ones, and the number of the others."""
    more = [f"{len(problems) - _SHOWN} more like these"] * (len(problems) > _SHOWN)
    return "; and ".join([*problems[:_SHOWN], *more])


def _footage_in_frames(
    entry: Mapping[str, Any], clock: Clock, problems: list[str]
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if "trim" in entry:
        first, last = trim_in_frames(entry, clock)
        if first > last:
            problems.append(f"trim {[*entry['trim']]} contains no frame: {clock.around(first)}")
        made["trim"] = [first, last]
    if "sync" in entry:
        made["sync"] = entry["sync"]
        if "offset" in entry["sync"]:
            made["sync"] = entry["sync"] | {"offset": round(entry["sync"]["offset"] * clock.fps)}
    return made


def trim_in_frames(entry: Mapping[str, Any], clock: Clock) -> tuple[int, int]:
    """The first and the last usable frame; the first one is the larger if there is no frame."""
    first, last = entry["trim"]
    return (clock.first(first), clock.last(last)) if in_seconds(entry) else (first, last)


def _part_in_frames(
    part: Mapping[str, Any], clock: Clock, problems: list[str], names: Sequence[str] = ()
) -> dict[str, Any]:
    """Boundaries and segments in frames; those without a frame become ``problems``."""
    made: dict[str, Any] = {}
    if "boundaries" in part:
        made["boundaries"] = [clock.first(time) for time in part["boundaries"]]
        problems += _without_frames(part["boundaries"], made["boundaries"], clock, names)
    if "segments" in part:
        made["segments"] = [_segment(segment, clock, problems) for segment in part["segments"]]
    return made


def _without_frames(
    times: Sequence[float], frames: Sequence[int], clock: Clock, names: Sequence[str]
) -> list[str]:
    """Messages about phases that begin before they end, but not at two frames."""
    problems = []
    pairs = zip(itertools.pairwise(times), itertools.pairwise(frames), strict=True)
    for phase, ((start, stop), (first, last)) in enumerate(pairs, 1):
        if first == last < clock.frames and (stop - start) * clock.fps > _TOLERANCE:
            name = f" ({names[phase]})" if phase < len(names) else ""
            problems.append(
                f"phase {phase}{name} has no frame: it begins at {start} s and ends at {stop} s, "
                f"and {clock.around(first)}; move a boundary, or write both as the same number if "
                "the video skips this phase"
            )
    return problems


def _segment(segment: Sequence[Any], clock: Clock, problems: list[str]) -> list[Any]:
    start, stop = clock.first(segment[0]), clock.first(segment[1])
    if start >= stop and start < clock.frames:
        problems.append(f"segment {[*segment]} contains no frame: {clock.around(start)}; remove it")
    return [start, max(stop, start + 1), segment[2]]


def frame_phases(
    part: Mapping[str, Any], entry: Mapping[str, Any], names: Sequence[str], clock: Clock
) -> tuple[np.ndarray, str]:
    """int64 (frames,): the phase of each frame, -1 = unlabelled, and what does not fit.

    Args:
        part: the entry, or its part of one class set, with boundaries, segments or phases.
        entry: the whole entry.
        names: names of the action's phases.
    Raises:
        ValueError: see `in_frames`; the message has the other problems too.
    """
    count, seconds = clock.frames, in_seconds(entry)
    empty: list[str] = []
    fitted = {**part, **_part_in_frames(part, clock, empty, names)} if seconds else part
    late = []
    if "boundaries" in fitted:
        boundaries = [min(boundary, count + 1) for boundary in fitted["boundaries"]]
        for given, boundary in zip(part["boundaries"], boundaries, strict=True):
            if boundary > count:
                late.append(
                    _past_the_end("boundary", given, seconds, clock)
                    + f"; a phase that is never reached starts at {clock.words(seconds)}"
                )
        values = np.searchsorted(boundaries, np.arange(count), side="right")
    elif "segments" in fitted:
        values = np.full(count, UNLABELLED)
        for given, (start, stop, phase) in zip(part["segments"], fitted["segments"], strict=True):
            if stop > count:
                late.append(
                    _past_the_end(f"the stop of segment {[*given]},", given[1], seconds, clock)
                    + f"; a segment stops at {clock.words(seconds)} at the latest"
                )
            values[start:stop] = names.index(phase) if isinstance(phase, str) else phase
    else:
        phases = fitted["phases"]
        if len(phases) != count:
            late.append(
                f"{len(phases)} phases for {count} frames; write one per presented frame, -1 "
                "for unlabelled frames"
            )
        values = np.full(count, UNLABELLED)
        values[: len(phases)] = phases[:count]
    values = np.asarray(values, dtype=np.int64)
    if "unlabelled_from" in entry:
        given = entry["unlabelled_from"]
        end = clock.first(given) if seconds else given
        if end > count:
            late.append(
                _past_the_end("unlabelled_from", given, seconds, clock)
                + "; remove it if all frames have labels"
            )
        values[end:] = UNLABELLED
    if empty:
        raise ValueError(joined([*empty, *late]))
    return values, joined(late)


def _past_the_end(what: str, time: float, seconds: bool, clock: Clock) -> str:
    end = f", which end at {clock.words(seconds)}" if seconds else ""
    return f"{what} {in_unit(time, seconds)} lies past the video's {clock.frames} frames{end}"
