"""The files of a table's videos: which are missing, and rows past the end of their video."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from training.data.threads import in_threads
from training.datasets.segments import Length, exact_length, length_of


def absent(root: Path, lines: Mapping[str, int]) -> dict[str, str]:
    """The videos that are not below a folder -> "NAME (line 2; other.mp4 is there)".

    Args:
        lines: name -> line of the table where it first stands.
    """
    found, folders = {}, {}
    for name, line in lines.items():
        path = root / name
        if path.exists():
            continue
        folder = path.parent
        if folder not in folders:
            there = os.listdir(folder) if folder.is_dir() else ()
            folders[folder] = {other.casefold(): other for other in there}
        other = folders[folder].get(path.name.casefold())
        hint = f"; {other} is there" if other else ""
        found[name] = f"{name} (line {line}{hint})"
    return found


def past_the_end(
    folder: Path,
    ends: Mapping[str, Sequence[tuple[int, float, float | None]]],
    seconds: Container[str],
    fps: float | None,
) -> list[str]:
    """One problem for each row that lies past the end of its video.

    Headers are read; where one states that a row lies past the end, the whole file is.

    Videos whose length is not known are skipped; `training.prepare` names them.

    Args:
        ends: name -> (line, start, end or None) of its rows.
        seconds: the names whose rows are in seconds; others are in frames.
        fps: frames per second of folders of pictures; default 25.
    """

    def past(name: str) -> list[str]:
        path, rows = folder / name, ends[name]
        found = _past(name, rows, _length(path, fps), name in seconds)
        if found and path.is_file():
            return _past(name, rows, exact_length(path), name in seconds)
        return found

    found = in_threads(past, ends, "reading lengths", bool(ends))
    return [problem for problems in found for problem in problems]


def _past(
    name: str,
    rows: Sequence[tuple[int, float, float | None]],
    length: Length | None,
    seconds: bool,
) -> list[str]:
    if length is None:
        return []
    if seconds:  # an end up to a frame past the video's is that of the last frame
        stop, limit, unit = length.seconds, length.seconds + 1 / length.fps, " s"
    else:
        stop, limit, unit = length.frames, length.frames, ""
    problems = []
    for line, start, end in rows:
        what, value = ("start", start) if end is None else ("end", end)
        if value > limit or start >= stop:
            problems.append(
                f"line {line}: {what} {value:.6g}{unit} lies past the end of {name}, which has "
                f"{length.frames} frames in {length.seconds:.4g} s"
            )
    return problems


def _length(path: Path, fps: float | None) -> Length | None:
    from fastseq.video import VideoError
    from fastseq.video.pictures import pictures_of

    if path.is_dir():
        try:
            info = pictures_of(str(path)).info(fps)
        except VideoError:
            return None
        return Length(info.frames, float(info.fps))
    return length_of(path) if path.exists() else None
