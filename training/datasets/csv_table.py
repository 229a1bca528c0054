"""A table of anybody's videos: a row per labelled stretch, in both directions."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.label_values import listed_names
from training.datasets.csv_files import absent, past_the_end
from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.parse import (
    MOST_PHASES,
    Row,
    number_of,
    read_json,
    read_table,
    several,
    split_of,
)
from training.support.command import UserError

LAYOUT = """
SOURCE: a table with the header path,split,action,view,start,end,phase, one row per labelled stretch
of a video, such as
  path,split,action,start,end,phase
  a/001.mp4,train,pour,0,52,reach
  a/001.mp4,train,pour,52,140,pour
  b/002.mp4,test,pour,,,
path is relative to the table's folder (--videos FOLDER: another one) and may be a folder of
pictures. All other columns may be missing, and all other cells empty. start: the first frame
(counted from 0) or second of the phase; end: the first one after it, or empty: up to the next row
of the video or its end. Commas, semicolons or tabs separate the cells.

Backwards: SOURCE is a labels.json or its folder, with --export FILE.csv instead of --out.
"""
REQUIRED = ("path",)
OPTIONAL = ("split", "action", "view", "start", "end", "phase", "unit")
UNITS = ("frames", "seconds")


@dataclass
class _Stretch:
    line: int
    start: float
    end: float | None
    phase: str


@dataclass
class _Video:
    """The rows of one video: each cell with the line where it was first given."""

    line: int
    given: dict[str, tuple[str, int]] = field(default_factory=dict)
    stretches: list[_Stretch] = field(default_factory=list)

    @property
    def action(self) -> str:
        return self.given.get("action", ("all", 0))[0]

    @property
    def seconds(self) -> bool:
        return self.given["unit"][0] == "seconds"


def read(source: Path, args: Namespace) -> DataSet:
    """The videos of a table; raises UserError that names every wrong line."""
    if source.is_dir():
        raise UserError(f"{source} is a folder; expected a table, or --export FILE.csv")
    root = args.videos or source.parent
    if not root.is_dir():
        raise UserError(f"--videos {root}: no such folder")
    if args.fps is not None and not 0 < args.fps < float("inf"):
        raise UserError(f"--fps is {args.fps:g}, expected a positive number")
    problems: list[str] = []
    videos: dict[str, _Video] = {}
    for row in read_table(source, REQUIRED, OPTIONAL):
        try:
            name = _name(row["path"], root)
            video = videos.setdefault(name, _Video(row.line))
            _add(video, row, args.unit)
        except ValueError as error:
            problems.append(f"line {row.line}: {error}")
    if not videos and not problems:
        problems.append("no rows below the header")
    for video in videos.values():
        problems += _close(video)
    classes = _classes(videos, args.classes, problems)
    missing = {} if args.media == "none" else absent(root, {n: v.line for n, v in videos.items()})
    folder = args.out if args.media == "none" else root
    ends = {
        name: [(one.line, one.start, one.end) for one in video.stretches]
        for name, video in videos.items()
        if video.stretches and name not in missing
    }
    seconds = {name for name in ends if videos[name].seconds}
    if not problems:
        problems = past_the_end(folder, ends, seconds, args.fps)
    if problems:
        gone = f"\n  no such file in {root}: {listed_names([*missing.values()])}" if missing else ""
        raise UserError(f"{several(source, problems)}{gone}")
    data_set = DataSet(classes=classes)
    data_set.missing = dict.fromkeys(missing.values(), f"no such file in {root}")
    for name, video in videos.items():
        if name in missing:
            continue
        path = root / name
        entry = _entry(video, classes, path, args)
        data_set.clips.append(Clip(name, path, entry, fps=args.fps if path.is_dir() else None))
    return data_set


def _name(text: str, root: Path) -> str:
    """The path relative to the folder of the videos, with forward slashes."""
    if not text:
        raise ValueError("path is empty")
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute():
        try:
            return Path(path).relative_to(root.resolve()).as_posix()
        except ValueError:
            raise ValueError(f"{text} is not below {root}; --videos FOLDER names another") from None
    if ".." in path.parts or path.as_posix() == ".":
        raise ValueError(f"{text} is not below {root}")
    return path.as_posix()


def _add(video: _Video, row: Row, unit: str) -> None:
    """Add a row to its video; ValueError with the problem."""
    cells = {name: row[name] for name in ("split", "action", "view")}
    cells["unit"] = row["unit"] or unit
    if cells["unit"] not in UNITS:
        raise ValueError(f"unit is {cells['unit']!r}, expected frames or seconds")
    if cells["split"]:
        split = split_of(cells["split"])
        if split is None:
            raise ValueError(f"split is {cells['split']!r}, expected train, val or test")
        cells["split"] = split
    for name, value in cells.items():
        before, line = video.given.setdefault(name, (value, row.line)) if value else ("", 0)
        if before != value:
            raise ValueError(f"{name} is {value!r}, but {before!r} in line {line} of this video")
    start, end, phase = row["start"], row["end"], row["phase"]
    if not phase and (start or end):
        raise ValueError("start or end without a phase; name the phase or empty both cells")
    if phase:
        first = _time(start or "0", "start", cells["unit"])
        last = _time(end, "end", cells["unit"]) if end else None
        if last is not None and last <= first:
            raise ValueError(f"end {end} does not lie after start {start or 0}")
        video.stretches.append(_Stretch(row.line, first, last, phase))


def _time(text: str, name: str, unit: str) -> float:
    try:
        value = number_of(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, expected a number of {unit}") from None
    if value < 0:
        raise ValueError(f"{name} is {text}, expected a number from 0")
    if unit == "seconds":
        return value
    if value != int(value):
        raise ValueError(f"{name} is {text}, expected a whole frame number (or --unit seconds)")
    return int(value)


def _close(video: _Video) -> list[str]:
    """Sort the stretches and close open ends at the next start; returns the overlaps."""
    video.stretches.sort(key=lambda one: one.start)
    problems = []
    for one, following in zip(video.stretches, video.stretches[1:], strict=False):
        if one.end is None and one.start < following.start:
            one.end = following.start
        elif one.end is None or one.end > following.start:
            problems.append(
                f"lines {one.line} and {following.line}: the phases {one.phase!r} and "
                f"{following.phase!r} overlap"
            )
    return problems


def _classes(
    videos: Mapping[str, _Video], given: Path | None, problems: list[str]
) -> dict[str, list[str]]:
    """Phases of each action: those of a labels file, else as they first appear."""
    known = {} if given is None else _classes_of(given)
    classes: dict[str, list[str]] = {}
    for video in videos.values():
        if not video.stretches:
            continue
        names = classes.setdefault(video.action, list(known.get(video.action, ())))
        for one in video.stretches:
            if one.phase in names:
                continue
            if given is not None:
                problems.append(
                    f"line {one.line}: {given} has no phase {one.phase!r} of {video.action!r}"
                )
            names.append(one.phase)
    return {action: _in_order(names, given) for action, names in classes.items()}


def _in_order(names: list[str], given: Path | None) -> list[str]:
    """Phases that are numbers are phases 0, 1, ...; others stay in their order."""
    if given is not None or not all(name.isdecimal() for name in names):
        return names
    if max(map(int, names)) >= MOST_PHASES or len({*map(int, names)}) < len(names):  # "1", "01"
        return names
    return [str(number) for number in range(max(map(int, names)) + 1)]


def _classes_of(path: Path) -> dict[str, list[str]]:
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    classes = content.get("classes") or next(iter(content.get("class_sets", {}).values()), None)
    if not isinstance(classes, dict):
        raise UserError(f'--classes {path}: expected a labels file with "classes"')
    return classes


def _entry(
    video: _Video, classes: Mapping[str, list[str]], path: Path, args: Namespace
) -> dict[str, Any]:
    entry: dict[str, Any] = {"action": video.action}
    entry |= {name: video.given[name][0] for name in ("split", "view") if name in video.given}
    if not video.stretches:
        return entry
    if video.seconds:
        entry["unit"] = "seconds"
    numbers = {name: number for number, name in enumerate(classes[video.action])}
    segments = [[one.start, one.end, numbers[one.phase]] for one in video.stretches]
    if segments[-1][1] is not None:
        return entry | {"segments": segments}
    boundaries = _boundaries(segments)
    if boundaries is not None:
        return entry | {"boundaries": boundaries}
    if args.media == "none":
        path = args.out / path.relative_to(args.videos or args.source.parent)
    segments[-1][1] = _length(path, video, args.fps)
    return entry | {"segments": segments}


def _boundaries(segments: list[list[Any]]) -> list[float] | None:
    """Where phases 1, 2, ... begin, for ascending phases without gaps up to the video's end."""
    boundaries: list[float] = []
    end = 0
    for start, stop, number in segments:
        if start != end or number < len(boundaries) or (number == 0 and start):
            return None
        boundaries += [start] * (number - len(boundaries))
        end = stop
    return boundaries


