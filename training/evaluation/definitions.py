"""A sentence about each protocol and each of its columns, for evaluation.json and the report."""

from __future__ import annotations

from collections.abc import Iterable

from training.evaluation.linear_probe import BATCH_VIDEOS, MOMENTUM, WEIGHT_DECAY
from training.evaluation.options import Options
from training.evaluation.protocols import across_key, few_shot_key, view_pairs


def definitions(options: Options, views: Iterable[str] = ()) -> dict[str, str]:
    """The protocol's source, and the definition of each metric that ``options`` computes.

    views: names of the views of the test videos.
    """
    protocol = options.definition
    out = {"protocol": protocol.source}
    if "classification" in options.metrics:
        out |= _classification(options)
    if "progression" in options.metrics:
        out["progression"] = _progression(options)
    if "tau" in options.metrics:
        out["kendalls_tau"] = (
            "Kendall's tau, between -1 and 1: over ordered pairs of test videos of one action, "
            "tau-b between the frame order and the order of the nearest frames in the other video. "
            "It measures whether the order is kept, not whether the matched moment is the right "
            "one."
        )
    if "retrieval" in options.metrics:
        out |= {_retrieval_key(options, k): _retrieval(options, k) for k in options.ks}
    if protocol.across_views:
        out |= _across_views(options, view_pairs(views))
    place = "training videos" if protocol.joint else "training videos of the action"
    for count, draws in options.draws.items():
        score = "F1" if protocol.weighted_f1 else "accuracy"
        out[few_shot_key(protocol.score, count)] = (
            f"The {score} of a classifier fitted to {count} of the {place}: mean over {draws} "
            "random choices with seeds from 42 on, the same for all embeddings. The standard "
            "deviation is over the choices."
        )
    if "alignment" in options.metrics:
        out |= _ALIGNMENT
    if "events" in options.metrics:
        out |= _EVENTS
    out["embeddings"] = "Embeddings have unit length and distances are Euclidean."
    out["mean over actions"] = (
        "The phases of each action are classes of one classifier; shares are of all test frames, "
        "whatever their action."
        if protocol.joint
        else "Each metric is computed within one action (classifier and regressions too) and then "
        "averaged over the actions for which it is defined."
    )
    if "stride" in options.facts():
        out["stride"] = _strides(options)
    return out


_ALIGNMENT = {
    "alignment_error": (
        "Alignment error in phases, lower is better: every test frame is matched to the nearest "
        "frame of another test video of the action. The error is the mean difference of their true "
        "phase positions; a position is the phase number plus the part of the phase that has "
        "passed. Ours; in no paper's protocol."
    ),
    "alignment_error_dtw": (
        "Alignment error in phases when the frames are matched by dynamic time warping instead, "
        "along the cheapest path that never goes back in time."
    ),
}

_EVENTS = {
    "event_error": (
        "Events carried over, lower is better: an event is the first labelled frame of a phase, "
        "except the phase that the video begins with. For each ordered pair of test videos of the "
        "action, every event that both have is matched to the nearest labelled frame of the second "
        "video. The error is the number of frames of the second video (seconds: divided by its "
        "frame rate) between that frame and its own event: mean and, in brackets, median over "
        "pairs and events. Ours; in no paper's protocol."
    ),
    "event_error_dtw": (
        "The same when frames are matched by dynamic time warping: to the middle one of the frames "
        "that the path pairs with the event."
    ),
}


