"""One row of the evaluation table: all metrics per action, averaged over actions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation import metrics
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.protocols import (
    FEW_SHOT,
    PROTOCOLS,
    Protocol,
    across_key,
    columns,
    few_shot_key,
    find_protocol,
    view_pairs,
)
from training.support.command import UserError

TIME_INDEX = "time index only"

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
    protocol: str = "carl",
    stride: int | None = None,
    fractions: Sequence[float] = (1.0,),
    few_shot: bool = False,
) -> dict[str, Any]:
    """All metrics of one set of embeddings by one of the PROTOCOLS.

    Args:
        train, test: embedded videos; those without any label are left out and counted.
        classes: phase names per action, as in the index; the number of phases comes from here.
        protocol: "carl", "lav", "tcc" or "ae2".
        stride: every how many frames Kendall's tau looks, with CARL's protocol AP@K too (CARL: 5
            for Pouring, 2 for Penn). Default: the protocol's.
        fractions: shares of the training videos for classification. The column is the last one;
            others appear as ``classification_at_<fraction>``.
        few_shot: classify from few training videos too, which fits 260 classifiers an action; for
            the protocol that has it (AE2's).
    Returns:
        ``{"metrics": {name: value}, "per_action": {action: {name: value}}, "left_out": {what:
        n}}``, NaN where a metric is undefined.
    """
    chosen = find_protocol(protocol)
    stride = chosen.stride if stride is None else stride
    if stride < 1:
        raise UserError(f"stride is {stride}; expected at least 1")
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"fractions are {list(fractions)}; expected numbers in (0, 1]")
    if few_shot and not chosen.few_shot:
        having = ", ".join(name for name, one in PROTOCOLS.items() if one.few_shot)
        raise UserError(f"few-shot classification is part of the protocol {having}, not {protocol}")
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
        train_videos = labelled["training"].get(action, [])
        scores = _scores(train_videos, videos, num_phases, chosen, stride, fractions)
        if chosen.across_views:
            scores |= _across_views(train_videos, videos, chosen, stride)
        if few_shot:
            scores |= _few_shot(train_videos, videos, chosen)
        per_action[action] = {name: score.value for name, score in scores.items()}
        for score in scores.values():
            left_out.update(score.left_out)
        if len(videos) < 2:
            left_out["test videos without another one of their action (no pair to compare)"] += 1
    names = dict.fromkeys(name for row in per_action.values() for name in row)
    means = {
        name: _mean_of_defined(row[name] for row in per_action.values() if name in row)
        for name in names
    }
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
    protocol: Protocol,
    stride: int,
    fractions: Sequence[float],
) -> dict[str, metrics.Score]:
    name = "weighted_f1" if protocol.weighted_f1 else "classification"
    classify = _classifier(protocol)
    scores = {
        f"{name}_at_{fraction:g}": metrics.Score(
            metrics.classification(train, test, fraction, **classify).value
        )
        for fraction in fractions[:-1]
    }
    scores[name] = metrics.classification(train, test, fractions[-1], **classify)
    scores["progression"] = metrics.progression(
        train, test, num_phases, last_phase=protocol.last_phase
    )
    scores["kendalls_tau"] = metrics.kendalls_tau(test, stride)
    retrieval_stride = protocol.retrieval_stride or stride
    for k in protocol.ks:
        if protocol.retrieval == "precision":
            scores[f"ap_at_{k}"] = metrics.precision_at_k(test, retrieval_stride, k)
        else:
            scores[f"map_at_{k}"] = metrics.average_precision_at_k(test, retrieval_stride, k)
    scores["alignment_error"] = metrics.alignment_error(test)
    dtw = metrics.alignment_error(test, "dtw")
    scores["alignment_error_dtw"] = metrics.Score(dtw.value)  # leaves out the same videos
    return scores


def _across_views(
    train: list[metrics.LabelledVideo],
    test: list[metrics.LabelledVideo],
    protocol: Protocol,
    stride: int,
) -> dict[str, metrics.Score]:
    """From each view of the test videos to each other one; nothing where there are not two."""
    scores = {}
    pairs = view_pairs(video.view for video in test)
    for a, b in pairs:
        scores[across_key("weighted_f1", (a, b))] = metrics.classification(
            [video for video in train if video.view == a],
            [video for video in test if video.view == b],
            **_classifier(protocol),
        )
        for k in protocol.ks:
            scores[across_key(f"map_at_{k}", (a, b))] = metrics.average_precision_at_k(
                test, protocol.retrieval_stride or stride, k, views=(a, b)
            )
    without = sum(not video.view for video in test)
    if pairs and without:
        reason = "test videos without a view (in no comparison across views)"
        next(iter(scores.values())).left_out[reason] += without
    return scores


def _few_shot(
    train: list[metrics.LabelledVideo], test: list[metrics.LabelledVideo], protocol: Protocol
) -> dict[str, metrics.Score]:
    return {
        few_shot_key(count): metrics.few_shot(
            train,
            test,
            len(train) // 2 if count == "half" else int(count),
            episodes,
            **_classifier(protocol),
        )
        for count, episodes in FEW_SHOT.items()
    }


def _classifier(protocol: Protocol) -> dict[str, Any]:
    return {"classifier": protocol.classifier, "weighted_f1": protocol.weighted_f1}


def _mean_of_defined(values: Any) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as aligned text, one line each, '-' where a metric is undefined."""
    shown = columns(key for row in rows.values() for key in row["metrics"])
    lines = [["", *shown.values()]]
    for name, row in rows.items():
        lines.append([name, *(format_value(row["metrics"].get(key)) for key in shown)])
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
