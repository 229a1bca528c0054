"""The labels file: actions, splits and phases of the videos in a folder (see README.md)."""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.files import LABELS_NAME
from training.data.label_entries import entry_problems, has_phases, parts_of, unit_problem
from training.data.label_frames import (
    UNLABELLED,
    Clock,
    Timed,
    frame_phases,
    in_frames,
    trim_in_frames,
)
from training.data.label_values import UNITS
from training.data.names import Names
from training.support.command import UserError

__all__ = [
    "TO_BE_CHECKED",
    "LabelError",
    "Labels",
    "entry_phases",
    "in_frames",
    "listed",
    "match_names",
    "phases_of",
    "read_labels",
    "with_entries",
]

_FILE_KEYS = ("classes", "class_sets", "videos", "unit")
_SHOWN = 20
TO_BE_CHECKED = "to be checked"  # in the remark of labels that `training.propagate` carried over

Classes = dict[str, list[str]]  # action -> names of its phases


class LabelError(UserError):
    """A labels file is wrong; the message names each wrong entry and how to fix it."""


@dataclass(frozen=True)
class Labels:
    """The content of a labels file.

    Attributes:
        class_sets: class set -> action -> names of its phases. A file with "classes", or with
            neither, has one set, whose name is "".
        videos: video's name -> its entry; with "unit" if the file has a default other than frames.
        content: the whole file.
        gone: names whose labels `match_names` dropped, as the folder does not have their shards.
    """

    class_sets: dict[str, Classes] = field(default_factory=lambda: {"": {}})
    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @property
    def classes(self) -> Classes:
        """The phases of each action in the first class set."""
        return next(iter(self.class_sets.values()), {})

    def split_of(self, name: str, class_set: str) -> str:
        """The split of a video: that of a class set, else of its entry, else "train"."""
        entry = self.videos.get(name, {})
        part = entry.get("labels", {}).get(class_set, {})
        return part.get("split", entry.get("split", "train"))


