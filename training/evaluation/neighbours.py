"""Metrics of nearest frames and of alignment between the test videos of an action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from training.evaluation.events import event_scores, events_of
from training.evaluation.labelled import LabelledVideo, Score, mean
from training.evaluation.pairs import (
    Comparison,
    compare_videos,
    finite_embeddings,
    in_parallel,
)

# The only reason among those of `Score.left_out` whose videos are scored.
FEWER_CANDIDATES = "query videos scored with all their candidate frames, which are fewer than"
PAIR_METRICS = ("tau", "alignment", "events")
_ALIGNMENT = {"nearest": "alignment_error", "dtw": "alignment_error_dtw"}


def pair_scores(
    test: Sequence[LabelledVideo],
    stride: int,
    which: Collection[str] = PAIR_METRICS,
    *,
    progress: bool = False,
) -> dict[str, Score]:
    """All metrics over pairs of test videos, with the distances of two videos computed once.

    Args:
        test: the labelled frames of the test videos of one action.
        stride: step in frames of Kendall's tau.
        which: of PAIR_METRICS; "tau": :func:`kendalls_tau`, "alignment": :func:`alignment_error`
            by both methods, "events": :func:`training.evaluation.events.event_errors`.
        progress: whether to show a bar over pairs of videos.

    Returns:
        The scores under "kendalls_tau", "alignment_error", "alignment_error_dtw" and the keys of
        the events, in this order. The two alignment errors leave out the same videos, which are
        counted once.
    """
    align = bool({"alignment", "events"} & set(which))
    compared = compare_videos(
        test,
        stride=stride if "tau" in which else None,
        align=align,
        events=[events_of(video) for video in test] if "events" in which else None,
        progress=progress,
    )
    scores = {}
    if "tau" in which:
        scores["kendalls_tau"] = _tau_score(compared)
    if "alignment" in which:
        for method, key in _ALIGNMENT.items():
            scores[key] = _alignment_score(test, compared, method)
        scores["alignment_error_dtw"].left_out.clear()
    if "events" in which:
        scores |= event_scores(test, compared)
    return scores


def kendalls_tau(test: Sequence[LabelledVideo], stride: int, *, progress: bool = False) -> Score:
    """Mean Kendall's tau-b over ordered video pairs: do nearest neighbours keep the order of time?

    For each ordered pair of different videos and every ``stride``-th frame of both: the nearest
    frame of the second (squared Euclidean distance, the first one on a tie) for each frame of the
    first, then tau-b between 0, 1, 2, ... and those indices. A pair without a tau (all frames have
    the same neighbour, or fewer than two frames) is left out.
    """
    return _tau_score(compare_videos(test, stride=stride, progress=progress))


def _tau_score(compared: Comparison) -> Score:
    undefined = np.isnan(compared.tau)
    reason = "video pairs without a tau (all frames have one neighbour)"
    return Score(mean(compared.tau[~undefined]), Counter({reason: int(undefined.sum())}))


def alignment_error(
    test: Sequence[LabelledVideo], method: str = "nearest", *, progress: bool = False
) -> Score:
    """Error of the matched moment in phases: mean |p(match) - p(frame)|, lower is better.

    For each ordered pair of different videos, every labelled frame of the first is matched to a
    frame of the second: ``"nearest"`` uses the nearest embedding, ``"dtw"`` the frames that the
    cheapest monotone path pairs it with (the mean error of several). p is :func:`phase_position`.
    The error is averaged over frames, then pairs, without a stride. A video whose phases go
    backwards has no phase position and is left out. 0.5 means half a phase too early or too late.
    """
    if method not in _ALIGNMENT:
        raise ValueError(f"method is {method!r}; expected 'nearest' or 'dtw'")
    return _alignment_score(test, compare_videos(test, align=True, progress=progress), method)


def _alignment_score(test: Sequence[LabelledVideo], compared: Comparison, method: str) -> Score:
    backwards = sum(video.position is None for video in test)
    errors = getattr(compared, method)
    left_out = Counter({"test videos whose phases go backwards": backwards})
    return Score(mean(errors[~np.isnan(errors)]), left_out)


def precision_at_k(
    test: Sequence[LabelledVideo], stride: int, k: int, *, progress: bool = False
) -> Score:
    """AP@K as in CARL and LAV: the share of the K nearest frames that have the query's phase.

    Queries are every ``stride``-th frame of a test video, candidates every ``stride``-th frame of
    all the other test videos. Precision among the K nearest (squared Euclidean distance), averaged
    over the frames of a video, then over videos. It is a precision, not an average precision.
    """
    return precisions_at(test, stride, [k], progress=progress)[k]


def precisions_at(
    test: Sequence[LabelledVideo], stride: int, ks: Sequence[int], *, progress: bool = False
) -> dict[int, Score]:
    """:func:`precision_at_k` for each K, with the nearest frames found once."""
    means: dict[int, list[float]] = {k: [] for k in ks}
    left_out = {k: Counter[str]() for k in ks}
    for hits in _nearest_hits(test, stride, max(ks), progress=progress):
        for k in ks:
            means[k].append(hits[:, :k].mean())
            left_out[k][f"{FEWER_CANDIDATES} {k}"] += hits.shape[1] < k
    return {k: Score(mean(means[k]), left_out[k]) for k in ks}


def average_precision_at_k(
    test: Sequence[LabelledVideo],
    stride: int,
    k: int,
    views: tuple[str, str] | None = None,
    *,
    progress: bool = False,
) -> Score:
    """mAP@K (AE2): average precision of the K nearest frames of other videos, over all frames.

    The AP of a query is sum_j precision@j rel_j / sum_j rel_j over ranks j = 1 .. K, where rel_j is
    1 if the j-th nearest frame has the query's phase; it is 0 if no frame has. Queries and
    candidates are every ``stride``-th frame; the mean is over all queries, so long videos have more
    weight. With ``views``, queries come from videos of the first view and candidates from videos of
    the second.
    """
    return average_precisions_at(test, stride, [k], views, progress=progress)[k]


def average_precisions_at(
    test: Sequence[LabelledVideo],
    stride: int,
    ks: Sequence[int],
    views: tuple[str, str] | None = None,
    *,
    progress: bool = False,
) -> dict[int, Score]:
    """:func:`average_precision_at_k` for each K, with the nearest frames found once."""
    precisions: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    left_out = {k: Counter[str]() for k in ks}
    for hits in _nearest_hits(test, stride, max(ks), views, progress=progress):
        summed = hits.cumsum(1)
        of_hits = (summed / np.arange(1, hits.shape[1] + 1) * hits).cumsum(1)
        for k in ks:
            last = min(k, hits.shape[1]) - 1
            precisions[k].append(of_hits[:, last] / np.maximum(summed[:, last], 1))
            left_out[k][f"{FEWER_CANDIDATES} {k}"] += hits.shape[1] < k
    return {k: Score(mean(np.concatenate(precisions[k] or [[]])), left_out[k]) for k in ks}


def _nearest_hits(
    test: Sequence[LabelledVideo],
    stride: int,
    k: int,
    views: tuple[str, str] | None = None,
    *,
    progress: bool,
) -> Iterator[np.ndarray]:
    """For each video bool (queries, K): whether the j-th nearest frame has the query's phase.

    Fewer columns if there are fewer candidates; nothing for a video without a candidate.
    """
    from tqdm import tqdm

    candidate = np.array([views is None or video.view == views[1] for video in test], bool)
    frames = np.array([len(video.phases[::stride]) for video in test], int) * candidate
    queries = [
        number
        for number, video in enumerate(test)
        if (views is None or video.view == views[0]) and frames.sum() > frames[number]
    ]
    if not queries:
        return
    from training.evaluation.pair_kernels import nearest_frames  # loads numba: after --help

    tiles, owners, firsts = _tiles(test, stride)
    phases = np.concatenate([video.phases[::stride] for video in test])

    def hits(number: int) -> np.ndarray:
        x = np.ascontiguousarray(test[number].embeddings[::stride])
        allowed = candidate.copy()
        allowed[number] = False
        others = int(frames[allowed].sum())
        found = np.empty((len(x), min(k, others)), np.int64)
        nearest_frames(x, tiles, owners, firsts, allowed, np.empty(found.shape), found)
        return phases[found] == test[number].phases[::stride, None]

    with tqdm(total=len(queries), desc="nearest frames", unit="video", disable=not progress) as bar:
        for one in in_parallel(hits, queries):
            bar.update()
            yield one


def _tiles(test: Sequence[LabelledVideo], stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tiles of every stride-th frame, the video of each and the number of its first frame.

    The last number is that of all frames.
    """
    from training.evaluation.pair_kernels import COLUMNS, tiles_of

    frames = np.array([len(video.phases[::stride]) for video in test])
    counts = -(-frames // COLUMNS)
    ends = counts.cumsum()
    tiles = np.empty((ends[-1], COLUMNS * test[0].embeddings.shape[1]))
    filled = np.full(len(tiles), COLUMNS)
    for video, begin, end, length in zip(test, ends - counts, ends, frames, strict=True):
        tiles[begin:end] = tiles_of(np.ascontiguousarray(finite_embeddings(video)[::stride]))
        filled[end - 1] = length - (end - begin - 1) * COLUMNS
    return tiles, np.repeat(np.arange(len(test)), counts), np.cumsum([0, *filled])


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of all rows of x (n, E) and y (m, E): (n, m)."""
    from scipy.spatial.distance import cdist

    return cdist(x, y, "sqeuclidean")
