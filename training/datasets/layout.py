"""Finding the files of a data set, and videos in class folders."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from training.datasets.dataset import Clip, DataSet
from training.datasets.parse import natural

ABSENT = "no such file"
SECOND = "another file of the same name is used"


def find(source: Path, *patterns: str, depth: int = 2) -> list[Path]:
    """The files that match one of the patterns, in the folder nearest to `source`, sorted.

    `source` is searched first, then the folders in it, then the folders in those. An empty list if
    there are none.

    Args:
        depth: number of levels of folders below `source`.
    """
    for level in range(depth + 1):
        above = "*/" * level
        found = {path for pattern in patterns for path in source.glob(f"{above}{pattern}")}
        if files := [path for path in found if path.is_file()]:
            nearest = min(path.parent for path in files)
            return sorted(path for path in files if path.parent == nearest)
    return []


def find_file(source: Path, *names: str, depth: int = 2) -> Path | None:
    """The file with the first of the names that is there, found as by `find`, or None."""
    found = find(source, *names, depth=depth)
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


def label_names(labels: Iterable[str]) -> list[str]:
    """The different labels in natural order."""
    return natural(set(labels))
