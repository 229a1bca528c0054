"""The diagram of the metrics during training, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.evaluation.plots import INK, new_figure, tidy

BEST_COLOUR = "#aa3377"


def metric_curves(
    steps: Sequence[int],
    curves: Mapping[str, tuple[Sequence[float], float | None]],
    file: str | Path,
    *,
    label: str,
    best: int | None = None,
) -> None:
    """One panel for each title: values over training steps, and a dashed line at a constant.

    Args:
        steps: the training steps of all values.
        curves: title -> the values (NaN: undefined) and the time index alone, or None without it.
        file: the PNG file.
        label: the legend's name for the values.
        best: the step of the best checkpoint, marked by a dotted line; None: no mark.
    """
    figure = new_figure(max(2.7 * len(curves), 4.0), 2.6)
    entries = {}
    for axes, (title, (values, constant)) in zip(
        np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True
    ):
        axes.plot(
            steps, values, color="#1f4e79", linewidth=1.6, marker="o", markersize=3, label=label
        )
        if constant is not None:
            axes.axhline(
                constant, color=INK, linewidth=1.0, linestyle="--", label="time index only"
            )
        if best is not None:
            axes.axvline(
                best, color=BEST_COLOUR, linewidth=1.2, linestyle=":", label=f"kept: step {best}"
            )
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel("training step", color=INK, fontsize=9)
        shown = [*values, 0.0, 1e-9, *([] if constant is None else [constant])]
        # Progression has no lower bound, and one very low value would flatten the curve.
        axes.set_ylim(max(-1.0, 1.1 * np.nanmin(shown)), 1.1 * np.nanmax(shown))
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        tidy(axes)
        handles, names = axes.get_legend_handles_labels()
        entries |= zip(names, handles, strict=True)
    figure.legend(
        [*entries.values()],
        [*entries],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.savefig(file, dpi=110)
