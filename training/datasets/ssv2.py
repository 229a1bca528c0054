"""Something-Something V2: numbered webm files and JSON lists."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.layout import ABSENT, by_id, find_file
from training.datasets.parse import (
    media_files,
    read_json,
    read_lines,
    several,
    wrong_layout,
)
from training.support.command import UserError

_LAYOUT = """\
SOURCE/
  20bn-something-something-v2/ID.webm        the archives, joined and unpacked; any folder name
  labels/train.json                          or something-something-v2-train.json, any folder
  labels/validation.json                     or something-something-v2-validation.json
  labels/labels.json                         or something-something-v2-labels.json
  labels/test.json                           or something-something-v2-test.json, if needed
  labels/test-answers.csv                    ID;LABEL: labels of the test videos, if released
"""
_DEPTH = 1  # the folder of the videos may have 220,000 files
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def _read(source: Path, args: Namespace) -> DataSet:
    lists = {name: _annotation(source, f"{name}.json") for name in _SPLITS}
    if lists["train"] is None and lists["validation"] is None:
        raise wrong_layout(source, "no train.json and no validation.json", _LAYOUT)
    paths = media_files(source)
    if not paths:
        raise wrong_layout(source, "no videos", _LAYOUT)
    classes = _classes(source)
    answers = _answers(source)
    data_set = DataSet()
    files = by_id(data_set, paths)
    listed: dict[str, str] = {}
    for name, path in lists.items():
        if path is None:
            continue
        for number, item in enumerate(_items(path)):
            video, template = str(item["id"]), item.get("template")
            label = answers.get(video) if template is None else _label(template)
            if name != "test" and label is None:
                raise UserError(f"{path}: entry {number} (id {video}) has no template")
            if video in listed:
                other = listed[video]
                raise UserError(f"{path}: entry {number}: the id {video} is also in {other}")
            listed[video] = path.name
            file = files.get(video)
            if file is None:
                data_set.missing[f"{video}.webm"] = ABSENT
            elif label is None:
                data_set.unused[file] = f"no label in {path.name} or test-answers.csv"
            elif classes and label not in classes:
                data_set.unused[file] = f"the label {label!r} is not in labels.json"
            else:
                entry = {"action": label, "split": _SPLITS[name]}
                data_set.clips.append(Clip(file, paths[file], entry))
    for video, file in files.items():
        if video not in listed:
            data_set.unused[file] = "in no list"
    return data_set


def _annotation(source: Path, name: str) -> Path | None:
    return find_file(source, f"something-something-v2-{name}", name, depth=_DEPTH)


def _label(template: str) -> str:
    """The label of a template: "Holding [something]" is "Holding something"."""
    return template.replace("[", "").replace("]", "")


def _items(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise UserError(f'{path}: expected a list of objects with "id" and "template"')
    for number, one in enumerate(content):
        if "id" not in one:
            raise UserError(f"{path}: entry {number} has no id")
    return content


def _classes(source: Path) -> set[str]:
    """The labels of labels.json; empty if the file is not there."""
    path = _annotation(source, "labels.json")
    if path is None:
        return set()
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object that maps each label to its number")
    return set(content)


def _answers(source: Path) -> dict[str, str]:
    """Id -> label of the test videos; empty if the file is not there."""
    path = find_file(source, "test-answers.csv", depth=_DEPTH)
    if path is None:
        return {}
    answers, problems = {}, []
    for line, text in read_lines(path):
        video, mark, label = text.partition(";")
        if mark:
            answers[video.strip()] = _label(label.strip())
        else:
            problems.append(f"line {line}: {text!r} is not ID;LABEL")
    if problems:
        raise several(path, problems)
    return answers


READER = Reader(
    "ssv2",
    "Something-Something V2: 174 classes; the class of a video is its action",
    _LAYOUT,
    _read,
)
