"""The scores of frame embeddings by one of the `protocols`: every metric, action by action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from training.evaluation import metrics
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.options import Options
from training.evaluation.protocols import across_key, few_shot_key, view_pairs

Scores = dict[str, metrics.Score]
ALL_ACTIONS = "all actions"  # the classes of protocol "finegym"


def evaluate_embeddings(
    train: Sequence[EmbeddedVideo],
    test: Sequence[EmbeddedVideo],
    classes: Mapping[str, Sequence[str]],
    *,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """All metrics of one set of embeddings by one of the PROTOCOLS.

    Args:
        train, test: embedded videos; videos without any label are left out and counted.
        classes: phase names per action, as in the index; they determine the number of phases.
        progress: show a bar.
        options: the fields of `training.evaluation.options.Options`.

    Returns:
        ``{"metrics": {name: value}, "per_action": {action: {name: value}}, "left_out": {what:
        n}}``, NaN where a metric is undefined. With few-shot classification also ``"few_shot":
        {name: {count: {"mean": m, "std": s, "episodes": n}}}``: mean and standard deviation over
        the random choices of the mean over actions.
    """
    chosen = Options(**options)
    left_out: Counter[str] = Counter()
    labelled = {
        split: _labelled_by_action(videos, split, left_out, chosen)
        for split, videos in (("training", train), ("test", test))
    }
    if chosen.definition.joint:
        order = {one.record.id: place for place, one in enumerate([*train, *test])}
        labelled = _joined(labelled, classes, order)
    parts: list[tuple[str, str, Callable[[], Scores]]] = []
    for action, videos in labelled["test"].items():
        fitted = labelled["training"].get(action, [])
        num_phases = len(classes.get(action, ())) or _num_phases([*videos, *fitted])
        for what, compute in _parts(fitted, videos, num_phases, chosen, progress).items():
            parts.append((action, what, compute))
    found: dict[str, Scores] = {action: {} for action in labelled["test"]}
    with tqdm(parts, unit="metric", disable=not progress, leave=False) as bar:
        for action, what, compute in bar:
            bar.set_description(f"{action}: {what}")
            found[action] |= compute()
    for scores in found.values():
        for score in scores.values():
            left_out.update(score.left_out)
    if not chosen.definition.joint:
        reason = "test videos without another one of their action (no pair to compare)"
        left_out[reason] += sum(len(videos) < 2 for videos in labelled["test"].values())
    per_action = {
        action: {name: score.value for name, score in scores.items()}
        for action, scores in found.items()
    }
    names = dict.fromkeys(name for row in per_action.values() for name in row)
    means = {
        name: metrics.mean_of_defined(row[name] for row in per_action.values() if name in row)
        for name in names
    }
    result = {"metrics": means, "per_action": per_action, "left_out": +left_out}
    if chosen.few_shot:
        result["few_shot"] = _over_draws(chosen, [*found.values()])
    return result


def _labelled_by_action(
    videos: Sequence[EmbeddedVideo], split: str, left_out: Counter[str], options: Options
) -> dict[str, list[metrics.LabelledVideo]]:
    # Distances and regressions need float64; the frames of FineGym would fill twice the memory.
    dtype = np.float32 if options.definition.classifier == "sgd" else np.float64
    by_action: dict[str, list[metrics.LabelledVideo]] = {}
    for video in videos:
        labelled = metrics.labelled_video(video, dtype)
        if labelled is None:
            left_out[f"{split} videos without labels"] += 1
            continue
        left_out[f"{split} frames without a label"] += len(video.embeddings) - len(labelled.phases)
        by_action.setdefault(video.record.action, []).append(labelled)
    return by_action


def _num_phases(videos: Iterable[metrics.LabelledVideo]) -> int:
    """The number of phases that labels show."""
    return 1 + max((int(video.phases.max()) for video in videos), default=-1)


def _joined(
    labelled: Mapping[str, Mapping[str, Sequence[metrics.LabelledVideo]]],
    classes: Mapping[str, Sequence[str]],
    order: Mapping[str, int],
) -> dict[str, dict[str, list[metrics.LabelledVideo]]]:
    """All videos as those of one action, whose phases are the phases of each action in turn.

    order: id -> place of the video. A share of the training videos is of all actions, not of the
        first ones.
    """
    first, total = {}, 0
    for action in sorted({action for by_action in labelled.values() for action in by_action}):
        videos = [video for by_action in labelled.values() for video in by_action.get(action, ())]
        first[action] = total
        total += len(classes.get(action, ())) or _num_phases(videos)
    return {
        split: {
            ALL_ACTIONS: sorted(
                (
                    replace(video, phases=video.phases + first[action])
                    for action, videos in by_action.items()
                    for video in videos
                ),
                key=lambda video: order[video.id],
            )
        }
        if by_action
        else {}
        for split, by_action in labelled.items()
    }


def _parts(
    train: Sequence[metrics.LabelledVideo],
    test: Sequence[metrics.LabelledVideo],
    num_phases: int,
    options: Options,
    progress: bool,
) -> dict[str, Callable[[], Scores]]:
    """The functions that compute the metrics of one action, by their names in the bar."""
    protocol = options.definition
    functions: dict[str, Callable[[], Scores]] = {
        "classification": partial(_classification, train, test, options, progress),
        "progression": lambda: {
            "progression": metrics.progression(
                train,
                test,
                num_phases,
                last_phase=protocol.last_phase,
                frame_index=options.frame_index,
            )
        },
        "retrieval": lambda: _retrieval(test, options, progress=progress),
    }
    parts = {name: functions[name] for name in options.metrics if name in functions}
    if which := [name for name in options.metrics if name in metrics.PAIR_METRICS]:
        parts["pairs of videos"] = lambda: metrics.pair_scores(
            test, options.stride, which, progress=progress
        )
    if protocol.across_views:
        parts["across views"] = partial(_across_views, train, test, options, progress)
    for count, draws in options.draws.items():
        parts[f"few-shot {count}"] = partial(_few_shot, train, test, options, count, draws)
    return parts


def _classification(
    train: Sequence[metrics.LabelledVideo],
    test: Sequence[metrics.LabelledVideo],
    options: Options,
    progress: bool,
) -> Scores:
    name, classify = options.definition.score, options.classifier() | {"progress": progress}
    scores = {
        f"{name}_at_{fraction:g}": metrics.Score(
            metrics.classification(train, test, fraction, **classify).value
        )
        for fraction in options.fractions[:-1]
    }
    return scores | {name: metrics.classification(train, test, options.fractions[-1], **classify)}


def _retrieval(
    test: Sequence[metrics.LabelledVideo],
    options: Options,
    views: tuple[str, str] | None = None,
    *,
    progress: bool,
) -> Scores:
    stride = options.definition.retrieval_stride or options.stride
    if options.definition.retrieval == "precision":
        found = metrics.precisions_at(test, stride, options.ks, progress=progress)
        return {f"ap_at_{k}": score for k, score in found.items()}
    found = metrics.average_precisions_at(test, stride, options.ks, views, progress=progress)
    return {f"map_at_{k}": score for k, score in found.items()}


def _across_views(
    train: Sequence[metrics.LabelledVideo],
    test: Sequence[metrics.LabelledVideo],
    options: Options,
    progress: bool,
) -> Scores:
    """The metrics from each view of the test videos to each other; empty with fewer than two."""
    scores = {}
    pairs = view_pairs(video.view for video in test)
    for a, b in pairs:
        if "classification" in options.metrics:
            scores[across_key(options.definition.score, (a, b))] = metrics.classification(
                [video for video in train if video.view == a],
                [video for video in test if video.view == b],
                **options.classifier(),
            )
        if "retrieval" in options.metrics:
            for key, score in _retrieval(test, options, (a, b), progress=progress).items():
                scores[across_key(key, (a, b))] = score
    without = sum(not video.view for video in test)
    if scores and without:
        reason = "test videos without a view (in no comparison across views)"
        next(iter(scores.values())).left_out[reason] += without
    return scores


def _few_shot(
    train: Sequence[metrics.LabelledVideo],
    test: Sequence[metrics.LabelledVideo],
    options: Options,
    count: str,
    draws: int,
) -> Scores:
    videos = len(train) // 2 if count == "half" else int(count)
    score = metrics.few_shot(train, test, videos, draws, **options.classifier())
    return {few_shot_key(options.definition.score, count): score}


def _over_draws(options: Options, actions: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over the random choices of the mean over actions."""
    name, out = options.definition.score, {}
    for count, draws in options.draws.items():
        key = few_shot_key(name, count)
        values = [scores[key].draws for scores in actions if scores[key].draws]
        means = np.mean(values, axis=0) if values else np.array([np.nan])
        out[count] = {"mean": float(means.mean()), "std": float(means.std()), "episodes": draws}
    return {name: out}
