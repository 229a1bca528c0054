"""Metrics of nearest frames and of alignment between the test videos of an action."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from training.evaluation.labelled import LabelledVideo, Score, mean

# The only reason among those of `Score.left_out` whose videos are scored.
FEWER_CANDIDATES = "query videos scored with all their candidate frames, which are fewer than"


def kendalls_tau(test: Sequence[LabelledVideo], stride: int) -> Score:
    """Mean Kendall's tau-b over ordered video pairs: do nearest neighbours keep the order of time?

    For each ordered pair of different videos and every ``stride``-th frame of both: the nearest
    frame of the second (squared Euclidean distance, the first one on a tie) for each frame of the
    first, then scipy's tau-b between 0, 1, 2, ... and those indices. A pair without a tau (all
    frames have the same neighbour, or fewer than two frames) is left out.
    """
    from scipy.stats import kendalltau

    def tau(query: LabelledVideo, other: LabelledVideo, distances: np.ndarray) -> float:
        nearest = distances.argmin(axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy's about constant input, counted below
            return kendalltau(np.arange(len(nearest)), nearest).statistic

    taus = _of_ordered_pairs(test, stride, tau)
    undefined = int(np.isnan(taus).sum())
    left_out = Counter({"video pairs without a tau (all frames have one neighbour)": undefined})
    return Score(mean(taus[~np.isnan(taus)]), left_out)


def precision_at_k(test: Sequence[LabelledVideo], stride: int, k: int) -> Score:
    """AP@K as in CARL and LAV: the share of the K nearest frames that have the query's phase.

    Queries are every ``stride``-th frame of a test video, candidates every ``stride``-th frame of
    all the other test videos. Precision among the K nearest (squared Euclidean distance), averaged
    over the frames of a video, then over videos. It is a precision, not an average precision.
    """
    left_out: Counter[str] = Counter()
    means = [hits.mean() for hits in _nearest_hits(test, stride, k, left_out)]
    return Score(mean(means), left_out)


def average_precision_at_k(
    test: Sequence[LabelledVideo], stride: int, k: int, views: tuple[str, str] | None = None
) -> Score:
    """mAP@K (AE2): average precision of the K nearest frames of other videos, over all frames.

    The AP of a query is sum_j precision@j rel_j / sum_j rel_j over ranks j = 1 .. K, where rel_j is
    1 if the j-th nearest frame has the query's phase; it is 0 if no frame has. Queries and
    candidates are every ``stride``-th frame; the mean is over all queries, so long videos have more
    weight. With ``views``, queries come from videos of the first view and candidates from videos of
    the second.
    """
    precisions, left_out = [], Counter()
    for hits in _nearest_hits(test, stride, k, left_out, views):
        at_place = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
        precisions.append((at_place * hits).sum(1) / np.maximum(hits.sum(1), 1))
    return Score(mean(np.concatenate(precisions or [[]])), left_out)


def _nearest_hits(
    test: Sequence[LabelledVideo],
    stride: int,
    k: int,
    left_out: Counter[str],
    views: tuple[str, str] | None = None,
) -> Iterator[np.ndarray]:
    """For each video bool (queries, K): whether the j-th nearest frame has the query's phase."""
    for index, query in enumerate(test):
        others = [
            video
            for position, video in enumerate(test)
            if position != index and (views is None or video.view == views[1])
        ]
        if not others or (views is not None and query.view != views[0]):
            continue
        x = np.concatenate([video.embeddings[::stride] for video in others])
        y = np.concatenate([video.phases[::stride] for video in others])
        if len(x) < k:
            left_out[f"{FEWER_CANDIDATES} {k}"] += 1
        nearest = np.argsort(distances(query.embeddings[::stride], x), axis=1, kind="stable")
        yield y[nearest[:, :k]] == query.phases[::stride, None]


def alignment_error(test: Sequence[LabelledVideo], method: str = "nearest") -> Score:
    """Error of the matched moment in phases: mean |p(match) - p(frame)|, lower is better.

    For each ordered pair of different videos, every labelled frame of the first is matched to a
    frame of the second: ``"nearest"`` uses the nearest embedding, ``"dtw"`` the frames that the
    cheapest monotone path pairs it with (the mean error of several). p is :func:`phase_position`.
    The error is averaged over frames, then pairs, without a stride. A video whose phases go
    backwards has no phase position and is left out. 0.5 means half a phase too early or too late.
    """
    from fastseq.ops.soft_dtw import dtw_path_from_cost  # loads torch: after --help

    placed = [video for video in test if video.position is not None]
    left_out = Counter({"test videos whose phases go backwards": len(test) - len(placed)})

    def error(query: LabelledVideo, other: LabelledVideo, distances: np.ndarray) -> float:
        if method == "nearest":
            gaps = np.abs(other.position[distances.argmin(axis=1)] - query.position)
        elif method == "dtw":
            path, _ = dtw_path_from_cost(distances)
            i, j = path.numpy().T
            per_cell = np.abs(other.position[j] - query.position[i])
            gaps = np.bincount(i, per_cell) / np.bincount(i)
        else:
            raise ValueError(f"method is {method!r}; expected 'nearest' or 'dtw'")
        return gaps.mean()

    return Score(mean(_of_ordered_pairs(placed, 1, error)), left_out)


def _of_ordered_pairs(
    videos: Sequence[LabelledVideo],
    stride: int,
    value: Callable[[LabelledVideo, LabelledVideo, np.ndarray], float],
) -> np.ndarray:
    """``value`` of each of the `ordered_pairs`."""
    return np.array([value(*pair) for pair in ordered_pairs(videos, stride)])


def ordered_pairs(
    videos: Sequence[LabelledVideo], stride: int = 1
) -> Iterator[tuple[LabelledVideo, LabelledVideo, np.ndarray]]:
    """(query, other, distances of every stride-th frame) of all ordered pairs of different videos.

    The distances of two videos are computed once, for both directions.
    """
    for i, query in enumerate(videos):
        for other in videos[:i]:
            between = distances(query.embeddings[::stride], other.embeddings[::stride])
            yield query, other, between
            yield other, query, between.T


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of all rows of x (n, E) and y (m, E): (n, m)."""
    from scipy.spatial.distance import cdist

    return cdist(x, y, "sqeuclidean")
