"""The scores of frame embeddings by one of the `protocols`: every metric, action by action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation import metrics
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.events import event_errors
from training.evaluation.protocols import (
    FEW_SHOT,
    PROTOCOLS,
    Protocol,
    across_key,
    few_shot_key,
    find_protocol,
    view_pairs,
)
from training.support.command import UserError


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
        train, test: embedded videos; videos without any label are left out and counted.
        classes: phase names per action, as in the index; they determine the number of phases.
        protocol: "carl", "lav", "tcc" or "ae2".
        stride: step in frames of Kendall's tau and, in CARL's protocol, of AP@K (CARL: 5 for
            Pouring, 2 for Penn Action). Default: the protocol's.
        fractions: shares of the training videos for classification. The column shows the last one;
            the others appear as ``classification_at_<fraction>``.
        few_shot: also classify from few training videos, which fits 260 classifiers per action;
            only for a protocol that has it (AE2's).
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
        name: metrics.mean_of_defined(row[name] for row in per_action.values() if name in row)
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
    return scores | event_errors(test)


def _across_views(
    train: list[metrics.LabelledVideo],
    test: list[metrics.LabelledVideo],
    protocol: Protocol,
    stride: int,
) -> dict[str, metrics.Score]:
    """The metrics from each view of the test videos to each other; empty with fewer than two."""
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