def _length(path: Path, video: _Video, fps: float | None) -> float:
    """Where a video ends, for a last phase with an open end."""
    from fastseq.video import VideoError, probe

    line = video.stretches[-1].line
    try:
        info = probe(path, fps=fps) if path.is_dir() else probe(path)
    except VideoError as error:
        raise UserError(
            f"line {line}: end is empty, and the length of the video is not known ({error})"
        ) from error
    if not video.seconds:
        return info.frames
    return float(info.times[-1]) + 1 / info.fps


def export(source: Path, target: Path, *, overwrite: bool = False) -> list[str]:
    """Write a labels file as a table; returns lines about what it has and what it cannot have."""
    from training.datasets.csv_export import write_table

    return write_table(source, target, overwrite)


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="FOLDER",
        help="folder that the paths are relative to (default: the table's folder)",
    )
    parser.add_argument(
        "--unit",
        choices=UNITS,
        default="frames",
        help='unit of start and end; a column "unit" overrides it (default: %(default)s)',
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="labels file whose phases, in their order, are used (default: the order in which they "
        "first appear, within a video by time)",
    )
    parser.add_argument("--fps", type=float, help="frames per second of folders of pictures")
    parser.add_argument(
        "--export", type=Path, metavar="FILE.csv", help="write the labels file SOURCE as a table"
    )


READER = Reader(
    name="csv",
    summary="a table of your own videos: path, split, action, view, start, end, phase",
    layout=LAYOUT,
    read=read,
    add_arguments=_arguments,
)
