"""The rows of an evaluation as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.evaluation.protocols import EVENT_COLUMNS, columns

BELOW_ZERO = "<0"
FEW_SHOT_WORD = " from "  # of `few_shot_key`


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as aligned text, one line each, '-' where a metric is undefined."""
    return format_cells(_cells(rows, _shown(rows)))


def format_tables(rows: Mapping[str, Mapping[str, Any]], width: int) -> str:
    """`format_table` in parts that are read one by one, without the few-shot columns.

    Metrics from one view to another follow in separate tables, headed by the views. A table of more
    than ``width`` characters a line continues below, with the same rows.
    """
    by_heading: dict[str, dict[str, str]] = {}
    for key, title in _shown(rows).items():
        heading = key.partition(" ")[2]
        if FEW_SHOT_WORD not in key:
            short = title.removesuffix(f" {heading}")
            by_heading.setdefault(heading, {})[key] = short
    tables = []
    for heading, shown in by_heading.items():
        parts = map(format_cells, _split(_cells(rows, shown), width))
        tables.append("\n\n".join(parts) if not heading else f"{heading}\n" + "\n\n".join(parts))
    return "\n\n".join(tables)


def columns_without_views(keys: Iterable[str]) -> dict[str, str]:
    """`columns` of the keys, without those of metrics from one view to another."""
    return columns(key for key in keys if " " not in key or FEW_SHOT_WORD in key)


def _shown(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return columns(key for row in rows.values() for key in row["metrics"])


def _cells(rows: Mapping[str, Mapping[str, Any]], shown: Mapping[str, str]) -> list[list[str]]:
    lines = [["", *shown.values()]]
    for name, row in rows.items():
        lines.append([name, *(format_value(row["metrics"].get(key), key) for key in shown)])
    return lines


def _split(lines: Sequence[Sequence[str]], width: int) -> list[list[list[str]]]:
    """The columns behind the first, in as many tables as the width needs."""
    names, *rest = zip(*lines, strict=True)
    blocks: list[list[Sequence[str]]] = []
    for column in rest:
        wider = [*blocks[-1], column] if blocks else []
        if not wider or len(format_cells(_transposed([names, *wider])).splitlines()[0]) > width:
            blocks.append([column])
        else:
            blocks[-1] = wider
    return [_transposed([names, *block]) for block in blocks]


def _transposed(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(line) for line in zip(*lines, strict=True)]


def few_shot_cells(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """The tables of few-shot classification by the key of their score, titles first.

    A cell is the mean, in brackets the standard deviation over the random choices.
    """
    tables: dict[str, list[list[str]]] = {}
    for name, row in rows.items():
        for score, by_count in row.get("few_shot", {}).items():
            table = tables.setdefault(score, [["", *by_count]])
            cells = [
                "-" if _undefined(one["mean"]) else f"{one['mean']:.3f} ({one['std']:.3f})"
                for one in by_count.values()
            ]
            table.append([name, *cells])
    return tables


def event_cells(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The table of events carried over, its titles first; nothing where no row has any event."""
    mean_keys = [mean for _, mean, _ in EVENT_COLUMNS]
    if all(_undefined(row["metrics"].get(key)) for row in rows.values() for key in mean_keys):
        return []
    lines = [["", *(title for title, _, _ in EVENT_COLUMNS)]]
    for name, row in rows.items():
        values = row["metrics"]
        lines.append(
            [name, *(mean_median(values.get(m), values.get(md)) for _, m, md in EVENT_COLUMNS)]
        )
    return lines


def mean_median(mean: float | None, median: float | None) -> str:
    """A cell of the table of events; '-' where one of the two is undefined."""
    return "-" if _undefined(mean) or _undefined(median) else f"{mean:.2f} ({median:.2f})"


def format_cells(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def format_value(value: float | None, key: str = "") -> str:
    """Three decimals, none from 100 on; '-' for a value that is undefined (None or NaN).

    ``key``: of the metric; see `is_below_zero`.
    """
    if _undefined(value):
        return "-"
    if is_below_zero(key, value):
        return BELOW_ZERO
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def is_below_zero(key: str, value: float) -> bool:
    """Whether tables show BELOW_ZERO: how far progression, an R^2, lies below 0 means nothing."""
    return key == "progression" and value < 0


def _singular(reason: str) -> str:
    """A reason with its first noun in the singular: "1 test video whose phases go backwards"."""
    nouns = "|".join(("videos", "pairs", "frames", "columns", "boundaries"))

    def one(found: re.Match[str]) -> str:
        return "boundary" if found[0] == "boundaries" else found[0].removesuffix("s")

    return re.sub(rf"\b({nouns})\b", one, reason, count=1)


def _undefined(value: float | None) -> bool:
    return value is None or math.isnan(value)


def left_out_lines(rows: Mapping[str, Any]) -> list[str]:
    """What was left out of the metrics, one line per reason; by row where the rows differ."""
    reasons = sorted({reason for row in rows.values() for reason in row["left_out"]})
    lines = []
    for reason in reasons:
        counts = {name: Counter(row["left_out"])[reason] for name, row in rows.items()}
        values = set(counts.values())
        if len(values) == 1:
            count = values.pop()
            lines.append(f"{count} {_singular(reason) if count == 1 else reason}")
        else:
            where = ", ".join(f"{count} in {name!r}" for name, count in counts.items() if count)
            lines.append(f"{reason}: {where}")
    return lines
