"""One row of the evaluation table: all metrics per action, averaged over actions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation import metrics
from training.evaluation.cli import UserError
from training.evaluation.embed import EmbeddedVideo

DEFAULT_STRIDE = 5
RETRIEVAL_KS = (5, 10, 15)
TIME_INDEX = "time index only"

COLUMNS = {
    "classification": "classification",
    "progression": "progression",
    "kendalls_tau": "tau",
    "ap_at_5": "AP@5",
    "ap_at_10": "AP@10",
    "ap_at_15": "AP@15",
    "alignment_error": "alignment error",
    "alignment_error_dtw": "same, by DTW",
}

DEFINITIONS = {
    "classification": (
        "Phase classification, higher is better: share of test frames whose phase a logistic "
        "regression on the embedding gets right, fitted to the labelled training frames of the "
        "same action."
    ),
    "progression": (
        "Phase progression, higher is better, at most 1, no lower bound: mean R^2 of one linear "
        "regression per phase boundary, from the embedding to the time to that boundary as a "
        "share of the video. A video without the phase before a boundary is left out of that "
        "boundary."
    ),
    "kendalls_tau": (
        "Kendall's tau, between -1 and 1: over ordered pairs of test videos of one action, tau-b "
        "between the frame order and the order of the nearest frames in the other video. It asks "
        "whether the order is kept, not whether the matched moment is the right one."
    ),
    "ap_at_5": (
        "AP@5, higher is better: of the 5 nearest frames in the other test videos of the action, "
        "the share that has the same phase, averaged over frames, then videos (a precision at K)."
    ),
    "ap_at_10": "AP@10: as AP@5, with the 10 nearest frames.",
    "ap_at_15": "AP@15: as AP@5, with the 15 nearest frames.",
    "alignment_error": (
        "Alignment error in phases, lower is better: every test frame is matched to the nearest "
        "frame of another test video of the action; the mean difference of the true phase "
        "positions of the two, where a position is the phase number plus the part of the phase "
        "that has passed."
    ),
    "alignment_error_dtw": (
        "Alignment error in phases when the frames are matched by dynamic time warping instead, "
        "the cheapest path that never goes back in time."
    ),
    "mean over actions": (
        "Each metric is computed within one action (classifier and regressions too) and then "
        "averaged over the actions for which it is defined."
    ),
    "stride": (
        "Kendall's tau and AP@K use every stride-th labelled frame of each video; the other "
        "metrics use every labelled frame. Figures are comparable at equal stride only."
    ),
}

ROW_DEFINITIONS = {
    TIME_INDEX: (
        "An embedding made of the frame's share of the video's length alone, as sines and cosines. "
        "It never looks at a picture."
    ),
    "untrained": "The same network and seed before the first training step.",
    "trained": "The network after training.",
    "untrained, positions off": "The untrained network without its positional encoding.",
    "trained, positions off": "The trained network, positional encoding left out at test time.",
}

TAU_REMARK = (
    "Kendall's tau is about 1 for any encoder that knows the frame's position, an untrained one "
    "too: a copy of the clock keeps the order. Do not argue from tau alone."
)


def evaluate_embeddings(
    train: Sequence[EmbeddedVideo],
    test: Sequence[EmbeddedVideo],
    classes: Mapping[str, Sequence[str]],
    *,
    stride: int = DEFAULT_STRIDE,
    fractions: Sequence[float] = (1.0,),
) -> dict[str, Any]:
    """All metrics of one set of embeddings by CARL's protocol.

    Args:
        train, test: embedded videos; those without any label are left out and counted.
        classes: phase names per action, as in the index; the number of phases comes from here.
        stride: every how many frames Kendall's tau and AP@K look (CARL: 5 for Pouring, 2 for Penn).
        fractions: shares of the training videos for classification. The column is the last one;
            others appear as ``classification_at_<fraction>``.
    Returns:
        ``{"metrics": {name: value}, "per_action": {action: {name: value}}, "left_out": {what:
        n}}``, NaN where a metric is undefined.
    """
    if stride < 1:
        raise UserError(f"stride is {stride}; expected at least 1")
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"fractions are {list(fractions)}; expected numbers in (0, 1]")
    left_out: Counter[str] = Counter()
    labelled = {
        split: _labelled_by_action(videos, split, left_out)
        for split, videos in (("training", train), ("test", test))
    }
    per_action = {}
    for action, videos in labelled["test"].items():
        num_phases = len(classes.get(action, ())) or 1 + max(
            int(video.phases.max()) for video in videos + labelled["training"].get(action, [])
        )
        scores = _scores(
            labelled["training"].get(action, []), videos, num_phases, stride, fractions
        )
        per_action[action] = {name: score.value for name, score in scores.items()}
        for score in scores.values():
            left_out.update(score.left_out)
        if len(videos) < 2:
            left_out["test videos without another one of their action (no pair to compare)"] += 1
    names = list(next(iter(per_action.values()), {}))
    means = {name: _mean_of_defined(row[name] for row in per_action.values()) for name in names}
    return {"metrics": means, "per_action": per_action, "left_out": +left_out}


def _labelled_by_action(
    videos: Sequence[EmbeddedVideo], split: str, left_out: Counter[str]
) -> dict[str, list[metrics.LabelledVideo]]:
    by_action: dict[str, list[metrics.LabelledVideo]] = {}
    for video in videos:
        labelled = metrics.labelled_video(video)
        if labelled is None:
            left_out[f"{split} videos without labels"] += 1
            continue
        left_out[f"{split} frames without a label"] += len(video.embeddings) - len(labelled.phases)
        by_action.setdefault(video.record.action, []).append(labelled)
    return by_action


def _scores(
    train: list[metrics.LabelledVideo],
    test: list[metrics.LabelledVideo],
    num_phases: int,
    stride: int,
    fractions: Sequence[float],
) -> dict[str, metrics.Score]:
    scores = {
        f"classification_at_{fraction:g}": metrics.Score(
            metrics.classification(train, test, fraction).value
        )
        for fraction in fractions[:-1]
    }
    scores["classification"] = metrics.classification(train, test, fractions[-1])
    scores["progression"] = metrics.progression(train, test, num_phases)
    scores["kendalls_tau"] = metrics.kendalls_tau(test, stride)
    for k in RETRIEVAL_KS:
        scores[f"ap_at_{k}"] = metrics.precision_at_k(test, stride, k)
    scores["alignment_error"] = metrics.alignment_error(test)
    dtw = metrics.alignment_error(test, "dtw")
    scores["alignment_error_dtw"] = metrics.Score(dtw.value)  # leaves out the same videos
    return scores


def _mean_of_defined(values: Any) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as aligned text, one line each, '-' where a metric is undefined."""
    lines = [["", *COLUMNS.values()]]
    for name, row in rows.items():
        lines.append([name, *(format_value(row["metrics"].get(key)) for key in COLUMNS)])
    return format_cells(lines)


def format_cells(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def format_value(value: float | None) -> str:
    """Three decimals, none from 100 on; '-' for a value that is undefined (None or NaN)."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