class _Object(dict):
    """A JSON object that records which of its keys occur twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        if len(self) < len(pairs):
            seen: set[str] = set()
            self.twice = [key for key, _ in pairs if key in seen or seen.add(key)]


def read_labels(path: Path) -> Labels:
    """Read a labels file and check its form, but not against the videos.

    Raises:
        LabelError: the file is not JSON, or does not have the documented form.
    """
    content = _parse(path)
    if not isinstance(content, dict):
        raise LabelError(f'{path}: expected an object with "classes" and "videos"')
    videos = content.get("videos", {})
    problems = _file_problems(content)
    if problems:
        raise LabelError(listed(path, problems))
    if "class_sets" in content:
        class_sets = content["class_sets"]
    else:
        class_sets = {"": content.get("classes", {})}
    if content.get("unit", "frames") != "frames":
        videos = {name: {"unit": content["unit"], **entry} for name, entry in videos.items()}
    for name, entry in videos.items():
        if found := entry_problems(entry, class_sets):
            problems += [f"{name}: {problem}" for problem in found]
    if problems:
        raise LabelError(listed(path, problems))
    return Labels(class_sets, videos, content)


def _file_problems(content: dict[str, Any]) -> list[str]:
    """Messages about the keys at the top of the file and the form of what they have."""
    classes, class_sets = content.get("classes", {}), content.get("class_sets", {})
    videos = content.get("videos", {})
    problems = _twice("the file", content) + _twice('"classes"', classes)
    problems += _twice('"class_sets"', class_sets)
    if isinstance(videos, dict):
        problems += _twice('"videos"', videos)
        for name, entry in videos.items():
            if hasattr(entry, "twice"):
                problems += _twice(name, entry)
    for key in content.keys() - {*_FILE_KEYS}:  # users may add others, such as a source
        for near in difflib.get_close_matches(key, _FILE_KEYS, n=1):
            problems.append(f'unknown key "{key}"; did you mean "{near}"?')
    if "classes" in content and "class_sets" in content:
        problems.append('has both "classes" and "class_sets"; move the former into a class set')
    if not _are_classes(classes):
        problems.append('"classes" must map each action to a list of its phases\' names')
    problems += _class_set_problems(class_sets) if "class_sets" in content else []
    if not isinstance(videos, dict) or not all(isinstance(v, dict) for v in videos.values()):
        problems.append('"videos" must map each file name to an object')
    if content.get("unit", "frames") not in UNITS:
        problems.append(unit_problem(content["unit"]))
    return problems


def _are_classes(classes: Any) -> bool:
    return isinstance(classes, dict) and all(
        isinstance(names, list) and names and all(isinstance(n, str) for n in names)
        for names in classes.values()
    )


def _class_set_problems(class_sets: Any) -> list[str]:
    example = '{"gym99": {"vault": ["round-off", ...]}}'
    if not isinstance(class_sets, dict) or not class_sets:
        return [f'"class_sets" must map the name of each class set to its actions, as in {example}']
    problems = []
    for name, classes in class_sets.items():
        problems += _twice(f'"class_sets" {name!r}', classes)
        if not name.strip():
            problems.append('"class_sets" has a set without a name')
        if not _are_classes(classes):
            problems.append(
                f'"class_sets" {name!r} must map each action to a list of its phases\' names, as '
                f"in {example}"
            )
    return problems


def _parse(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if b"\0" in data[:4] or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise LabelError(
                f"{path}: saved as UTF-16 or UTF-32; save it as UTF-8 (Notepad: Save as, Encoding "
                "UTF-8; PowerShell: Out-File -Encoding utf8)"
            )
        text = data.decode("utf-8-sig")
        content = json.loads(text)
        if _keys(content) < text.count(":"):  # a key that is there twice, or a colon in a name
            content = json.loads(text, object_pairs_hook=_Object)
        return content
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise LabelError(
            f"{path}: line {line} is not UTF-8 (byte {data[error.start]:#x}); save the file as "
            "UTF-8"
        ) from error
    except LabelError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise LabelError(f"{path}: not a readable JSON file: {error}") from error


def _keys(value: Any) -> int:
    """The number of keys in a value of JSON, without those of objects in lists."""
    if not isinstance(value, dict):
        return 0
    return len(value) + sum(_keys(one) for one in value.values() if isinstance(one, dict))


def _twice(where: str, given: Any) -> list[str]:
    return [
        f"{where}: the key {key!r} is there twice; one would replace the other, remove one"
        for key in getattr(given, "twice", ())
    ]


def match_names(path: Path, labels: Labels, names: Names) -> Labels:
    """Labels under the exact names of the files, however the labels file spells them.

    Labels of videos in a tar file that the folder does not have go into `Labels.gone`.

    Raises LabelError for labels of other files that are not in the folder, and if a file has two
    entries.
    """
    videos: dict[str, dict[str, Any]] = {}
    spelt: dict[str, str] = {}
    problems, missing, gone = [], [], []
    for name, entry in labels.videos.items():
        try:
            video = names.match(name)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if video is None:
            (gone if names.shard_is_gone(name) else missing).append(name)
        elif video in videos:
            problems.append(
                f"{name}: the labels of this video are there twice, as {spelt[video]!a} and "
                f"{name!a}; remove one"
            )
        else:
            videos[video], spelt[video] = entry, name
    for number, name in enumerate(missing):
        advice = names.hint(name) if number < _SHOWN else ""  # each hint compares all names
        problems.append(f"{name}: no such video in the folder; {advice}")
    if problems:
        raise LabelError(listed(path, problems))
    return replace(labels, videos=videos, gone=tuple(gone))


def with_entries(folder: Path, labels: Labels, entries: Mapping[str, Mapping[str, Any]]) -> Labels:
    """The labels with those entries, from shards, whose videos have none in the labels file.

    Raises LabelError for entries that do not have the documented form.
    """
    added = {name: dict(entry) for name, entry in entries.items() if name not in labels.videos}
    problems = [
        f"{name}: {problem}"
        for name, entry in added.items()
        for problem in entry_problems(entry, labels.class_sets)
    ]
    if problems and not labels.content and any(parts_of(entry) for entry in added.values()):
        problems.insert(0, _no_classes(folder / LABELS_NAME, added.values()))
    if problems:
        raise LabelError(listed(folder, problems))
    return replace(labels, videos={**labels.videos, **added})


def _no_classes(path: Path, entries: Iterable[Mapping[str, Any]]) -> str:
    """The message about entries in shards whose phases have no names, as the file is missing."""
    sets: dict[str, Classes] = {}
    for entry in entries:
        for class_set in parts_of(entry):
            sets.setdefault(class_set, {})[entry.get("action", "all")] = ["first phase", "..."]
    content = {"classes": sets[""]} if "" in sets else {"class_sets": sets}
    return (
        "there is no labels file, which has the names of the phases; `prepare --shards` writes it "
        f"beside the tar files: copy it too, or write {path} with "
        f"{json.dumps(content, ensure_ascii=False)}"
    )


def phases_of(
    path: Path | None,
    labels: Labels,
    infos: Mapping[str, Timed],
    damaged: Iterable[str] = (),
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """int64 phase per frame: class set -> name of a labelled video -> (frames,).

    Frames outside "trim", outside of segments and from "unlabelled_from" on are unlabelled (-1).
    Labels of the `damaged` videos need not fit: labels beyond the last frame are cut, and frames
    beyond the end of a list are unlabelled. The second result names the videos whose labels did not
    fit.

    Args:
        infos: name -> frames, fps and, if known, times of each video that can be read.
    Raises:
        LabelError: labels do not fit the length of an undamaged video.
    """
    phases: dict[str, dict[str, np.ndarray]] = {name: {} for name in labels.class_sets}
    changed, problems = [], []
    damaged = {*damaged}
    for name, entry in labels.videos.items():
        if name not in infos:  # a file that could not be read
            continue
        found, wrong = entry_phases(entry, labels.class_sets, infos[name])
        for class_set, values in found.items():
            phases[class_set][name] = values
        if wrong and name in damaged:
            changed.append(name)
        else:
            problems += [f"{name}: {problem}" for problem in wrong]
    if problems:
        raise LabelError(listed(path, problems))
    return phases, changed


def entry_phases(
    entry: Mapping[str, Any], class_sets: Mapping[str, Classes], info: Timed
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The phases of one video for each class set that it has labels of, and what does not fit.

    Returns:
        class set -> int64 (frames,), -1 = unlabelled; messages about labels past the last frame,
        which are cut.
    """
    phases: dict[str, np.ndarray] = {}
    problems: list[str] = []
    clock = Clock(info)
    for class_set, part in parts_of(entry).items():
        if not has_phases(part):
            continue
        names = class_sets[class_set][entry.get("action", "all")]
        where = f"labels of {class_set!r}: " if class_set else ""
        try:
            values, problem = frame_phases(part, entry, names, clock)
        except ValueError as error:
            problems.append(f"{where}{error}")
            continue
        if problem:
            problems.append(f"{where}{problem}")
        phases[class_set] = values
    if "trim" in entry:
        first, last = trim_in_frames(entry, clock)
        for values in phases.values():
            values[:first] = values[last + 1 :] = UNLABELLED
    return phases, problems


def listed(path: Path | None, problems: list[str]) -> str:
    """The message of a `LabelError`: the first problems, one per line, and the number of others."""
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path}:{shown}{more}"
