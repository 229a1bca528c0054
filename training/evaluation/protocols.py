"""The papers' evaluation protocols as data: their differences, and the definition of each column.

`frame_level` computes the metrics of a protocol.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from training.support.command import UserError


@dataclass(frozen=True)
class Protocol:
    """One paper's way to measure frame embeddings.

    classifier: "logistic" or "svm".
    weighted_f1: score the classifier by weighted F1 instead of accuracy.
    retrieval: "precision", "average precision" or None, at each of ``ks``.
    stride: step in frames of Kendall's tau; retrieval_stride: that of retrieval, None = the same.
    last_phase: whether progression has a target for the last phase too.
    across_views: compare views of the same action with each other.
    few_shot: also classify from few training videos.
    source: the paper and code, as a sentence.
    """

    classifier: str
    weighted_f1: bool
    retrieval: str | None
    ks: tuple[int, ...]
    stride: int
    retrieval_stride: int | None
    last_phase: bool
    source: str
    across_views: bool = False
    few_shot: bool = False


PROTOCOLS = {
    "carl": Protocol(
        classifier="logistic",
        weighted_f1=False,
        retrieval="precision",
        ks=(5, 10, 15),
        stride=5,
        retrieval_stride=None,
        last_phase=False,
        source=(
            "CARL (section 4.1 and released code): logistic regression, AP@K with the stride of "
            "Kendall's tau (5 for Pouring, 2 for Penn Action)."
        ),
    ),
    "lav": Protocol(
        classifier="svm",
        weighted_f1=False,
        retrieval="precision",
        ks=(5, 10, 15),
        stride=5,
        retrieval_stride=1,
        last_phase=False,
        source=(
            "LAV (section 4): support vector machine, AP@K over all frames of the other test "
            "videos. Its released script differs: it fits and scores on the same videos and "
            "retrieves within a video, including the query; its figures are not comparable."
        ),
    ),
    "tcc": Protocol(
        classifier="svm",
        weighted_f1=False,
        retrieval=None,
        ks=(),
        stride=5,
        retrieval_stride=None,
        last_phase=False,
        source="TCC (released code): support vector machine, no retrieval.",
    ),
    "ae2": Protocol(
        classifier="svm",
        weighted_f1=True,
        retrieval="average precision",
        ks=(10,),
        stride=5,
        retrieval_stride=1,
        last_phase=True,
        source=(
            "AE2 (released code), for Break Eggs, Pour Milk, Pour Liquid and Tennis Forehand: "
            "support vector machine scored by weighted F1, mAP@10, progression to the end of every "
            "phase, over all views; weighted F1 and mAP@10 also from one view to another. Not "
            "included: the frame index that it appends to embeddings of Pour Liquid."
        ),
        across_views=True,
        few_shot=True,
    ),
}

COLUMNS = {
    "classification": "classification",
    "weighted_f1": "F1",
    "progression": "progression",
    "kendalls_tau": "tau",
    "ap_at_5": "AP@5",
    "ap_at_10": "AP@10",
    "ap_at_15": "AP@15",
    "map_at_10": "mAP@10",
    "alignment_error": "alignment error (phases)",
    "alignment_error_dtw": "same, by DTW (phases)",
    # One feature for each video (video_level.py).
    "linear_svm": "linear SVM",
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "recall_at_20": "R@20",
    "recall_at_50": "R@50",
    # Windows of synchronised videos (synchronised.py).
    "sync_error": "nearest frame, frames",
    "sync_error_seconds": "same, seconds",
    "sync_error_dtw": "by DTW, frames",
    "sync_error_dtw_seconds": "same, seconds",
    "sync_error_open": "by open DTW, frames",
    "sync_error_open_seconds": "same, seconds",
    "sync_matched_open": "share matched",
}

# The table of carried events: title of a column, key of its mean, key of its median.
EVENT_COLUMNS = (
    ("by nearest frame, frames", "event_error", "event_error_median"),
    ("same, seconds", "event_error_seconds", "event_error_median_seconds"),
    ("by DTW, frames", "event_error_dtw", "event_error_dtw_median"),
    ("same, seconds", "event_error_dtw_seconds", "event_error_dtw_median_seconds"),
)
LOWER_IS_BETTER = {"alignment_error", "alignment_error_dtw"}
LOWER_IS_BETTER |= {mean for _, mean, _ in EVENT_COLUMNS}
LOWER_IS_BETTER |= {key for key in COLUMNS if key.startswith("sync_error")}

# Number of labelled training videos -> number of random choices in the mean.
FEW_SHOT = {"1": 50, "2": 50, "3": 50, "5": 50, "10": 50, "half": 10}


def columns(keys: Iterable[str]) -> dict[str, str]:
    """The keys of a row that tables show, in order, with their titles.

    A key is one of COLUMNS, possibly followed by a space and a restriction of its value.
    """
    keys = list(dict.fromkeys(keys))
    return {
        key: " ".join([title, *key.split(" ")[1:]])
        for start, title in COLUMNS.items()
        for key in keys
        if key.partition(" ")[0] == start
    }


def view_pairs(views: Iterable[str]) -> list[tuple[str, str]]:
    """(from, to) for every ordered pair of named views."""
    return list(itertools.permutations(sorted(set(views) - {""}), 2))


def find_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"protocol is {name!r}; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def definitions(
    name: str, stride: int, *, views: Iterable[str] = (), few_shot: bool = False
) -> dict[str, str]:
    """A sentence about the protocol and one about each of its columns.

    ``views``: views of the test videos; ``few_shot``: whether it was computed.
    """
    protocol = find_protocol(name)
    classifier = {
        "logistic": "a logistic regression (multinomial, C = 1)",
        "svm": "a support vector machine (RBF kernel, C = 1, gamma = 'scale', one against one)",
    }[protocol.classifier]
    fitted = f"{classifier} on the embedding, fitted to the labelled training frames of the action"
    out = {"protocol": protocol.source}
    if protocol.weighted_f1:
        out["weighted_f1"] = (
            "Phase classification, higher is better: F1 of each phase, weighted by the test frames "
            f"it has, of {fitted}."
        )
    else:
        out["classification"] = (
            "Phase classification, higher is better: share of test frames whose phase is predicted "
            f"correctly by {fitted}."
        )
    targets = "phase" if protocol.last_phase else "phase boundary"
    out["progression"] = (
        "Phase progression, higher is better, at most 1, no lower bound: mean R^2 of one linear "
        f"regression per {targets}, from the embedding to the time to "
        f"{'its end' if protocol.last_phase else 'that boundary'} as a share of the video"
        f"{', the last phase included' if protocol.last_phase else ''}. A video without the phase "
        "is left out of its regression. Tables show <0 for a value below 0, which is worse than "
        "predicting the mean."
    )
    out["kendalls_tau"] = (
        "Kendall's tau, between -1 and 1: over ordered pairs of test videos of one action, tau-b "
        "between the frame order and the order of the nearest frames in the other video. It "
        "measures whether the order is kept, not whether the matched moment is the right one."
    )
    for k in protocol.ks:
        if protocol.retrieval == "precision":
            out[f"ap_at_{k}"] = (
                f"AP@{k}, higher is better: of the {k} nearest frames in the other test videos of "
                "the action, the share that has the same phase, averaged over frames, then videos "
                "(a precision at K)."
            )
        else:
            out[f"map_at_{k}"] = (
                f"mAP@{k}, higher is better: average precision of the {k} nearest frames in the "
                "other test videos of the action, which is the mean of precision at j over the "
                "places j that have the query's phase, 0 if none has; averaged over all frames."
            )
    if protocol.across_views:
        out |= _across_views(protocol, view_pairs(views))
    if few_shot:
        for count, episodes in FEW_SHOT.items():
            out[few_shot_key(count)] = (
                f"The F1 above of a classifier fitted to {count} of the training videos of the "
                f"action: mean over {episodes} random choices with seeds from 42 on, the same for "
                "all embeddings."
            )
    out["alignment_error"] = (
        "Alignment error in phases, lower is better: every test frame is matched to the nearest "
        "frame of another test video of the action. The error is the mean difference of their true "
        "phase positions; a position is the phase number plus the part of the phase that has "
        "passed. Ours; in no paper's protocol."
    )
    out["alignment_error_dtw"] = (
        "Alignment error in phases when the frames are matched by dynamic time warping instead, "
        "along the cheapest path that never goes back in time."
    )
    out["event_error"] = (
        "Events carried over, lower is better: an event is the first labelled frame of a phase, "
        "except the phase that the video begins with. For each ordered pair of test videos of the "
        "action, every event that both have is matched to the nearest labelled frame of the second "
        "video. The error is the number of frames of the second video (seconds: divided by its "
        "frame rate) between that frame and its own event: mean and, in brackets, median over "
        "pairs and events. Ours; in no paper's protocol."
    )
    out["event_error_dtw"] = (
        "The same when frames are matched by dynamic time warping: to the middle one of the frames "
        "that the path pairs with the event."
    )
    out["embeddings"] = "Embeddings have unit length and distances are Euclidean."
    out["mean over actions"] = (
        "Each metric is computed within one action (classifier and regressions too) and then "
        "averaged over the actions for which it is defined."
    )
    used = f"Kendall's tau uses every {stride}th labelled frame of each video"
    if protocol.retrieval:
        other = protocol.retrieval_stride or stride
        used += ", retrieval " + ("every one" if other == 1 else f"every {other}th")
    out["stride"] = (
        f"{used}; the other metrics use every labelled frame. Figures are comparable at equal "
        "stride only."
    )
    return out


def across_key(column: str, views: tuple[str, str]) -> str:
    return f"{column} {views[0]} to {views[1]}"


def few_shot_key(count: str) -> str:
    return f"weighted_f1 from {count}"


def _across_views(protocol: Protocol, pairs: list[tuple[str, str]]) -> dict[str, str]:
    if not pairs:
        return {"across views": 'Not computed: no two test videos have different "view" names.'}
    out = {}
    for a, b in pairs:
        out[across_key("weighted_f1", (a, b))] = (
            f"The same F1 of a classifier fitted to the training frames of view {a} alone, on the "
            f"test frames of view {b}."
        )
        for k in protocol.ks:
            out[across_key(f"map_at_{k}", (a, b))] = (
                f"mAP@{k} with the test frames of view {a} as queries and those of view {b} in the "
                "other test videos as candidates."
            )
    return out
