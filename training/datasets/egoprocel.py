"""EgoProceL: egocentric videos of 16 tasks with key-steps in seconds."""

from __future__ import annotations

import csv
import io
import re
from argparse import Namespace
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.layout import ABSENT, SECOND
from training.datasets.parse import (
    by_stem,
    media_files,
    number_of,
    read_text,
    several,
    wrong_layout,
)
from training.datasets.segments import lengths_of, usable_segments

_LAYOUT = """\
SOURCE/
  annotations/CMU-MMAC/Brownie/S07_Brownie_Video/S07_Brownie_7150991-1431.csv
  annotations/EGTEA_Gaze+/BaconAndEggs/OP01-R03-BaconAndEggs.csv
  annotations/EPIC-Tents/01.tent.090617.gopro.egoprocel.ann.csv
  annotations/MECCANO/0003.csv               also pc_assembly/ and pc_disassembly/; no header:
                                             start and end in seconds, "NUMBER key-step"
  videos/                                    the same folders and names as annotations/
"""
_TASKS = ("CMU-MMAC", "EGTEA_Gaze+")  # folders of several tasks
_CAMERAS = {  # annotations/metadata/CMU_Kitchens/misc.py
    "6510211": "back",
    "7150991": "ego",
    "7151020": "top",
    "7151062": "rhs",
    "8421130": "lhs_top",
}
_SUFFIX = ".egoprocel.ann"


def _read(source: Path, args: Namespace) -> DataSet:
    tables = sorted((source / "annotations").rglob("*.csv"))
    if not tables:
        raise wrong_layout(source, "no csv file in annotations/", _LAYOUT)
    paths = media_files(source / "videos") if (source / "videos").is_dir() else {}
    if not paths:
        raise wrong_layout(source, "no videos in videos/", _LAYOUT)
    stems = by_stem(paths)
    data_set = DataSet()
    steps: dict[str, dict[int, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    entries: dict[str, dict[str, Any]] = {}
    segments: dict[str, list[tuple[float, float, int]]] = {}
    for table in tables:
        place = PurePosixPath(table.relative_to(source / "annotations").as_posix())
        stem = place.stem.removesuffix(_SUFFIX)
        action = _action(place)
        rows = _rows(table)
        for _, _, number, text in rows:
            steps[action][number][text] += 1
        name = _video(stems.get(stem, []), place)
        if name is None:
            data_set.missing[(place.parent / stem).as_posix()] = ABSENT
            continue
        view = _view(stem)
        entries[name] = {"action": action, "split": "train", "view": view, "unit": "seconds"}
        segments[name] = [(start, stop, number) for start, stop, number, _ in rows]
    lengths = lengths_of({name: paths[name] for name in entries}, "reading lengths")
    for name, entry in entries.items():
        entry["segments"] = usable_segments(
            data_set, name, segments[name], lengths.get(name), seconds=True
        )
        data_set.clips.append(Clip(name, paths[name], entry))
    used = {PurePosixPath(name).stem for name in entries}
    for name in paths:
        if name not in entries:
            second = PurePosixPath(name).stem in used
            data_set.unused[name] = SECOND if second else "no annotation of this name"
    _name_steps(data_set, steps)
    return data_set


def _action(place: PurePosixPath) -> str:
    """The task: the data set's name, with the dish for data sets of several tasks."""
    parts = place.parts
    return "_".join(parts[:2]) if parts[0] in _TASKS and len(parts) > 2 else parts[0]


def _view(stem: str) -> str:
    camera = re.fullmatch(r"S\d+_[A-Za-z]+_(\d+)-\d+", stem)
    return _CAMERAS.get(camera[1], camera[1]) if camera else "ego"


def _video(names: list[str], place: PurePosixPath) -> str | None:
    """Of the videos of an annotation's name, the one whose folders are most like its own."""

    def alike(name: str) -> int:
        return len(set(PurePosixPath(name).parts[:-1]) & set(place.parts))

    return max(names, key=alike, default=None)


def _rows(path: Path) -> list[tuple[float, float, int, str]]:
    """(start, end, number, name) of the key-steps of a video, times in seconds."""
    rows, problems = [], []
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        step = re.fullmatch(r"(\d+)\.?(?:\s+(.*))?", cells[2].strip()) if len(cells) == 3 else None
        try:
            start, end = (number_of(cell.strip()) for cell in cells[:2])
        except ValueError:
            step = None
        if step is None:
            problems.append(
                f"line {reader.line_num}: expected start and end in seconds and 'NUMBER key-step', "
                f"got {','.join(cells)!r}"
            )
        else:
            rows.append((start, end, int(step[1]), (step[2] or "").strip()))
    if problems:
        raise several(path, problems)
    return rows


def _name_steps(data_set: DataSet, steps: dict[str, dict[int, Counter[str]]]) -> None:
    """Name the key-steps of each task, and give segments the places of theirs in that list."""
    places = {}
    for action, numbers in sorted(steps.items()):
        places[action] = {number: place for place, number in enumerate(sorted(numbers))}
        names = []
        for number in places[action]:
            (name, _), *others = numbers[number].most_common()
            names.append(f"{number} {name}".strip())
            if others:
                data_set.remark("key-steps of one number with several names", f"{action} {number}")
        data_set.classes[action] = names
    for clip in data_set.clips:
        for segment in clip.entry["segments"]:
            segment[2] = places[clip.entry["action"]][segment[2]]


READER = Reader(
    "egoprocel",
    "EgoProceL: 16 tasks seen by a camera on the head, key-steps in seconds",
    _LAYOUT,
    _read,
)
