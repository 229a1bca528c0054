"""The rows of an evaluation as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation.protocols import EVENT_COLUMNS, columns

BELOW_ZERO = "<0"
FEW_SHOT_WORD = " from "  # of `few_shot_key`


def format_table(rows: Mapping[str, Mapping[str, Any]], width: int | None = None) -> str:
    """The rows as aligned text, one line each, '-' where a metric is undefined.

    Few-shot columns are those of `few_shot_cells`. ``width``: most characters of a line; a wider
    table is split into several with the same rows.
    """
    shown = columns(
        key for row in rows.values() for key in row["metrics"] if FEW_SHOT_WORD not in key
    )
    lines = [["", *shown.values()]]
    for name, row in rows.items():
        lines.append([name, *(format_value(row["metrics"].get(key), key) for key in shown)])
    blocks: list[list[list[str]]] = [[[line[0]] for line in lines]]
    for column in zip(*(line[1:] for line in lines), strict=True):
        wider = [[*line, cell] for line, cell in zip(blocks[-1], column, strict=True)]
        if width and len(wider[0]) > 2 and len(format_cells(wider).splitlines()[0]) > width:
            wider = [[line[0], cell] for line, cell in zip(lines, column, strict=True)]
            blocks.append(wider)
        else:
            blocks[-1] = wider
    return "\n\n".join(map(format_cells, blocks))


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
            lines.append(f"{values.pop()} {reason}")
        else:
            where = ", ".join(f"{count} in {name!r}" for name, count in counts.items() if count)
            lines.append(f"{reason}: {where}")
    return lines
