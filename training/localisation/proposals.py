"""Proposals of a video: from BMN's scores, and uniform windows that look at nothing."""

from __future__ import annotations

import numpy as np

from training.localisation.metrics import temporal_iou
from training.localisation.targets import valid_entries

# Settings of mmaction2's bmn_400x100 recipe, with which VCLR's localisation was trained.
MOST = 100
_ALPHA, _LOW, _HIGH = 0.4, 0.5, 0.9


def propose(start: np.ndarray, end: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The best proposals of a video.

    A boundary is a candidate if its score is a local maximum or above half the largest one; the
    first start and the last end are candidates too. A proposal joins a start and an end; its score
    is start * end * completeness * presence. `soft_nms` ranks them.

    Args:
        start, end: (T,), scores in [0, 1] of step i as a start at i / T, as an end at (i + 1) / T.
        maps: (2, T, T), completeness and presence of proposals, duration by start.

    Returns:
        float64 (n, 3), n <= 100: start and end as shares of the video's length, and score; the
        highest score first.
    """
    steps = len(start)
    first, last = candidates(start), candidates(end)
    first[0] = last[-1] = True
    d, t = np.nonzero(valid_entries(steps))
    both = first[t] & last[t + d]
    d, t = d[both], t[both]
    score = start[t] * end[t + d] * maps[0, d, t] * maps[1, d, t]
    return soft_nms(np.stack([t / steps, (t + d + 1) / steps, score], axis=1))


def candidates(scores: np.ndarray) -> np.ndarray:
    """bool (T,): local maxima, and what is above half the largest score."""
    padded = np.concatenate([[-np.inf], scores, [-np.inf]])
    peaks = (scores > padded[:-2]) & (scores > padded[2:])
    return peaks | (scores > 0.5 * scores.max())


def soft_nms(proposals: np.ndarray, most: int = MOST) -> np.ndarray:
    """Rank proposals while lowering the scores of those that overlap with better ones.

    The best proposal is moved to the result. The score of each other one whose tIoU with it is
    above 0.5 + 0.4 length is multiplied by exp(-tIoU^2 / 0.4). This is repeated.

    Args:
        proposals: (n, 3), start and end as shares of the video's length, and score.
        most: number of proposals to keep.
    """
    left = np.asarray(proposals, dtype=np.float64).copy()
    kept = []
    while len(left) and len(kept) < most:
        best = int(left[:, 2].argmax())
        one, left = left[best], np.delete(left, best, axis=0)
        kept.append(one)
        overlap = temporal_iou(one[None, :2], left[:, :2])[0]
        near = overlap > _LOW + (_HIGH - _LOW) * (one[1] - one[0])
        left[:, 2] *= np.where(near, np.exp(-np.square(overlap) / _ALPHA), 1.0)
    return np.array(kept).reshape(-1, 3)


def uniform_windows(levels: int = 10) -> np.ndarray:
    """Windows of length 1/1, 1/2, ... 1/levels of the video, each overlapping half of the next.

    Returns:
        float64 (levels^2, 3), start and end as shares of the video's length, and score; the longer
        windows first, those of one length from the middle of the video outwards.
    """
    rows = []
    for level in range(1, levels + 1):
        starts = np.arange(2 * level - 1) / (2 * level)
        middle = np.abs(starts + 0.5 / level - 0.5)
        starts = starts[np.argsort(middle, kind="stable")]
        rows += [(start, start + 1 / level) for start in starts]
    scores = 1 - np.arange(len(rows)) / len(rows)
    return np.column_stack([np.array(rows), scores])
