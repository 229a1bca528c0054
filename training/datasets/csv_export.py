"""Writes a labels file as a table that `python -m training.labels csv` reads."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from training.data.files import LABELS_NAME
from training.support.command import UserError
from training.support.files import replacing

_COLUMNS = ("path", "split", "action", "view", "start", "end", "phase")
# Keys of an entry that rows have; all others are named.
_HELD = {
    *("action", "split", "view", "boundaries", "phases", "segments", "unlabelled_from"),
    *("unit", "labels"),
}
_SHOWN = 5


def write_table(source: Path, target: Path, overwrite: bool) -> list[str]:
    """Write a row per labelled stretch; lines that count the rows and name what they cannot have.

    Of several class sets the first is written. A column "unit" is added if any entry is in seconds,
    so that the table cannot be read as frames.

    Raises UserError for a file that is not a labels file, and for an existing target.
    """
    from training.data.labels import read_labels

    path = source / LABELS_NAME if source.is_dir() else source
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; --overwrite replaces it")
    content = read_labels(path).content
    sets = content.get("class_sets") or {"": content.get("classes", {})}
    chosen = next(iter(sets))
    lost: dict[str, list[str]] = defaultdict(list)
    for name in [*sets][1:]:
        lost[f"class set {name}"] = []
    for key in content.keys() - {"classes", "class_sets", "videos", "unit"}:
        lost[f"key {key} of the file"] = []
    rows, units, used = [], set(), defaultdict(set)
    for name, entry in content.get("videos", {}).items():
        for key in entry.keys() - _HELD:
            lost[key].append(name)
        own = {**entry, **entry.get("labels", {}).get(chosen, {})}
        action = own.get("action", "all")
        unit = own.get("unit", content.get("unit", "frames"))
        first = [name, own.get("split", ""), own.get("action", ""), own.get("view", "")]
        names = sets[chosen].get(action, [])
        stretches = [*_stretches(own)]
        for start, end, phase in stretches:
            phase = names[phase] if isinstance(phase, int) else phase
            used[action].add(phase)
            rows.append([*first, start, end, phase, unit])
            units.add(unit)
        if not stretches:
            rows.append([*first, "", "", "", ""])
    for action, names in sets[chosen].items():
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            lost[f"which of the phases of one name of {action}"] = twice
        if unused := [name for name in names if name not in used[action]]:
            lost[f"phases of {action} that no video shows"] = unused
    columns = [*_COLUMNS, "unit"] if "seconds" in units else [*_COLUMNS]
    with replacing(target) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(row[: len(columns)] for row in rows)
    lines = [f"written: {target}: {len(content.get('videos', {}))} videos, {len(rows)} rows"]
    for what, names in lost.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        listed = f": {', '.join(names[:_SHOWN])}{more}" if names else ""
        lines.append(f"not in the table: {what}{listed}")
    if used:
        lines.append(f"--classes {path} keeps the order of the phases when the table is read")
    return lines


def _stretches(entry: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(start, end or "", phase) of an entry's labels, without empty and unlabelled ones."""
    limit = entry.get("unlabelled_from")
    for start, end, phase in _given(entry):
        if limit is not None and (end == "" or end > limit):
            end = limit
        if phase != -1 and (end == "" or start < end):
            yield start, end, phase


def _given(entry: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    if "boundaries" in entry:
        starts = [0, *entry["boundaries"]]
        for phase, start in enumerate(starts):
            yield start, starts[phase + 1] if phase + 1 < len(starts) else "", phase
    elif "phases" in entry:
        start = 0
        for phase, run in groupby(entry["phases"]):
            end = start + len([*run])
            yield start, end, phase
            start = end
    else:
        for segment in entry.get("segments", ()):
            yield tuple(segment)
