"""FineGym: events cut out of the downloaded videos, with the elements of Gym99 and Gym288."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.finegym_elements import later_wins
from training.datasets.finegym_events import Event, VideoEnds, read_events
from training.datasets.parse import (
    by_stem,
    media_files,
    read_lines,
    several,
    wrong_layout,
)
from training.support.command import UserError

LAYOUT = """
SOURCE/finegym_annotation_info_v1.0.json      these files also in SOURCE/annotations
SOURCE/gym99_categories.txt                   the same for gym288; one set is enough
SOURCE/gym99_train_element_v1.0.txt
SOURCE/gym99_val_element.txt
SOURCE/FineGym_Raw_database/A0xAXXysHUo.mp4   the downloaded videos, to any depth, .mp4, .mkv,
                                              .webm; elsewhere with --videos FOLDER
"""
SETS = ("gym99", "gym288")
_ID = 11  # characters of a video's id
_EVENTS = {"VT": "vault", "FX": "floor exercise", "BB": "balance beam", "UB": "uneven bars"}
_CATEGORY = re.compile(r"Clabel:\s*(\d+)\s*;\s*set:\s*(\d+)\s*;\s*Glabel:\s*(\d+)\s*;\s*(.+)")
_CATEGORY_EXAMPLE = "Clabel: 0; set: 1; Glabel: 1; (VT) name of the class"
_ELEMENT = re.compile(r"((.+)_(E_\d+_\d+))_(A_\d+_\d+)")
_ELEMENT_EXAMPLE = "A0xAXXysHUo_E_003585_003641_A_0003_0005 79"
# Remarks.
_TWICE = "element is listed twice; the last class is used"
_SEVERAL_FILES = "several video files of one name; the first is used"
_BOTH_SPLITS = 'elements in both splits of one class set; the event is "test"'
_LATE = "element ends after its event and is cut"
_NO_TIME = "element without a time in its event is left out"
_OVERLAP = "elements overlap; the later one in the annotation wins, as in CARL's script"
_OTHER_EVENT = "element with a class of another event is left out"
_CUT_SHORT = "the event ends after its video and is cut"
_CUT_ALREADY = "the event is cut already; its file is used as it is"


@dataclass(frozen=True)
class ClassSet:
    """The classes of Gym99 or Gym288, and their elements.

    Attributes:
        names: names of the classes in the order of Clabel.
        elements: id of an element -> (class, "train" or "test").
    """

    names: list[str]
    elements: dict[str, tuple[int, str]]


def read(source: Path, args: Namespace) -> DataSet:
    """The events that have elements of the class sets; times are in seconds."""
    folder = next((f for f in (source, source / "annotations") if _versions(f)), None)
    if folder is None:
        raise wrong_layout(source, "no finegym_annotation_info_v*.json", LAYOUT)
    version = _version(folder, args.version)
    path = folder / f"finegym_annotation_info_{version}.json"
    data_set = DataSet()
    sets = _class_sets(folder, version, data_set)
    events = read_events(path)
    for event in [*events]:
        start, stop = events[event].cut
        if not 0 <= start < stop:
            data_set.unused[event] = f"it lasts from {start:g} to {stop:g} s"
            del events[event]
    videos = _videos(source, args, data_set)
    names = {key: one.names for key, one in sets.items()}
    data_set.class_sets = {
        key: _by_event(classes) if args.by_event else {"all": classes}
        for key, classes in names.items()
    }
    _unknown_elements(sets, events, path, data_set)
    needed = {} if args.media == "none" else {*events, *(one.video for one in events.values())}
    ends = VideoEnds({name: videos[name] for name in videos if name in needed})
    for event, content in events.items():
        _add(data_set, event, content, sets, videos, ends, args)
    return data_set


def _versions(folder: Path) -> list[str]:
    prefix = "finegym_annotation_info_"
    return sorted(path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}v*.json"))


def _version(folder: Path, wanted: str | None) -> str:
    versions = _versions(folder)
    if wanted is not None and wanted not in versions:
        raise UserError(
            f"--version {wanted}: no finegym_annotation_info_{wanted}.json in {folder}; it has "
            f"{', '.join(versions)}"
        )
    return wanted or versions[0]  # v1.0 before v1.1: CARL's configurations use v1.0


def _class_sets(folder: Path, version: str, data_set: DataSet) -> dict[str, ClassSet]:
    """Gym99 and Gym288, each if its files are there."""
    sets = {}
    for key in SETS:
        paths = {
            "categories": folder / f"{key}_categories.txt",
            "train": folder / f"{key}_train_element_{version}.txt",
            "test": folder / f"{key}_val_element.txt",  # the papers evaluate on val
        }
        missing = [path.name for path in paths.values() if not path.is_file()]
        if len(missing) == len(paths):
            continue
        if missing:
            raise wrong_layout(folder, f"{key} is incomplete, no {', '.join(missing)}", LAYOUT)
        names = _categories(paths["categories"])
        elements: dict[str, tuple[int, str]] = {}
        for split in ("train", "test"):
            _elements(paths[split], split, len(names), elements, data_set)
        sets[key] = ClassSet(names, elements)
    if not sets:
        raise wrong_layout(folder, f"no files of {' or '.join(SETS)}", LAYOUT)
    return sets


def _categories(path: Path) -> list[str]:
    """The names of the classes, such as "(VT) round-off, ...", by Clabel.

    Some elements have the same name in two sets, such as "(BB) salto backward tucked" as a flight
    and as a dismount; the number of the set is added to them.
    """
    names: dict[int, str] = {}
    sets: dict[int, str] = {}
    problems = []
    for line, text in read_lines(path):
        found = _CATEGORY.fullmatch(text)
        if found is None:
            problems.append(f"line {line}: {text[:60]!r}; expected {_CATEGORY_EXAMPLE!r}")
        elif int(found[1]) in names:
            problems.append(f"line {line}: Clabel {found[1]} is there twice")
        else:
            names[int(found[1])] = found[4].strip()
            sets[int(found[1])] = found[2]
    if missing := [str(k) for k in range(len(names)) if k not in names]:
        problems.append(f"no Clabel {', '.join(missing[:5])}")
    if problems or not names:
        raise several(path, problems or ["no classes"])
    counts = Counter(names.values())
    return [
        f"{names[k]} (set {sets[k]})" if counts[names[k]] > 1 else names[k]
        for k in range(len(names))
    ]


def _elements(
    path: Path,
    split: str,
    classes: int,
    elements: dict[str, tuple[int, str]],
    data_set: DataSet,
) -> None:
    """Add the elements of a list, "VIDEO_E_start_end_A_start_end class" a line."""
    problems = []
    for line, text in read_lines(path):
        name, _, number = text.partition(" ")
        if not _ELEMENT.fullmatch(name) or not number.strip().isdigit():
            problems.append(f"line {line}: {text[:60]!r}; expected {_ELEMENT_EXAMPLE!r}")
            continue
        value = int(number)
        if value >= classes:
            problems.append(f"line {line}: class {value}, expected 0 to {classes - 1}")
        elif name not in elements:
            elements[name] = value, split
        else:
            # CARL's script keeps the last class; an element of both splits must not be trained on.
            _, before = elements[name]
            data_set.remark(_TWICE, f"{name} ({path.name})")
            elements[name] = value, "test" if "test" in (before, split) else "train"
    if problems:
        raise several(path, problems)


def _videos(source: Path, args: Namespace, data_set: DataSet) -> dict[str, Path]:
    """Video files by their base name: downloaded videos, and events that are cut already."""
    if args.videos is not None and not args.videos.is_dir():
        raise UserError(f"--videos {args.videos}: no such folder")
    folder = args.videos or source
    files = media_files(folder)
    videos = {}
    for stem, names in by_stem(files).items():
        videos[stem] = files[names[0]]
        if len(stem) == _ID + 2 and stem.startswith("v_"):  # CARL's name of a download
            videos.setdefault(stem[2:], files[names[0]])
        if len(names) > 1:
            data_set.remark(_SEVERAL_FILES, f"{stem} ({', '.join(names)})")
    return videos


def _unknown_elements(
    sets: Mapping[str, ClassSet],
    events: Mapping[str, Event],
    path: Path,
    data_set: DataSet,
) -> None:
    """Report the listed elements that the annotation does not have."""
    for key, one in sets.items():
        for name in one.elements:
            event, _, element = _split_name(name)
            if event not in events:
                data_set.remark(f"{path.name} has no such event, listed for {key}", name)
            elif element not in events[event].segments:
                data_set.remark(f"{path.name} has no such element, listed for {key}", name)


def _split_name(name: str) -> tuple[str, str, str]:
    """(event, video, element) of an element's id."""
    found = _ELEMENT.fullmatch(name)
    return found[1], found[2], found[4]


