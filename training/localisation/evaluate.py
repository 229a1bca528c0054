"""The rows of the table: BMN, and what tells whether its figures mean anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.localisation.annotations import Annotated
from training.localisation.fit import (
    Options,
    SegmentClassifier,
    in_seconds,
    proposals_of,
    train_bmn,
)
from training.localisation.metrics import (
    THRESHOLDS,
    Recall,
    average_recall,
    mean_average_precision,
)
from training.localisation.proposals import uniform_windows

BMN_ROW = "BMN"
RANDOM_ROW = "BMN on random features"
UNIFORM_ROW = "uniform windows"
ROWS = {
    BMN_ROW: "BMN trained on the features.",
    RANDOM_ROW: (
        "BMN trained on standard normal numbers in place of the features: what the lengths and "
        "places of the segments alone reveal."
    ),
    UNIFORM_ROW: (
        "100 windows of 1/1 to 1/10 of the video, the same in each; longer ones first. Their "
        "classes are predicted from the features."
    ),
}
SHOWN = {"AR@1": 1, "AR@10": 10, "AR@100": 100}
PRECISIONS = (0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class Row:
    """The result of one row.

    Attributes:
        recall: of the proposals.
        metrics: AUC, AR@1, AR@10, AR@100, mAP@0.5, mAP@0.75, mAP@0.95 and the average mAP, each
            from 0 to 1.
        detections: video -> (float64 (n, 3) of start and end in seconds and score, n classes).
        proposals: video -> float64 (n, 3), before classification.
        losses: mean loss of each epoch; empty without a training.
    """

    recall: Recall
    metrics: dict[str, float]
    detections: dict[str, tuple[np.ndarray, list[str]]]
    proposals: dict[str, np.ndarray]
    losses: list[float]


def evaluate_rows(
    features: Mapping[str, np.ndarray],
    train: Sequence[Annotated],
    test: Sequence[Annotated],
    options: Options,
    *,
    random_row: bool = True,
) -> tuple[dict[str, Row], Any]:
    """Train on some videos, score proposals on others; also returns the BMN.

    Args:
        features: video -> float32 (T, F).
        random_row: whether to train a second BMN, on random features.
    """
    model, losses = train_bmn(features, train, options)
    classify = SegmentClassifier(features, train)
    rows = {BMN_ROW: _row(proposals_of(model, features, test), features, test, classify, losses)}
    if random_row:
        noise = _noise(features, options.seed)
        other, losses = train_bmn(noise, train, options, title="training on random features")
        found = proposals_of(other, noise, test)
        rows[RANDOM_ROW] = _row(found, noise, test, SegmentClassifier(noise, train), losses)
    windows = {video.name: in_seconds(uniform_windows(), video) for video in test}
    rows[UNIFORM_ROW] = _row(windows, features, test, classify, [])
    return rows, model


def _noise(features: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 7])
    return {
        name: rng.standard_normal(one.shape).astype(np.float32) for name, one in features.items()
    }


def _row(
    proposals: dict[str, np.ndarray],
    features: Mapping[str, np.ndarray],
    test: Sequence[Annotated],
    classify: SegmentClassifier,
    losses: list[float],
) -> Row:
    detections = {
        video.name: classify(features[video.name], proposals[video.name], video) for video in test
    }
    recall = average_recall({video.name: video.segments for video in test}, proposals)
    precision = mean_average_precision(
        {video.name: (video.segments, video.labels) for video in test}, detections
    )
    by_threshold = np.mean([*precision.values()], axis=0)
    metrics = {"AUC": recall.auc} | {name: recall.at(number) for name, number in SHOWN.items()}
    for threshold in PRECISIONS:
        level = int(np.abs(THRESHOLDS - threshold).argmin())
        metrics[f"mAP@{threshold:g}"] = float(by_threshold[level])
    metrics["average mAP"] = float(by_threshold.mean())
    return Row(recall, metrics, detections, proposals, losses)


def results_json(detections: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> dict[str, Any]:
    """Classified proposals in the form that ActivityNet's eval_detection.py reads."""
    return _activitynet_form(
        {
            name: [
                entry | {"label": label}
                for entry, label in zip(_entries(rows), labels, strict=True)
            ]
            for name, (rows, labels) in detections.items()
        }
    )


def proposals_json(proposals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Proposals with BMN's scores in the form that ActivityNet's eval_proposal.py reads."""
    return _activitynet_form({name: _entries(rows) for name, rows in proposals.items()})


def _entries(rows: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"score": float(score), "segment": [float(start), float(end)]} for start, end, score in rows
    ]


def _activitynet_form(results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "version": "VERSION 1.3",
        "results": {name.removeprefix("v_"): entries for name, entries in results.items()},
        "external_data": {},
    }


def table(rows: Mapping[str, Row]) -> str:
    """The metrics in percent: two tables of aligned columns, of proposals and of detection."""
    from training.evaluation.tables import format_cells

    parts = []
    for metrics in (("AUC", *SHOWN), (*(f"mAP@{t:g}" for t in PRECISIONS), "average mAP")):
        cells = [["", *metrics]]
        for name, row in rows.items():
            cells.append([name, *(f"{100 * row.metrics[metric]:.1f}" for metric in metrics)])
        parts.append(format_cells(cells))
    return "\n\n".join(parts)