def _classification(options: Options) -> dict[str, str]:
    protocol = options.definition
    classifier = {
        "logistic": "a logistic regression (multinomial, C = 1)",
        "svm": "a support vector machine (RBF kernel, C = 1, gamma = 'scale', one against one)",
        "sgd": (
            f"one linear layer trained by SGD (softmax cross-entropy, learning rate "
            f"{options.probe_lr:g} with cosine decay by epoch, momentum {MOMENTUM:g}, weight decay "
            f"{WEIGHT_DECAY:g}, {options.probe_epochs} epochs, the frames of {BATCH_VIDEOS} videos "
            "a batch, weights of the last epoch)"
        ),
    }[protocol.classifier]
    fitted = f"{classifier} on the embedding, fitted to the labelled training frames" + (
        "" if protocol.joint else " of the action"
    )
    if protocol.weighted_f1:
        sentence = (
            "Phase classification, higher is better: F1 of each phase, weighted by the test frames "
            f"it has, of {fitted}."
        )
    elif protocol.joint:
        sentence = (
            "Fine-grained action classification, higher is better: share of labelled test frames "
            f"whose class, a phase of an action, is predicted correctly by {fitted}."
        )
    else:
        sentence = (
            "Phase classification, higher is better: share of test frames whose phase is predicted "
            f"correctly by {fitted}."
        )
    shares = {
        f"{protocol.score}_at_{share:g}": (
            f"The same, fitted to the first {100 * share:g} % of the training videos."
        )
        for share in options.fractions[:-1]
    }
    if options.fractions[-1] < 1:
        share = 100 * options.fractions[-1]
        sentence += f" The classifier is fitted to the first {share:g} % of the training videos."
    return shares | {protocol.score: sentence}


def _progression(options: Options) -> str:
    last = options.definition.last_phase
    index = (
        ", to which 0.001 times the number of the labelled frame in its video is appended,"
        if options.frame_index
        else ""
    )
    return (
        "Phase progression, higher is better, at most 1, no lower bound: mean R^2 of one linear "
        f"regression per {'phase' if last else 'phase boundary'}, from the embedding{index} to the "
        f"time to {'its end' if last else 'that boundary'} as a share of the video"
        f"{', the last phase included' if last else ''}. A video without the phase is left out of "
        "its regression. Tables show <0 for a value below 0, which is worse than predicting the "
        "mean."
    )


def _retrieval_key(options: Options, k: int) -> str:
    return f"{'ap' if options.definition.retrieval == 'precision' else 'map'}_at_{k}"


def _retrieval(options: Options, k: int) -> str:
    if options.definition.retrieval == "precision":
        return (
            f"AP@{k}, higher is better: of the {k} nearest frames in the other test videos of "
            "the action, the share that has the same phase, averaged over frames, then videos "
            "(a precision at K)."
        )
    return (
        f"mAP@{k}, higher is better: average precision of the {k} nearest frames in the "
        "other test videos of the action, which is the mean of precision at j over the "
        "places j that have the query's phase, 0 if none has; averaged over all frames."
    )


def _strides(options: Options) -> str:
    def every(step: int) -> str:
        return "every one" if step == 1 else f"every {step}th"

    used = []
    if "tau" in options.metrics:
        used.append(f"Kendall's tau uses every {options.stride}th labelled frame of each video")
    if "retrieval" in options.metrics:
        step = options.definition.retrieval_stride or options.stride
        used.append(f"retrieval {every(step)}" if used else f"Retrieval uses {every(step)}")
    return (
        f"{', '.join(used)}; the other metrics use every labelled frame. Figures are comparable at "
        "equal stride only."
    )


def _across_views(options: Options, pairs: list[tuple[str, str]]) -> dict[str, str]:
    if not {"classification", "retrieval"} & {*options.metrics}:
        return {}
    if not pairs:
        return {"across views": 'Not computed: no two test videos have different "view" names.'}
    out = {}
    for a, b in pairs:
        if "classification" in options.metrics:
            out[across_key("weighted_f1", (a, b))] = (
                "The same F1 of a classifier fitted to the training frames of view "
                f"{a} alone, on the test frames of view {b}."
            )
        for k in options.ks if "retrieval" in options.metrics else ():
            out[across_key(f"map_at_{k}", (a, b))] = (
                f"mAP@{k} with the test frames of view {a} as queries and those of view {b} in the "
                "other test videos as candidates."
            )
    return out
