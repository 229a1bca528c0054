"""The papers' evaluation protocols as data: their differences, and the titles of columns.

`scores` computes the metrics of a protocol, `definitions` describes them.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from training.support.command import UserError

# What `--metrics` picks from.
METRICS = ("classification", "progression", "tau", "retrieval", "alignment", "events")

# Number of labelled training videos -> number of random choices. LAV (Fig. 5) varies the number of
# videos and states no number of choices; AE2's released code has 50, and 10 of half of the videos.
FEW_SHOT = {"1": 10, "2": 10, "3": 10, "5": 10, "10": 10}
FEW_SHOT_AE2 = {"1": 50, "2": 50, "3": 50, "5": 50, "10": 50, "half": 10}


@dataclass(frozen=True)
class Protocol:
    """One paper's way to measure frame embeddings.

    classifier: "logistic", "svm" or "sgd".
    weighted_f1: score the classifier by weighted F1 instead of accuracy.
    retrieval: "precision", "average precision" or None, at each of ``ks``.
    stride: step in frames of Kendall's tau; retrieval_stride: that of retrieval, None = the same.
    last_phase: whether progression has a target for the last phase too.
    across_views: compare views of the same action with each other.
    few_shot: number of labelled training videos -> number of random choices, by default.
    joint: one classifier for the phases of all actions, and no other metric.
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
    few_shot: Mapping[str, int] = field(default_factory=lambda: FEW_SHOT)
    joint: bool = False

    @property
    def score(self) -> str:
        """The key of the classifier's score."""
        return "weighted_f1" if self.weighted_f1 else "classification"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of METRICS that the protocol has."""
        if self.joint:
            return ("classification",)
        return tuple(name for name in METRICS if name != "retrieval" or self.retrieval)


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
            "phase, over all views; weighted F1 and mAP@10 also from one view to another. For Pour "
            "Liquid it appends the frame index to the embeddings that progression is predicted "
            "from (--frame-index)."
        ),
        across_views=True,
        few_shot=FEW_SHOT_AE2,
    ),
    "finegym": Protocol(
        classifier="sgd",
        weighted_f1=False,
        retrieval=None,
        ks=(),
        stride=5,
        retrieval_stride=None,
        last_phase=False,
        source=(
            "CARL on FineGym (released evaluate_finegym.py): one linear layer for the classes of "
            "all actions, trained by SGD; no other metric."
        ),
        joint=True,
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
    "map_at_5": "mAP@5",
    "map_at_10": "mAP@10",
    "map_at_15": "mAP@15",
    "alignment_error": "alignment error (phases)",
    "alignment_error_dtw": "same, by DTW (phases)",
    # One feature for each video (video_level.py).
    "linear_svm": "linear SVM",
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "recall_at_20": "R@20",
    "recall_at_50": "R@50",
    # The scores of a classifier of videos (action.py).
    "top_1": "top-1",
    "top_5": "top-5",
    "mean_class_accuracy": "mean class accuracy",
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

# Keys with a number; COLUMNS lists only some of them.
_AT_K = re.compile(r"(ap|map)_at_(\d+)")
_AT_SHARE = re.compile(r"(classification|weighted_f1)_at_(\S+)")


def columns(keys: Iterable[str]) -> dict[str, str]:
    """The keys of a row that tables show, in order, with their titles.

    A key is one of COLUMNS, AP or mAP at any K, or a classifier's score at a share of the training
    videos, possibly followed by a space and a restriction of its value.
    """
    order = [*COLUMNS]
    found = []
    for key in dict.fromkeys(keys):
        base, _, restriction = key.partition(" ")
        number = 1.0
        if match := _AT_K.fullmatch(base):
            place, number = f"{match[1]}_at_10", float(match[2])
            title = f"{'AP' if match[1] == 'ap' else 'mAP'}@{match[2]}"
        elif match := _AT_SHARE.fullmatch(base):
            place, number = match[1], float(match[2])
            title = f"{COLUMNS[place]}, {100 * number:g} %"
        elif base in COLUMNS:
            place, title = base, COLUMNS[base]
        else:
            continue
        rank = (order.index(place), restriction != "", number)
        found.append((rank, key, f"{title} {restriction}".rstrip()))
    return {key: title for _, key, title in sorted(found, key=lambda one: one[0])}


def view_pairs(views: Iterable[str]) -> list[tuple[str, str]]:
    """(from, to) for every ordered pair of named views."""
    return list(itertools.permutations(sorted(set(views) - {""}), 2))


def find_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"protocol is {name!r}; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def across_key(column: str, views: tuple[str, str]) -> str:
    return f"{column} {views[0]} to {views[1]}"


def few_shot_key(score: str, count: str) -> str:
    return f"{score} from {count}"