def _add(
    data_set: DataSet,
    event: str,
    content: Event,
    sets: Mapping[str, ClassSet],
    videos: Mapping[str, Path],
    ends: VideoEnds,
    args: Namespace,
) -> None:
    """Add one event, or the reason why it is left out."""
    labels: dict[str, dict[str, Any]] = {}
    action = "all"
    for key, one in sets.items():
        segments, splits = _segments(data_set, event, content, one, args.stages)
        if segments and args.by_event:
            action = _event_of(one.names[segments[0][2]]) if action == "all" else action
            numbers = _numbers(one.names, action)
            kept = [[a, b, numbers[k]] for a, b, k in segments if k in numbers]
            if len(kept) < len(segments):
                data_set.remark(_OTHER_EVENT, f"{event} ({key})")
            segments = kept
        if segments:
            if len(splits) > 1:
                data_set.remark(_BOTH_SPLITS, f"{event} ({key})")
            labels[key] = {
                "segments": segments,
                "split": "test" if "test" in splits else "train",
            }
    if not labels and not args.keep_unlabelled:
        data_set.unused[event] = f"no element of {' or '.join(sets)}; --keep-unlabelled keeps it"
        return
    splits = {one["split"] for one in labels.values()}
    entry: dict[str, Any] = {"action": action, "split": "test" if "test" in splits else "train"}
    if labels:
        entry |= {"unit": "seconds", "labels": labels}
    name = f"{event}.mp4"
    if args.media == "none":
        data_set.clips.append(Clip(name, None, entry))
    elif content.video in videos:
        if _fits(data_set, event, content.video, content.cut, labels, ends):
            source = videos[content.video]
            data_set.clips.append(Clip(name, source, entry, cut=content.cut))
    elif event in videos:
        length = content.cut[1] - content.cut[0]
        if not _fits(data_set, event, event, (0, length), labels, ends):
            return
        data_set.remark(_CUT_ALREADY, event)
        data_set.clips.append(Clip(f"{event}{videos[event].suffix}", videos[event], entry))
    else:
        folder = args.videos or args.source
        data_set.missing[content.video] = f"no video file of this name below {folder}"


