"""ActivityNet's metrics: AR@AN and AUC of proposals, mAP of classified ones.

Definitions are those of eval_proposal.py and eval_detection.py of github activitynet/ActivityNet.
Proposals are (start, end, score); the proposals of equal score keep their order, which those
programs leave open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST = 100  # the largest average number of proposals


def temporal_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tIoU of all pairs of segments: the length of the intersection over that of the union.

    Args:
        a, b: (n, 2) and (m, 2), start and end. Two equal segments of length 0 have tIoU 0.

    Returns:
        float64 (n, m).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    common = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    common = np.maximum(common, 0.0)
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


@dataclass(frozen=True, eq=False)
class Recall:
    """Recall over the average number of proposals.

    Attributes:
        numbers: float64 (100,), AN: the average number of proposals per video, 1 to 100.
        recall: float64 (10, 100), by tIoU threshold and AN.
    """

    numbers: np.ndarray
    recall: np.ndarray

    @property
    def average(self) -> np.ndarray:
        """float64 (100,): AR, the mean over the thresholds."""
        return self.recall.mean(axis=0)

    def at(self, number: int) -> float:
        """AR@AN."""
        return float(self.average[number - 1])

    @property
    def auc(self) -> float:
        """The area under AR over AN by the trapezoidal rule from 1 to 100, divided by 100.

        So AR = 1 everywhere is 0.99, as in ActivityNet's program.
        """
        average = self.average
        area = (np.diff(self.numbers) * (average[1:] + average[:-1]) / 2).sum()
        return float(area / self.numbers[-1])


def average_recall(
    segments: Mapping[str, np.ndarray], proposals: Mapping[str, np.ndarray], *, most: int = MOST
) -> Recall:
    """Recall of annotated segments at an average of 1, 2, ... ``most`` proposals per video.

    Each video contributes the same share of its proposals, the best ones: a video with twice as
    many proposals as another contributes twice as many at each AN. A segment is found if a
    proposal has at least the threshold's tIoU with it.

    Args:
        segments: video -> (n, 2). Videos without segments do not count.
        proposals: video -> (m, 3) of start, end, score, in the unit of the segments. A video
            without an entry has none. Proposals of videos without segments do not count.
        most: the largest average number, 100 in ActivityNet.
    """
    names = [name for name, found in segments.items() if len(found)]
    numbers = np.arange(1, 101) / 100.0 * most
    ordered = {name: _by_score(proposals.get(name)) for name in names}
    total = sum(len(found) for found in ordered.values())
    recall = np.zeros((len(THRESHOLDS), len(numbers)))
    if not names or not total:
        return Recall(numbers, recall)
    ratio = most * float(len(names)) / total
    kept = {name: min(int(len(x) * ratio), len(x)) for name, x in ordered.items()}
    used = sum(kept.values())
    if not used:
        return Recall(numbers, recall)
    shares = np.arange(1, 101) / 100.0 * (most * float(len(names)) / used)
    positives = sum(len(segments[name]) for name in names)
    for name in names:
        best = temporal_iou(segments[name], ordered[name][: kept[name], :2])
        best = np.maximum.accumulate(best, axis=1) if best.size else best
        counts = np.minimum((kept[name] * shares).astype(int), kept[name])
        some = counts > 0
        if some.any():
            reached = best[:, counts[some] - 1]
            recall[:, some] += (reached[None] >= THRESHOLDS[:, None, None]).sum(axis=1)
    return Recall(numbers, recall / positives)


def _by_score(proposals: np.ndarray | None) -> np.ndarray:
    if proposals is None or not len(proposals):
        return np.zeros((0, 3))
    return proposals[np.argsort(-proposals[:, 2], kind="stable")]


def interpolated_ap(hits: np.ndarray, positives: int) -> float:
    """Average precision, where precision at a recall is the highest at this recall or above.

    The sum over the hits, in order of score, of 1 / positives times this precision.

    Args:
        hits: bool (n,), whether each prediction is right, from the highest score down.
        positives: number of annotated segments, at least 1.
    """
    if not len(hits):
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hits].sum() / positives)


def mean_average_precision(
    truth: Mapping[str, tuple[np.ndarray, Sequence[str]]],
    predictions: Mapping[str, tuple[np.ndarray, Sequence[str]]],
) -> dict[str, np.ndarray]:
    """AP of each class at each tIoU threshold of `THRESHOLDS`.

    Predictions of a class are visited from the highest score down, over all videos. Each is right
    if it has at least the threshold's tIoU with an annotated segment of its video and class that
    no earlier one was right about; it is matched to the one of highest tIoU among these.

    Args:
        truth: video -> ((n, 2) segments, n classes).
        predictions: video -> ((m, 3) of start, end, score, m classes). Classes that no annotation
            has are ignored.

    Returns:
        Class -> float64 (10,). ActivityNet's mAP is the mean over the classes, the average mAP
        also over the thresholds.
    """
    classes = sorted({label for _, labels in truth.values() for label in labels})
    return {label: _class_ap(label, truth, predictions) for label in classes}


def _class_ap(label: str, truth: Mapping, predictions: Mapping) -> np.ndarray:
    annotated = {name: _of_class(label, *one) for name, one in truth.items()}
    positives = sum(map(len, annotated.values()))
    found = [(name, row) for name, one in predictions.items() for row in _of_class(label, *one)]
    order = np.argsort([-row[2] for _, row in found], kind="stable")
    taken = {name: np.zeros((len(THRESHOLDS), len(one)), bool) for name, one in annotated.items()}
    hits = np.zeros((len(THRESHOLDS), len(found)), bool)
    for place, number in enumerate(order):
        name, row = found[number]
        if not len(annotated.get(name, ())):
            continue
        overlap = temporal_iou(row[None, :2], annotated[name])[0]
        for level, threshold in enumerate(THRESHOLDS):
            free = np.where(taken[name][level], -1.0, overlap)
            best = int(free.argmax())
            if free[best] >= threshold:
                taken[name][level, best] = hits[level, place] = True
    return np.array([interpolated_ap(row, positives) for row in hits])


def _of_class(label: str, rows: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    return np.asarray(rows)[[one == label for one in labels]] if len(rows) else np.zeros((0, 3))
