"""Metrics of classified videos: top-k accuracy, mean class accuracy, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KS = (1, 5)
WORST = 10  # classes of the printed table


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of scores (..., C)."""
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def ranking(scores: np.ndarray) -> np.ndarray:
    """int64 (N, C): the classes of each video by falling score; of equal scores the first."""
    return np.argsort(-scores, axis=1, kind="stable")


def action_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``top_1``, ``top_5`` and ``mean_class_accuracy`` of scores (N, C) and labels int64 (N,).

    ``top_5`` is NaN for fewer than 5 classes. The mean class accuracy is the mean, over the classes
    that occur in ``labels``, of the share of their videos that are classified correctly.
    """
    order = ranking(scores)
    hits = order == labels[:, None]
    out = {
        f"top_{k}": float(hits[:, :k].any(1).mean()) if k <= scores.shape[1] else float("nan")
        for k in KS
    }
    out["mean_class_accuracy"] = float(
        np.mean([hits[labels == label, 0].mean() for label in np.unique(labels)])
    )
    return out


def confusion_counts(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """int64 (C, C): number of videos of the class of the row that are classified as the column."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def per_class(counts: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each class with videos: their number, the share classified correctly, and the errors.

    ``taken_for``: the classes that its other videos are taken for, the most frequent first, with
    their numbers of videos.
    """
    out = {}
    for row, name in enumerate(names):
        total = int(counts[row].sum())
        if total:
            wrong = counts[row].copy()
            wrong[row] = 0
            order = np.argsort(-wrong, kind="stable")
            out[name] = {
                "videos": total,
                "accuracy": counts[row, row] / total,
                "taken_for": {names[k]: int(wrong[k]) for k in order if wrong[k]},
            }
    return out


def worst_classes(counts: np.ndarray, number: int) -> np.ndarray:
    """int64: the ``number`` classes to show, in their order.

    If there are more classes, those with videos whose share of correctly classified videos is
    lowest, and among equal ones those with more videos.
    """
    if len(counts) <= number:
        return np.arange(len(counts))
    totals = counts.sum(1)
    accuracy = np.divide(counts.diagonal(), totals, where=totals > 0, out=np.full(len(counts), 2.0))
    return np.sort(np.lexsort((-totals, accuracy))[:number])


def class_cells(per_class: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The table of the WORST actions with the lowest accuracy, its titles first."""
    if not per_class:
        return []
    worst = sorted(per_class, key=lambda name: (per_class[name]["accuracy"], name))[:WORST]
    lines = [["", "videos", "accuracy", "taken for"]]
    for name in worst:
        one = per_class[name]
        taken = next(iter(one["taken_for"].items()), None)
        words = "-" if taken is None else f"{taken[0]} ({taken[1]})"
        lines.append([name, str(one["videos"]), f"{one['accuracy']:.3f}", words])
    return lines
