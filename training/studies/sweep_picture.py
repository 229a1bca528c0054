"""The picture of a sweep: each metric over the values of the first key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.studies.sweep import shown_columns

_PANELS = 4  # metrics shown
_WIDE = 30  # ratio of the largest to the smallest value from which the axis is logarithmic


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write OUT/sweep.png: a panel for each of the first metrics of the table.

    The axis has the values of the first swept key; each combination of the others has a colour.
    Bars are one standard deviation over the seeds. Lines join numbers, not names.
    """
    from matplotlib.figure import Figure

    from training.evaluation.plots import PHASE_COLOURS

    key = next(iter(content["swept"]))
    values = content["swept"][key]
    numbers = _numbers(values)
    places = dict(zip(values, numbers or range(len(values)), strict=True))
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for point in content["points"]:
        others = [f"{name}={value}" for name, value in point["values"].items() if name != key]
        lines.setdefault("\n".join(others), []).append(point)
    shown = [*shown_columns(content).items()][:_PANELS]
    many = len(shown) > 1
    height = 3.4 * -(-len(shown) // 2)
    picture = Figure(figsize=(8.6 if many else 4.6, height), layout="constrained")
    panels = [*picture.subplots(-(-len(shown) // 2), 2 if many else 1, squeeze=False).flat]
    for axes, (metric, title) in zip(panels, shown, strict=False):
        for number, (name, points) in enumerate(lines.items()):
            found = [
                (places[point["values"][key]], stat["mean"], stat["std"] or 0.0)
                for point in points
                if (stat := point["metrics"].get(metric)) and stat["mean"] is not None
            ]
            if found:
                x, y, spread = zip(*sorted(found), strict=True)
                colour = PHASE_COLOURS[number % len(PHASE_COLOURS)]
                style = {"fmt": "o-" if numbers else "o", "capsize": 3, "color": colour}
                axes.errorbar(x, y, spread, label=name, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(key)
        if numbers and min(numbers) > 0 and max(numbers) > _WIDE * min(numbers):
            axes.set_xscale("log")
        axes.set_xticks([*places.values()], values)
        axes.minorticks_off()
        if not numbers:
            axes.set_xlim(-0.5, len(values) - 0.5)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    if len(lines) > 1:
        handles, labels = picture.axes[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    picture.savefig(path, dpi=120)


def _numbers(values: list[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None
