"""Checks of one entry of a labels file, without its video."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from training.data.footage import footage_problems
from training.data.label_values import (
    SPLITS,
    UNITS,
    in_seconds,
    is_time,
    known_hint,
    listed_names,
    shown,
    time_advice,
    whole_advice,
)

Classes = Mapping[str, Sequence[str]]  # action -> names of its phases, in order

FORMS = ("boundaries", "segments", "phases")  # the ways to write the phases of a video
_PART_KEYS = (*FORMS, "split")
ENTRY_KEYS = (
    *("action", "split", "view", *FORMS, "labels", "unlabelled_from"),
    *("unit", "trim", "crop", "sync", "fps", "remark"),
)
_KNOWN = frozenset(ENTRY_KEYS)


def has_phases(part: Mapping[str, Any]) -> bool:
    """Whether an entry, or its part of one class set, has phases itself."""
    return "boundaries" in part or "phases" in part or "segments" in part


def parts_of(entry: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """class set -> what has the phases; the name of the set is "" if the entry itself has them."""
    return {"": entry} if has_phases(entry) else entry.get("labels", {})


def entry_problems(entry: Mapping[str, Any], class_sets: Mapping[str, Classes]) -> list[str]:
    """Messages about an entry, which has "unit" where its times are in seconds.

    Args:
        class_sets: class set -> action -> names of phases; the name of the set is "" in a file with
            "classes".
    """
    problems = []
    if not _KNOWN.issuperset(entry):
        for key in entry:
            if key not in ENTRY_KEYS:
                problems.append(f"unknown key {key!r}{known_hint(key, ENTRY_KEYS)}")
    problems += _split_problems(entry)
    action = entry.get("action", "all")
    if not isinstance(action, str):
        problems.append(f"action is {action!r}, expected a name")
    view = entry.get("view", "none")
    if not isinstance(view, str) or not view.strip():
        problems.append(f"view is {view!r}, expected a name such as 'ego', or remove the key")
    fps = entry.get("fps", 1)
    if type(fps) not in (int, float) or not 0 < fps < math.inf:
        problems.append(
            f"fps is {shown(fps)}, expected the frames per second of a folder of pictures, such "
            "as 25"
        )
    unit = entry.get("unit", "frames")
    if unit not in UNITS:
        return [*problems, unit_problem(unit)]
    problems += footage_problems(entry)
    problems += _end_problems(entry)
    if not isinstance(action, str):
        return problems
    if "labels" in entry:
        problems += _set_problems(entry, action, class_sets)
    elif has_phases(entry) and "" not in class_sets:
        names = ", ".join(class_sets)
        problems.append(
            f"has phases beside the class sets of the file ({names}); write them into the set that "
            f'they belong to: "labels": {{"{next(iter(class_sets), "name")}": '
            f'{{"{next(key for key in FORMS if key in entry)}": ...}}}}'
        )
    else:
        problems += _phase_problems(entry, action, class_sets.get("", {}), in_seconds(entry))
    return problems


def unit_problem(unit: Any) -> str:
    """The message about a unit that is not one of UNITS."""
    return f"unit is {shown(unit)}{known_hint(str(unit), UNITS)}"


def _split_problems(part: Mapping[str, Any]) -> list[str]:
    if part.get("split", "train") in SPLITS:
        return []
    return [f"split is {part['split']!r}, expected 'train', 'val' or 'test'"]


def _end_problems(entry: Mapping[str, Any]) -> list[str]:
    """Messages about unlabelled_from."""
    if "unlabelled_from" not in entry:
        return []
    end = entry["unlabelled_from"]
    seconds = in_seconds(entry)
    if not is_time(end, seconds) or end < 0:
        what = "seconds" if seconds else "frames"
        return [
            f"unlabelled_from is {shown(end)}, expected the first frame without a label, in {what} "
            "from 0"
        ]
    if not parts_of(entry):
        return [
            "unlabelled_from needs 'boundaries', 'segments' or 'phases'; to exclude frames "
            "altogether, use 'trim'"
        ]
    return []


def _set_problems(
    entry: Mapping[str, Any], action: str, class_sets: Mapping[str, Classes]
) -> list[str]:
    """Messages about "labels", the phases of several class sets."""
    labels = entry["labels"]
    if "" in class_sets:
        return [
            '"labels" needs "class_sets" at the top of the file, where this file has "classes"; '
            "write boundaries, segments or phases into the entry itself"
        ]
    problems = [
        f'has both "labels" and {key!r}; move the latter into a class set'
        for key in FORMS
        if key in entry
    ]
    if not isinstance(labels, dict) or not all(isinstance(one, dict) for one in labels.values()):
        problems.append(
            f'"labels" is {shown(labels)}, expected an object such as '
            f'{{"{next(iter(class_sets), "name")}": {{"segments": [[0, 25, 0]]}}}}'
        )
        return problems
    for key in getattr(labels, "twice", ()):
        problems.append(f"labels: the key {key!r} is there twice; remove one")
    for name, part in labels.items():
        found = [f"the key {key!r} is there twice; remove one" for key in _twice(part)]
        if name not in class_sets:
            hint = known_hint(name, [*class_sets])
            found.append(f'"class_sets" does not declare this set{hint}')
        else:
            for key in part:
                if key not in _PART_KEYS:
                    found.append(f"unknown key {key!r}{known_hint(key, _PART_KEYS)}")
            found += _split_problems(part)
            found += _phase_problems(part, action, class_sets[name], in_seconds(entry), name)
        problems += [f"labels of {name!r}: {problem}" for problem in found]
    return problems


def _twice(value: Any) -> Sequence[str]:
    return getattr(value, "twice", ())


def _phase_problems(
    part: Mapping[str, Any], action: str, classes: Classes, seconds: bool, class_set: str = ""
) -> list[str]:
    """Messages about boundaries, segments and phases."""
    given = [key for key in FORMS if key in part]
    if not given:
        return []
    problems = []
    formed = []
    for key in given:
        if found := _form_problems(key, part[key], seconds):
            problems += found
        else:
            formed.append(key)
    if len(given) > 1:
        problems.append(f"has both {given[0]!r} and {given[1]!r}; remove one of them")
    if action not in classes:
        where = f'"class_sets": {{"{class_set}": ' if class_set else '"classes": '
        problems.append(
            f"has phases, but {where.split(':')[0]} does not list the phases of the action "
            f'{action!r}; add {where}{{"{action}": ["first phase", ...]}}' + "}" * bool(class_set)
        )
    names = classes.get(action)  # None: only the times can be checked
    if "boundaries" in formed:
        problems += _boundary_problems(part["boundaries"], action, names, seconds)
    if "segments" in formed:
        problems += _segment_problems(part["segments"], action, names, seconds)
    phases = part["phases"] if "phases" in formed and names else ()
    if phases and not -1 <= min(phases) <= max(phases) < len(names):
        wrong = next(p for p in phases if not -1 <= p < len(names))
        problems.append(
            f"phase {wrong} at frame {phases.index(wrong)} {_out_of_range(action, names)} (-1 = "
            "unlabelled)"
        )
    return problems


def _form_problems(key: str, values: Any, seconds: bool) -> list[str]:
    """Messages about the form of boundaries, segments or phases."""
    if key == "segments":
        return _segment_form(values, seconds)
    timed = seconds and key == "boundaries"
    kind = "seconds" if timed else "whole numbers"
    if not isinstance(values, list):
        return [f"{key!r} must be a list of {kind}, got {shown(values)}"]
    if {*map(type, values)} <= {int}:
        return []
    wrong = next((k for k, v in enumerate(values) if not is_time(v, timed)), None)
    if wrong is None:
        return []
    advice = (time_advice if key == "boundaries" else whole_advice)(values[wrong])
    got = f"{shown(values[wrong])} at place {wrong}{advice}"
    return [f"{key!r} must be a list of {kind}, got {got}"]


def _boundary_problems(
    boundaries: Sequence[float], action: str, names: Sequence[str] | None, seconds: bool
) -> list[str]:
    problems = []
    if any(b < a for a, b in itertools.pairwise(boundaries)):
        problems.append(f"boundaries {boundaries} must not decrease")
    if boundaries and min(boundaries) < 0:
        kind = "seconds" if seconds else "frame numbers"
        problems.append(f"boundaries {boundaries} must be {kind} from 0")
    if names is not None and len(boundaries) > len(names) - 1:
        problems.append(
            f"{len(boundaries)} boundaries make {len(boundaries) + 1} phases, but the action "
            f"{action!r} has {len(names)} ({listed_names(names)})"
        )
    return problems


def _segment_form(segments: Any, seconds: bool) -> list[str]:
    example = '[[1.2, 3.4, "reach"]]' if seconds else '[[30, 85, "reach"]]'
    if not isinstance(segments, list):
        return [f"'segments' must be a list such as {example}, got {shown(segments)}"]
    problems = []
    kind = "seconds" if seconds else "whole frame numbers"
    for place, one in enumerate(segments):
        if not isinstance(one, list) or len(one) != 3 or type(one[2]) not in (int, str):
            problems.append(
                f"segment {place} is {shown(one)}, expected [start, stop, phase] with the number "
                f"or the name of a phase, as in {example}"
            )
            continue
        wrong = next((time for time in one[:2] if not is_time(time, seconds)), one)
        if wrong is not one:
            problems.append(
                f"segment {place} is {shown(one)}, expected {kind}, got {shown(wrong)}"
                f"{time_advice(wrong)}"
            )
    return problems


def _segment_problems(
    segments: Sequence[Sequence[Any]], action: str, names: Sequence[str] | None, seconds: bool
) -> list[str]:
    problems = []
    wrong: dict[Any, int] = {}
    tolerance = 1e-6 if seconds else 0  # of decimals that are added up
    end, ascending = 0.0, True
    for place, (start, stop, phase) in enumerate(segments):
        if start < 0 or start >= stop:
            problems.append(_segment_times(place, segments[place]))
        if names is not None and not (
            phase in names if isinstance(phase, str) else 0 <= phase < len(names)
        ):
            wrong.setdefault(phase, place)
        ascending = ascending and start >= end - tolerance
        end = stop
    in_order = not problems
    for phase, place in wrong.items():
        if isinstance(phase, str):
            problems.append(
                f"segment {place}: the action {action!r} has no phase {phase!r}"
                f"{known_hint(phase, names)}"
            )
        else:
            problems.append(
                f"segment {place}: phase {phase} {_out_of_range(action, names)}; frames outside "
                "of segments are unlabelled"
            )
    if ascending or not in_order:
        return problems
    for before, after in itertools.pairwise(sorted(segments, key=lambda one: one[:2])):
        if after[0] < before[1] - tolerance:
            problems.append(
                f"the segments {shown(before)} and {shown(after)} overlap; a frame has one phase"
            )
    return problems


def _segment_times(place: int, segment: Sequence[Any]) -> str:
    start, stop = segment[:2]
    if start < 0:
        return f"segment {place} is {shown(segment)}, but times count from 0"
    advice = f"write [{stop}, {start}, ...]" if start > stop else "remove it"
    return (
        f"segment {place} is {shown(segment)}: its stop, which is not included, must lie after its "
        f"start; {advice}"
    )


def _out_of_range(action: str, names: Sequence[str]) -> str:
    return f"is out of range: the action {action!r} has {len(names)} phases, 0 to {len(names) - 1}"
