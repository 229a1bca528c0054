"""The confusion matrix of an evaluation as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.action_scores import worst_classes
from training.support.files import replacing

SHOWN = 30  # classes; more are not readable
_NAME = 28  # characters


def confusion_picture(counts: np.ndarray, names: Sequence[str], file: Path) -> Path:
    """Draw the share of the videos of each class (row) that are classified as each class (column).

    With more than SHOWN classes it has the worst ones, see `worst_classes`, and a last column for
    all other classes.

    Args:
        counts: int64 (C, C), see `training.evaluation.action_scores.confusion_counts`.
    """
    from training.evaluation.plots import INK, new_figure  # loads matplotlib

    shown = worst_classes(counts, SHOWN)
    rows = counts[shown]
    part = rows[:, shown]
    labels = [_short(names[k]) for k in shown]
    columns = list(labels)
    if len(shown) < len(names):
        part = np.concatenate([part, rows.sum(1, keepdims=True) - part.sum(1, keepdims=True)], 1)
        columns.append("other classes")
    shares = part / np.maximum(rows.sum(1, keepdims=True), 1)
    size = max(4.0, 0.28 * len(shown) + 2.6)
    figure = new_figure(size + 0.6, size)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel("classified as", color=INK)
    axes.set_ylabel("action of the video", color=INK)
    for row, column in zip(*np.nonzero(part), strict=True):
        dark = shares[row, column] > 0.5
        axes.text(
            column,
            row,
            str(part[row, column]),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else INK,
        )
    if len(shown) < len(names):
        title = f"the {len(shown)} of {len(names)} classes with the lowest accuracy"
        axes.set_title(title, fontsize=9, color=INK)
    figure.colorbar(image, ax=axes, label="share of the videos of the row", shrink=0.7)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=110, format="png")
    return file


def write_confusion(file: Path, result: Mapping[str, Any]) -> Path | None:
    """Draw the confusion matrix beside an evaluation's file; None if it has none."""
    if "confusion" not in result:
        return None
    from training.runs.folder import picture_beside  # loads torch

    counts = np.array(result["confusion"])
    return confusion_picture(counts, result["classes"], picture_beside(file, "confusion"))


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
