"""FineGym's annotation file: the events of each video and the times of their elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.threads import in_threads
from training.datasets.parse import read_json, several
from training.datasets.segments import Length, exact_length, header_length

_EXAMPLE = (
    '{video: {"E_start_end": {"event": ..., "timestamps": [[start, stop]], "segments": '
    '{"A_start_end": {"timestamps": [[start, stop], ...]}}}}}'
)


@dataclass(frozen=True)
class Event:
    """An event of a video.

    Attributes:
        video: the video's id.
        cut: (start, stop) in seconds of the video.
        segments: id of an element -> (start, stop) of its stages in seconds of the event.
    """

    video: str
    cut: tuple[float, float]
    segments: dict[str, list[tuple[float, float]]]


def read_events(path: Path) -> dict[str, Event]:
    """Id of an event, such as A0xAXXysHUo_E_000018_000023, -> the event.

    Raises UserError that names every event or element whose times are wrong.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise several(path, [f"got {_shown(content)}, expected {_EXAMPLE}"])
    events, problems = {}, []
    for video, parts in content.items():
        if not isinstance(parts, dict):
            problems.append(f"{video}: got {_shown(parts)}, expected {_EXAMPLE}")
            continue
        for name, event in parts.items():
            where = f"{video}, {name}"
            if not isinstance(event, dict):
                problems.append(f"{where}: got {_shown(event)}, expected {_EXAMPLE}")
                continue
            elements = event.get("segments") or {}
            if not isinstance(elements, dict):
                problems.append(f"{where}: segments are {_shown(elements)}, expected {_EXAMPLE}")
                continue
            cut = _times(where, event, "[[start, stop]]", problems)
            segments = {
                key: _times(f"{where}, {key}", one, "[[start, stop], ...]", problems)
                for key, one in elements.items()
            }
            if cut:
                events[f"{video}_{name}"] = Event(video, cut[0], segments)
    if problems:
        raise several(path, problems)
    return events


def _times(where: str, one: Any, expected: str, problems: list[str]) -> list[tuple[float, float]]:
    """The timestamps of an event or element in seconds; a wrong one is added to the problems."""
    times = one.get("timestamps") if isinstance(one, dict) else None
    pairs = times if isinstance(times, list) else []
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        got = "missing" if times is None else _shown(times)
        problems.append(f"{where}: timestamps are {got}, expected {expected}")
        return []
    return [(float(start), float(stop)) for start, stop in pairs]


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(time) in (int, float) and math.isfinite(time) for time in pair)
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class VideoEnds:
    """The ends of videos, by their headers.

    The whole file is read only where the header states that something lies past the end.
    """

    def __init__(self, files: Mapping[str, Path]):
        """Read the headers of the files, name -> file, with a bar."""
        self._files = files
        found = in_threads(header_length, files.values(), "reading lengths", bool(files))
        self._lengths: dict[str, Length | None] = dict(zip(files, found, strict=True))
        self._exact: set[str] = set()

    def length(self, name: str, time: float) -> Length | None:
        """The length of a video, which is exact if `time` in seconds lies past the end; or None."""
        length = self._lengths[name]
        if length is not None and time > length.seconds and name not in self._exact:
            self._exact.add(name)
            length = self._lengths[name] = exact_length(self._files[name])
        return length