def _fits(
    data_set: DataSet,
    event: str,
    video: str,
    cut: tuple[float, float],
    labels: Mapping[str, dict[str, Any]],
    ends: VideoEnds,
) -> bool:
    """Whether a video shows an event up to the end of its labels; if not, the event is missing."""
    start, stop = cut
    length = ends.length(video, stop)
    if length is None:  # unreadable: found when its events are cut, or by `training.prepare`
        return True
    end, frame = length.seconds, 1 / length.fps
    last = max((b for one in labels.values() for _, b, _ in one["segments"]), default=0)
    problem = ""
    if start >= end:
        problem = f"it begins at {start:g} s"
    elif start + last > end + frame:
        problem = f"its labels end at {start + last:g} s"
    if problem:
        data_set.missing[event] = f"{problem}, but its video ends at {end:.4g} s"
        return False
    if stop > end + frame and video != event:
        data_set.remark(_CUT_SHORT, f"{event} ({stop:g} s, the video {end:.4g} s)")
    return True


def _segments(
    data_set: DataSet, event: str, content: Event, one: ClassSet, stages: str
) -> tuple[list[list[Any]], set[str]]:
    """([start, stop, class] in seconds of the event without overlaps, splits of its elements)."""
    given, splits = [], set()
    length = content.cut[1] - content.cut[0]
    for name, times in content.segments.items():
        found = one.elements.get(f"{event}_{name}")
        if found is None:
            continue
        start, stop = times[-1][0] if stages == "last" else times[0][0], times[-1][1]
        if start < length < stop:
            _once(data_set, _LATE, f"{event}_{name}")
            stop = length
        if not 0 <= start < stop <= length:
            _once(data_set, _NO_TIME, f"{event}_{name}")
            continue
        given.append((start, stop, found[0]))
        splits.add(found[1])
    segments, overlaps = later_wins(given)
    if overlaps:
        _once(data_set, _OVERLAP, event)
    return segments, splits


def _once(data_set: DataSet, text: str, name: str) -> None:
    """A remark that does not depend on the class set."""
    if name not in data_set.remarks.get(text, ()):
        data_set.remark(text, name)


def _event_of(name: str) -> str:
    """ "vault", "floor exercise", ... from a class such as "(VT) round-off"."""
    letters = name[1:3]
    return _EVENTS.get(letters, letters)


def _by_event(names: list[str]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    for name in names:
        classes.setdefault(_event_of(name), []).append(name)
    return classes


def _numbers(names: list[str], event: str) -> dict[int, int]:
    """Number of a class among all -> its number within its event."""
    own = [number for number, name in enumerate(names) if _event_of(name) == event]
    return {number: place for place, number in enumerate(own)}


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="FOLDER",
        help="folder of the downloaded videos, or of events that are cut already (default: SOURCE)",
    )
    parser.add_argument(
        "--version", metavar="v1.0", help="version of the annotation (default: the first one there)"
    )
    parser.add_argument(
        "--by-event",
        action="store_true",
        help="four actions (vault, floor exercise, balance beam, uneven bars) with their own "
        "classes; default: one action with all classes, as the papers evaluate",
    )
    parser.add_argument(
        "--stages",
        choices=("last", "all"),
        default="last",
        help="vaults have three stages; last (default): only the last has the label, as in CARL's "
        "script; all: from the first to the last",
    )
    parser.add_argument(
        "--keep-unlabelled",
        action="store_true",
        help="keep events without an element of the class sets, for training",
    )


READER = Reader(
    name="finegym",
    summary="FineGym: events cut out of the downloaded videos, classes of Gym99 and Gym288",
    layout=LAYOUT,
    read=read,
    add_arguments=_arguments,
)
