"""The counts of a data set that was read and written, for people."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from training.datasets.dataset import DataSet
from training.datasets.write import Written

_SHOWN = 10
_ACTIONS = 20
_LABEL_KEYS = ("boundaries", "phases", "segments", "labels")


def summary(data_set: DataSet, written: Written, *, every: bool = False) -> list[str]:
    """The counts of a data set in a few lines.

    Args:
        every: show every name instead of the first 10 of each kind.
    """
    entries = written.entries.values()
    labelled = sum(any(key in entry for key in _LABEL_KEYS) for entry in entries)
    lines = [
        f"videos: {len(entries)}",
        f"  splits: {_counts(_splits(entries))}",
        f"  actions: {_counts((entry.get('action', 'all') for entry in entries), every)}",
        f"  with phase labels: {labelled}",
    ]
    if units := [
        one.get("unit", "frames") for one in entries if any(key in one for key in _LABEL_KEYS)
    ]:
        lines.append(f"  unit of the labels: {_counts(units)}")
    if views := [entry["view"] for entry in entries if "view" in entry]:
        lines.insert(3, f"  views: {_counts(views)}")
    for text, names in data_set.remarks.items():
        lines += _named(f"remark: {text}", names, every)
    lines += _grouped("left out", data_set.unused, every)
    lines += _grouped("missing", data_set.missing, every)
    lines += _grouped("not written", written.failed, every)
    if written.made or written.kept:
        lines.append(f"written now: {written.made}, kept from before: {written.kept}")
    if written.labels is None:
        lines.append("nothing was written (--dry-run)")
    else:
        lines.append(f"written: {written.labels}")
        lines.append(f"next: python -m training.prepare {shlex.quote(str(written.labels.parent))}")
    return lines


def _splits(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One split a video; with class sets, one a video and class set."""
    for entry in entries:
        sets = {key: one for key, one in entry.get("labels", {}).items() if "split" in one}
        yield from (f"{key} {one['split']}" for key, one in sets.items())
        if not sets:
            yield entry.get("split", "train")


def _counts(values: Iterable[str], every: bool = True) -> str:
    counted = [f"{name} {count}" for name, count in sorted(Counter(values).items())]
    shown = counted if every or len(counted) <= _ACTIONS else counted[:_SHOWN]
    more = f" and {len(counted) - len(shown)} more (--all)" if len(counted) > len(shown) else ""
    return f"{', '.join(shown)}{more}" or "none"


def _grouped(title: str, reasons: Mapping[str, str], every: bool) -> list[str]:
    groups = defaultdict(list)
    for name, reason in reasons.items():
        groups[reason].append(name)
    lines = []
    for reason, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines += _named(f"{title}: {reason}", names, every)
    return lines


def _named(title: str, names: list[str], every: bool) -> list[str]:
    shown = names if every else names[:_SHOWN]
    more = f" and {len(names) - len(shown)} more (--all)" if len(names) > len(shown) else ""
    return [f"{title} ({len(names)}): {', '.join(shown)}{more}"]
