"""The labels file: actions, splits and phases of the videos in a folder (see README.md)."""

from __future__ import annotations

import codecs
import difflib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.footage import footage_problems, known_hint
from training.data.names import Names
from training.support.command import UserError

_VIDEO_KEYS = (
    *("action", "split", "view", "boundaries", "phases", "unlabelled_from"),
    *("trim", "crop", "sync", "remark"),
)
_SPLITS = ("train", "test")
_SHOWN = 20
TO_BE_CHECKED = "to be checked"  # in the remark of labels that `training.propagate` carried over


class LabelError(UserError):
    """A labels file is wrong; the message names each wrong entry and how to fix it."""


@dataclass(frozen=True)
class Labels:
    """The phases of each action, the entry of each labelled video, and the whole content."""

    classes: dict[str, list[str]]
    videos: dict[str, dict[str, Any]]
    content: dict[str, Any] = field(default_factory=dict)


class _Object(dict):
    """A JSON object that records which of its keys occur twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
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
    classes, videos = content.get("classes", {}), content.get("videos", {})
    problems = _twice("the file", content) + _twice('"classes"', classes)
    if isinstance(videos, dict):
        problems += _twice('"videos"', videos)
        for name, entry in videos.items():
            problems += _twice(name, entry)
    for key in content.keys() - {"classes", "videos"}:  # users may add others, such as a source
        for near in difflib.get_close_matches(key, ("classes", "videos"), n=1):
            problems.append(f'unknown key "{key}"; did you mean "{near}"?')
    if not isinstance(classes, dict) or not all(
        isinstance(names, list) and names and all(isinstance(n, str) for n in names)
        for names in classes.values()
    ):
        problems.append('"classes" must map each action to a list of its phases\' names')
    if not isinstance(videos, dict) or not all(isinstance(v, dict) for v in videos.values()):
        problems.append('"videos" must map each file name to an object')
    if problems:
        raise LabelError(listed(path, problems))
    for name, entry in videos.items():
        problems += [f"{name}: {problem}" for problem in _entry_problems(entry, classes)]
    if problems:
        raise LabelError(listed(path, problems))
    return Labels(classes, videos, content)


def _parse(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if b"\0" in data[:4] or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise LabelError(
                f"{path}: saved as UTF-16 or UTF-32; save it as UTF-8 (Notepad: Save as, Encoding "
                "UTF-8; PowerShell: Out-File -Encoding utf8)"
            )
        text = data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_Object)
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


def _twice(where: str, given: Any) -> list[str]:
    return [
        f"{where}: the key {key!r} is there twice; one would replace the other, remove one"
        for key in getattr(given, "twice", [])
    ]


def match_names(path: Path, labels: Labels, names: Names) -> Labels:
    """Labels under the exact names of the files, however the labels file spells them.

    Raises LabelError for labels of files that are not in the folder, and if a file has two entries.
    """
    videos: dict[str, dict[str, Any]] = {}
    spelt: dict[str, str] = {}
    problems, missing = [], []
    for name, entry in labels.videos.items():
        try:
            video = names.match(name)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if video is None:
            missing.append(name)
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
    return replace(labels, videos=videos)


def phases_of(
    path: Path, labels: Labels, frames: Mapping[str, int], damaged: Iterable[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """int64 phase per frame of each labelled video, from the videos' numbers of frames.

    Frames outside "trim" and from "unlabelled_from" on are unlabelled (-1). Labels of the `damaged`
    videos need not fit: labels beyond the last frame are cut, and frames beyond the end of a list
    are unlabelled. The second result names the videos whose labels did not fit.

    Raises LabelError for labels that do not fit the length of an undamaged video.
    """
    phases, changed, problems = {}, [], []
    damaged = set(damaged)
    for name, entry in labels.videos.items():
        if name not in frames:  # a file that could not be read
            continue
        count = frames[name]
        problem = ""
        if "boundaries" in entry:
            boundaries = [min(boundary, count + 1) for boundary in entry["boundaries"]]
            if boundaries and boundaries[-1] > count:
                problem = (
                    f"boundary {entry['boundaries'][-1]} lies past the video's {count} frames; a "
                    f"phase that is never reached starts at {count}"
                )
            values = np.searchsorted(boundaries, np.arange(count), side="right")
        elif "phases" in entry:
            given = entry["phases"]
            if len(given) != count:
                problem = (
                    f"{len(given)} phases for {count} frames; write one per presented frame, -1 "
                    "for unlabelled frames"
                )
            values = given[:count] + [-1] * (count - len(given))
        else:
            continue
        phases[name] = np.asarray(values, dtype=np.int64)
        end = entry.get("unlabelled_from", count)
        if end > count:
            problem = problem or (
                f"unlabelled_from {end} lies past the video's {count} frames; remove it if all "
                "frames have labels"
            )
        first, last = entry.get("trim", (0, count))
        phases[name][end:] = phases[name][:first] = phases[name][last + 1 :] = -1
        if problem and name in damaged:
            changed.append(name)
        elif problem:
            problems.append(f"{name}: {problem}")
    if problems:
        raise LabelError(listed(path, problems))
    return phases, changed


def _entry_problems(entry: dict[str, Any], classes: dict[str, list[str]]) -> list[str]:
    problems = []
    for key in entry:
        if key not in _VIDEO_KEYS:
            problems.append(f"unknown key {key!r}{known_hint(key, _VIDEO_KEYS)}")
    if entry.get("split", "train") not in _SPLITS:
        problems.append(f"split is {entry['split']!r}, expected 'train' or 'test'")
    action = entry.get("action", "all")
    if not isinstance(action, str):
        problems.append(f"action is {action!r}, expected a name")
        return problems
    view = entry.get("view", "none")
    if not isinstance(view, str) or not view.strip():
        problems.append(f"view is {view!r}, expected a name such as 'ego', or remove the key")
    problems += footage_problems(entry)
    end = entry.get("unlabelled_from", 0)
    if type(end) is not int or end < 0:
        problems.append(
            f"unlabelled_from is {_short(end)}, expected the first frame without a label, counted "
            "from 0"
        )
    elif "unlabelled_from" in entry and "boundaries" not in entry and "phases" not in entry:
        problems.append(
            "unlabelled_from needs 'boundaries' or 'phases'; to exclude frames altogether, use "
            "'trim'"
        )
    for key in ("boundaries", "phases"):
        values = entry.get(key, [])
        if not isinstance(values, list):
            problems.append(f"{key!r} must be a list of whole numbers, got {_short(values)}")
            return problems
        wrong = next((place for place, v in enumerate(values) if type(v) is not int), None)
        if wrong is not None:
            problems.append(
                f"{key!r} must be a list of whole numbers, got {_short(values[wrong])} at place "
                f"{wrong}{_whole(values[wrong])}"
            )
            return problems
    if "boundaries" not in entry and "phases" not in entry:
        return problems
    if "boundaries" in entry and "phases" in entry:
        problems.append("has both 'boundaries' and 'phases'; remove one of them")
    if action not in classes:
        problems.append(
            f'has phases, but "classes" does not list the phases of the action {action!r}; add '
            f'"classes": {{"{action}": ["first phase", ...]}}'
        )
        return problems
    names = len(classes[action])
    boundaries, phases = entry.get("boundaries", []), entry.get("phases", [])
    if any(b < a for a, b in itertools.pairwise(boundaries)):
        problems.append(f"boundaries {boundaries} must not decrease")
    if any(b < 0 for b in boundaries):
        problems.append(f"boundaries {boundaries} must be frame numbers from 0")
    if len(boundaries) > names - 1:
        problems.append(
            f"{len(boundaries)} boundaries make {len(boundaries) + 1} phases, but the action "
            f"{action!r} has {names} ({', '.join(classes[action])})"
        )
    if phases and not -1 <= min(phases) <= max(phases) < names:
        wrong = next(p for p in phases if not -1 <= p < names)
        problems.append(
            f"phase {wrong} at frame {phases.index(wrong)} is out of range: the action {action!r} "
            f"has {names} phases, 0 to {names - 1} (-1 = unlabelled)"
        )
    return problems


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _whole(value: Any) -> str:
    """Advice for a whole number that is written as a float or a string."""
    try:
        number = int(float(value)) if type(value) in (float, str) else None
    except (ValueError, OverflowError):
        return ""
    whole = number is not None and number == float(value)
    return f"; write {number}" if whole else ""


def listed(path: Path | None, problems: list[str]) -> str:
    """The message of a `LabelError`: the first problems, one per line, and the number of others."""
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path}:{shown}{more}"
