"""ActivityNet v1.3: videos of any length and a JSON file with segments in seconds."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.layout import ABSENT, by_id, find, label_names
from training.datasets.parse import media_files, read_database, split_of, wrong_layout
from training.datasets.segments import lengths_of, usable_segments
from training.support.command import UserError

_LAYOUT = """\
SOURCE/
  activity_net.v1-3.min.json                 any folder
  v1-3/train_val/v_ID.mp4                    also mkv and webm; any folder names
  v1-3/test/v_ID.mp4
"""
_ACTION = "all"


def _read(source: Path, args: Namespace) -> DataSet:
    found = find(source, "activity_net*.json")
    if not found:
        raise wrong_layout(source, "no activity_net.v1-3.min.json", _LAYOUT)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise UserError(f"{source}: {names} lie side by side; leave only the one to be read")
    (path,) = found
    database = read_database(path, _problem, ", as in ActivityNet v1.3")
    paths = media_files(source)
    if not paths:
        raise wrong_layout(source, "no videos", _LAYOUT)
    data_set = DataSet()
    files = by_id(data_set, paths)
    labels = set()
    used: dict[str, str] = {}  # name -> id
    for video, one in database.items():
        labels |= {annotation["label"] for annotation in one["annotations"]}
        stem = next((stem for stem in (f"v_{video}", video) if stem in files), None)
        if stem is None:
            data_set.missing[f"v_{video}"] = ABSENT
            continue
        used[files[stem]] = video
    annotated = {
        name: paths[name] for name, video in used.items() if database[video]["annotations"]
    }
    lengths = lengths_of(annotated, "reading lengths")
    for name, video in used.items():
        one = database[video]
        entry: dict[str, Any] = {"action": _ACTION, "split": split_of(one["subset"])}
        if one["annotations"]:
            entry["unit"] = "seconds"
            entry["segments"] = usable_segments(
                data_set, name, _in_order(one["annotations"]), lengths.get(name), seconds=True
            )
        data_set.clips.append(Clip(name, paths[name], entry))
    for name in files.values():
        if name not in used:
            data_set.unused[name] = f"not in {path.name}"
    if labels:
        data_set.classes = {_ACTION: label_names(labels)}
    return data_set


def _in_order(annotations: list[dict[str, Any]]) -> list[tuple[float, float, str]]:
    """Segments by their start; of two that start together the longer comes first."""
    given = [(*each["segment"], each["label"]) for each in annotations]
    return sorted(given, key=lambda segment: (segment[0], -segment[1]))


def _problem(one: Any) -> str:
    """What is wrong with the annotation of a video; an empty string if nothing is."""
    if not isinstance(one, dict) or split_of(str(one.get("subset"))) is None:
        return 'expected "subset": "training", "validation" or "testing"'
    annotations = one.get("annotations")
    if not isinstance(annotations, list):
        return 'expected a list "annotations"'
    for each in annotations:
        times = each.get("segment") if isinstance(each, dict) else None
        if not isinstance(times, list) or [type(t) in (int, float) for t in times] != [True] * 2:
            return 'expected "segment": [start, end] in seconds in each annotation'
        if not isinstance(each.get("label"), str):
            return 'expected a "label" in each annotation'
    return ""


READER = Reader(
    "activitynet",
    "ActivityNet v1.3: segments of 200 classes in seconds, phases of the one action 'all'",
    _LAYOUT,
    _read,
)
