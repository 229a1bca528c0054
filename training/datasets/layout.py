"""Finding the files of a data set, videos in class folders, and segments that do not overlap."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from training.datasets.dataset import Clip, DataSet
from training.datasets.parse import natural

ABSENT = "no such file"
SECOND = "another file of the same name is used"
_DEPTH = 2


def find(source: Path, *patterns: str) -> list[Path]:
    """The files that match one of the patterns, in the folder nearest to `source`, sorted.

    `source` is searched first, then the folders in it, then the folders in those. An empty list if
    there are none.
    """
    for depth in range(_DEPTH + 1):
        above = "*/" * depth
        found = {path for pattern in patterns for path in source.glob(f"{above}{pattern}")}
        if files := [path for path in found if path.is_file()]:
            nearest = min(path.parent for path in files)
            return sorted(path for path in files if path.parent == nearest)
    return []


def find_file(source: Path, *names: str) -> Path | None:
    """The first file with one of the names, at most two folders below `source`, or None."""
    found = find(source, *names)
    return min(found, key=lambda path: names.index(path.name)) if found else None


def add_split_number(parser: ArgumentParser) -> None:
    """The option of data sets with three official splits."""
    parser.add_argument(
        "--split-number",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help="which of the three official splits (default: %(default)s, as in VCLR)",
    )


def add_class_folders(
    data_set: DataSet, files: Mapping[str, Path], listed: Mapping[str, str], unlisted: str
) -> None:
    """Add the videos of a data set whose folders are its classes.

    Args:
        data_set: gets the clips; the action of a video is its class and it has no phases.
        files: video files, by their name below the data set's folder.
        listed: CLASS/VIDEO, with or without the video's extension -> split.
        unlisted: the reason why a video that is not listed is left out.
    """
    there: dict[str, str] = {}
    for name in files:
        if there.setdefault(_class_and_stem(name), name) != name:
            data_set.unused[name] = SECOND
    for video, split in listed.items():
        key = _class_and_stem(video)
        name = there.pop(key, None)
        if name is None:
            data_set.missing[video] = ABSENT
            continue
        action = key.partition("/")[0]
        short = "/".join(PurePosixPath(name).parts[-2:])
        data_set.clips.append(Clip(short, files[name], {"action": action, "split": split}))
    data_set.unused.update(dict.fromkeys(there.values(), unlisted))


def by_id(data_set: DataSet, names: Iterable[str]) -> dict[str, str]:
    """Id -> name, for videos whose file is called after their id; second ones are left out."""
    found: dict[str, str] = {}
    for name in names:
        if found.setdefault(stem_of(name), name) != name:
            data_set.unused[name] = SECOND
    return found


def stem_of(name: str) -> str:
    """The file's name without folders and extension; fast, as data sets have 200,000 files."""
    return os.path.splitext(name.rpartition("/")[2])[0]


def _class_and_stem(name: str) -> str:
    path = PurePosixPath(name)
    return f"{path.parent.name}/{path.stem}"


def usable_segments(
    data_set: DataSet,
    name: str,
    segments: Iterable[tuple[float, float, Any]],
    *,
    end: float | None = None,
) -> list[list[Any]]:
    """Segments for an entry of labels.json, sorted by their start; no two overlap.

    Where two segments overlap, the frames belong to the later one in the given sequence: a segment
    inside an earlier one splits it in two. Empty segments are dropped, and segments are cut at 0
    and at `end`. What was changed is added to the data set's remarks.

    Args:
        name: name of the video, for the remarks.
        segments: (start, stop, label); the stop is not included.
        end: length of the video in the unit of the segments; None if it is not known.
    """
    kept: list[tuple[float, float, Any]] = []
    changes = set()
    for start, stop, label in segments:
        first, last = max(start, 0), stop if end is None else min(stop, end)
        if (first, last) != (start, stop):
            changes.add("segments cut to the length of the video")
        if first >= last:
            changes.add("empty segments dropped")
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
    for change in sorted(changes):
        data_set.remark(change, name)
    return [list(one) for one in sorted(kept)]


def label_names(labels: Iterable[str]) -> list[str]:
    """The different labels in natural order."""
    return natural(set(labels))
