"""The labels file: actions, splits and phases of the videos in a folder (see README.md)."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_VIDEO_KEYS = ("action", "split", "view", "boundaries", "phases", "remark")
_SPLITS = ("train", "test")
_SHOWN = 20


class LabelError(ValueError):
    """A labels file that does not fit; the message names each entry and how to put it right."""


@dataclass(frozen=True)
class Labels:
    classes: dict[str, list[str]]
    videos: dict[str, dict[str, Any]]


def read_labels(path: Path) -> Labels:
    """Read a labels file and check its form, not yet against the videos.

    Raises:
        LabelError: not JSON, or not of the documented form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabelError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise LabelError(f'{path}: expected an object with "classes" and "videos"')
    classes, videos = content.get("classes", {}), content.get("videos", {})
    problems = []
    for key in content.keys() - {"classes", "videos"}:  # others may say where labels come from
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
        raise LabelError(_listed(path, problems))
    for name, entry in videos.items():
        problems += [f"{name}: {problem}" for problem in _entry_problems(entry, classes)]
    if problems:
        raise LabelError(_listed(path, problems))
    return Labels(classes, videos)


def check_names(path: Path, labels: Labels, known: set[str]) -> None:
    """Raise LabelError for labels of files that are not in the folder."""
    problems = []
    for name in labels.videos:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else "remove the entry or add the file"
            problems.append(f"{name}: no such video in the folder; {advice}")
    if problems:
        raise LabelError(_listed(path, problems))


def phases_of(path: Path, labels: Labels, frames: Mapping[str, int]) -> dict[str, np.ndarray]:
    """int64 phase per frame of each labelled video, given the videos' numbers of frames.

    Raises LabelError for labels that do not fit a video's length.
    """
    phases, problems = {}, []
    for name, entry in labels.videos.items():
        if name not in frames:  # a file that could not be read
            continue
        count = frames[name]
        if "boundaries" in entry:
            boundaries = entry["boundaries"]
            if boundaries and boundaries[-1] > count:
                problems.append(
                    f"{name}: boundary {boundaries[-1]} lies past the video's {count} frames; a "
                    f"phase that is never reached starts at {count}"
                )
                continue
            phases[name] = np.searchsorted(boundaries, np.arange(count), side="right")
        elif "phases" in entry:
            if len(entry["phases"]) != count:
                problems.append(
                    f"{name}: {len(entry['phases'])} phases for {count} frames; give one per "
                    "presented frame, -1 where unlabelled"
                )
                continue
            phases[name] = np.asarray(entry["phases"], dtype=np.int64)
    if problems:
        raise LabelError(_listed(path, problems))
    return {name: array.astype(np.int64) for name, array in phases.items()}


def _entry_problems(entry: dict[str, Any], classes: dict[str, list[str]]) -> list[str]:
    problems = []
    for key in entry:
        if key not in _VIDEO_KEYS:
            near = difflib.get_close_matches(key, _VIDEO_KEYS, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(_VIDEO_KEYS)}"
            problems.append(f"unknown key {key!r}{hint}")
    if entry.get("split", "train") not in _SPLITS:
        problems.append(f"split is {entry['split']!r}, expected 'train' or 'test'")
    action = entry.get("action", "all")
    if not isinstance(action, str):
        problems.append(f"action is {action!r}, expected a name")
        return problems
    view = entry.get("view", "none")
    if not isinstance(view, str) or not view.strip():
        problems.append(f"view is {view!r}, expected a name such as 'ego', or no such key")
    for key in ("boundaries", "phases"):
        values = entry.get(key)
        if values is not None and not (
            isinstance(values, list) and all(type(v) is int for v in values)
        ):
            problems.append(f"{key!r} must be a list of whole numbers")
            return problems
    if "boundaries" not in entry and "phases" not in entry:
        return problems
    if "boundaries" in entry and "phases" in entry:
        problems.append("give 'boundaries' or 'phases', not both")
    if action not in classes:
        problems.append(
            f'has phases, but "classes" does not name those of the action {action!r}; add '
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


def _listed(path: Path, problems: list[str]) -> str:
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path}:{shown}{more}"
