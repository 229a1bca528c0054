"""Which frames of a file are sound: found by decoding all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastseq.video.gaps import gaps_of
from fastseq.video.source import open_video
from fastseq.video.stretch import Stretch, counted
from fastseq.video.timeline import Deadline, Scan, Timeline

_SHOWN = 5


@dataclass
class Judged:
    """The result of decoding a file.

    Attributes:
        timeline: timeline up to the last sound frame; None if frames come in another order.
        frames: one more than the number of the last sound frame.
        gaps: frames before it that are not sound.
        note: what is damaged; empty if nothing is.
        first: the first frame, None if there is none.
        interlaced: whether any frame is interlaced.
        times: seconds of the decoded frames, if there is no timeline.
    """

    timeline: Timeline | None
    frames: int = 0
    gaps: tuple[tuple[int, int], ...] = ()
    note: str = ""
    first: Any = None
    interlaced: bool = False
    times: list[float] = field(default_factory=list)


def judge(path: str, found: Scan, deadline: Deadline, whole: bool) -> Judged:
    """Decode a file, or only its first frame if that is the frame that the timeline promises."""
    timeline = found.timeline
    with open_video(path, deadline) as (container, stream):
        stretch = Stretch(container, stream, deadline)
        if timeline is None:
            return _without_timeline(stretch)
        if not whole:
            frame = next(iter(stretch), None)
            if (
                frame is not None
                and frame.pts == timeline.pts[0]
                and not stretch.damaged
                and not frame.interlaced_frame
            ):
                return Judged(timeline, len(timeline.pts), first=frame)
    with open_video(path, deadline) as (container, stream):
        stretch = Stretch(container, stream, deadline)
        out, stamps, begun = Judged(timeline), [], False
        for frame in stretch:
            begun = begun or stretch.begins_with(frame)
            if not begun:
                continue
            out.first = out.first or frame
            out.interlaced = out.interlaced or frame.interlaced_frame
            stamps.append(frame.pts)
    known = [stamp for stamp in stamps if stamp is not None]
    shown = not stretch.damaged and len(known) == len(stamps) == len(timeline.pts)
    # Frames in another order than the timeline; or a file cut within a group, without its start.
    late = not found.begins and not stretch.damaged and known[:1] > [timeline.pts[0]]
    if out.interlaced or late or (shown and known != sorted(known)):
        with open_video(path, deadline) as (container, stream):
            return _without_timeline(Stretch(container, stream, deadline))
    missing = timeline.pts[~np.isin(timeline.pts, known)]
    damaged = stretch.damaged | set(missing.tolist())
    sound = ~timeline.spoilt(damaged) if damaged else np.ones(len(timeline.pts), dtype=bool)
    _fill_in(out, sound, stretch.reason or "the decoder does not return them")
    out.timeline = timeline.until(out.frames)
    return out


def _without_timeline(stretch: Stretch) -> Judged:
    out, sound = Judged(None), []
    for _, frame, good in counted(stretch):
        out.first = out.first or frame
        out.interlaced = out.interlaced or frame.interlaced_frame
        sound.append(good)
        if frame.time is not None:
            out.times.append(frame.time)
    _fill_in(out, np.array(sound, dtype=bool), stretch.reason)
    if stretch.stopped:
        stops = f"decoding stops after {len(sound)} frames ({stretch.reason})"
        out.note = "; ".join(part for part in (out.note, stops) if part)
    del out.times[out.frames :]
    return out


def _fill_in(out: Judged, sound: np.ndarray, reason: str) -> None:
    good = np.flatnonzero(sound)
    out.frames = int(good[-1]) + 1 if good.size else 0
    if not good.size:
        out.first = None
    out.gaps = gaps_of(np.flatnonzero(~sound[: out.frames]))
    ranges = gaps_of(np.flatnonzero(~sound))
    if ranges:
        shown = [f"{a} to {b - 1}" if b - a > 1 else f"{a}" for a, b in ranges[:_SHOWN]]
        more = f" and {len(ranges) - _SHOWN} more ranges" if len(ranges) > _SHOWN else ""
        what = "frame {} is" if len(shown) == 1 and "to" not in shown[0] else "frames {} are"
        out.note = f"{what.format(', '.join(shown) + more)} damaged ({reason})"
