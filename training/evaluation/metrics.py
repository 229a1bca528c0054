"""The metrics of CARL's evaluation protocol, and the alignment error in phases.

Every function accepts the labelled frames of the videos of one action (:class:`LabelledVideo`) and
returns a :class:`Score`: the value, which is NaN if undefined, and the number of things left out.
:mod:`training.evaluation.frame_level` averages over actions. References: "Frame-wise Action
Representations for Long Videos via Sequence Contrastive Learning" (CARL), section 4.1, and its
released evaluation code.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.evaluation.embed import EmbeddedVideo
from training.evaluation.videos import seconds_of
from training.support.command import UserError

# The only reason among those of `Score.left_out` whose videos are scored.
FEWER_CANDIDATES = "query videos scored with all their candidate frames, which are fewer than"


@dataclass(frozen=True)
class LabelledVideo:
    """The frames of a video that have a phase label.

    embeddings: (L, E). phases: int64 (L,), all >= 0. position: float64 (L,), the phase position of
    :func:`phase_position`, or None if the phases are not in order. view: name of the camera's view,
    empty if not given. frames: int64 (L,), frame numbers in the video. times: float64 (L,), their
    presentation times in seconds.
    """

    id: str
    embeddings: np.ndarray
    phases: np.ndarray
    position: np.ndarray | None
    view: str = ""
    frames: np.ndarray = field(kw_only=True)
    times: np.ndarray = field(kw_only=True)


@dataclass
class Score:
    """The value of a metric and, by reason, the number of things left out."""

    value: float
    left_out: Counter[str] = field(default_factory=Counter)


def phase_position(phases: np.ndarray) -> np.ndarray | None:
    """Phase index plus the part of the phase that has passed: p(t) = k + (t - s_k)/(e_k - s_k).

    s_k is the first frame of phase k and e_k the frame after its last, so p is linear within a
    phase and p(s_k) = k. Frames labelled -1 have NaN. Returns None if the labelled phases ever go
    backwards, because a phase that occurs twice has no single position.
    """
    labelled = np.flatnonzero(phases >= 0)
    if np.any(np.diff(phases[labelled]) < 0):
        return None
    position = np.full(len(phases), np.nan)
    for phase in np.unique(phases[labelled]):
        frames = labelled[phases[labelled] == phase]
        start, end = frames[0], frames[-1] + 1
        position[frames] = phase + (frames - start) / (end - start)
    return position


def labelled_video(video: EmbeddedVideo) -> LabelledVideo | None:
    """The labelled frames of a video, or None if it has none; frames in gaps count as unlabelled.

    Raises UserError unless each sound frame has an embedding.
    """
    phases = video.phases
    if phases is None or not (phases >= 0).any():
        return None
    if len(phases) != len(video.embeddings):
        raise UserError(
            f"{video.record.id} has {len(phases)} phase labels and {len(video.embeddings)} frames; "
            "write the index again with `python -m training.prepare`"
        )
    keep = phases >= 0
    in_video = np.full(video.record.frames, -1)
    in_video[video.frames] = phases
    position = phase_position(in_video)
    return LabelledVideo(
        video.record.id,
        video.embeddings[keep].astype(np.float64),
        phases[keep],
        None if position is None else position[video.frames[keep]],
        video.record.view,
        frames=video.frames[keep],
        times=seconds_of(video.record, video.frames[keep]),
    )


def classification(
    train: Sequence[LabelledVideo],
    test: Sequence[LabelledVideo],
    fraction: float = 1.0,
    *,
    classifier: str = "logistic",
    weighted_f1: bool = False,
) -> Score:
    """Share of test frames whose phase a classifier predicts correctly (micro accuracy).

    The classifier is scikit-learn's multinomial LogisticRegression (lbfgs, C = 1, at most 1e5
    iterations), or with ``"svm"`` its SVC (RBF, C = 1, gamma = "scale", one against one), fitted
    to every labelled frame of the first int(fraction * n) training videos, at least one. A test
    frame of a phase without training frames counts as wrong. ``weighted_f1``: returns the F1 of
    each phase, weighted by its test frames, instead of the accuracy.
    """
    if not train or not test:
        return Score(np.nan)
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.svm import SVC

    train = train[: max(1, int(fraction * len(train)))]
    x, y = _stack(train)
    x_test, y_test = _stack(test)
    if np.unique(y).size == 1:  # scikit-learn does not accept a single class
        predicted = np.full(len(y_test), y[0])
    else:
        if classifier == "logistic":
            model = LogisticRegression(C=1.0, solver="lbfgs", max_iter=100_000)
        elif classifier == "svm":
            model = SVC(C=1.0, kernel="rbf", gamma="scale", decision_function_shape="ovo")
        else:
            raise ValueError(f"classifier is {classifier!r}; expected 'logistic' or 'svm'")
        predicted = model.fit(x, y).predict(x_test)
    if weighted_f1:
        value = f1_score(y_test, predicted, average="weighted", zero_division=0)
    else:
        value = accuracy_score(y_test, predicted)
    unseen = int((~np.isin(y_test, y)).sum())
    return Score(
        float(value),
        Counter({"test frames of a phase that no training frame has (counted as wrong)": unseen}),
    )


def few_shot(
    train: Sequence[LabelledVideo],
    test: Sequence[LabelledVideo],
    count: int,
    episodes: int,
    **options: Any,
) -> Score:
    """Mean :func:`classification` from ``count`` training videos over random choices (AE2).

    The choices are those of AE2's code: ``random.sample`` without replacement, seeded with 42 plus
    the number of the episode, so they are the same for every embedding. NaN if ``count`` is 0 or
    exceeds the number of training videos.
    """
    if not 1 <= count <= len(train):
        return Score(np.nan, Counter({"few-shot columns: not that many training videos": 1}))
    values = []
    for episode in range(episodes):
        chosen = random.Random(42 + episode).sample(range(len(train)), count)
        values.append(classification([train[i] for i in chosen], test, **options).value)
    return Score(_mean(values))


def progression(
    train: Sequence[LabelledVideo],
    test: Sequence[LabelledVideo],
    num_phases: int,
    *,
    last_phase: bool = False,
) -> Score:
    """Mean R^2 on the test frames of linear models that predict the time to each phase boundary.

    For boundary c = 0 .. num_phases - 2, with ``last_phase`` (AE2) also num_phases - 1, the target
    of frame t is (t - last frame of phase c) / L, with t and L counted over the labelled frames.
    One linear regression per boundary is fitted on the training frames. A video without phase c is
    left out of boundary c, in fitting and in scoring (CARL's code stops with an error there). A
    boundary without any video, or with a constant target, is left out of the mean. R^2 has no lower
    bound.
    """
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    left_out: Counter[str] = Counter()
    scored: dict[
        tuple[str, ...], list[int]
    ] = {}  # boundaries, grouped by the videos that they are fitted to
    for boundary in range(num_phases if last_phase else num_phases - 1):
        fit, score = _with_phase(train, boundary), _with_phase(test, boundary)
        for split, videos, all_of_them in (("training", fit, train), ("test", score, test)):
            left_out[f"({split} video, boundary) pairs where the phase does not occur"] += len(
                all_of_them
            ) - len(videos)
        target = _to_boundary(score, boundary)
        if not fit or len(target) < 2 or np.ptp(target) == 0:
            left_out["progression boundaries that cannot be scored"] += 1
        else:
            scored.setdefault(tuple(video.id for video in fit), []).append(boundary)
    scores = []
    for boundaries in scored.values():
        # All at once, because decomposing the training frames takes nearly all of the time.
        fit = _with_phase(train, boundaries[0])
        targets = np.stack([_to_boundary(fit, boundary) for boundary in boundaries], axis=1)
        model = LinearRegression().fit(_stack(fit)[0], targets)
        for place, boundary in enumerate(boundaries):
            score = _with_phase(test, boundary)
            predicted = model.predict(_stack(score)[0])[:, place]
            scores.append(r2_score(_to_boundary(score, boundary), predicted))
    return Score(_mean(scores), left_out)


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
    return Score(_mean(taus[~np.isnan(taus)]), left_out)


def precision_at_k(test: Sequence[LabelledVideo], stride: int, k: int) -> Score:
    """AP@K as in CARL and LAV: the share of the K nearest frames that have the query's phase.

    Queries are every ``stride``-th frame of a test video, candidates every ``stride``-th frame of
    all the other test videos. Precision among the K nearest (squared Euclidean distance), averaged
    over the frames of a video, then over videos. It is a precision, not an average precision.
    """
    left_out: Counter[str] = Counter()
    means = [hits.mean() for hits in _nearest_hits(test, stride, k, left_out)]
    return Score(_mean(means), left_out)


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
    return Score(_mean(np.concatenate(precisions or [[]])), left_out)


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

    return Score(_mean(_of_ordered_pairs(placed, 1, error)), left_out)


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


def _stack(videos: Sequence[LabelledVideo]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.concatenate([video.embeddings for video in videos]),
        np.concatenate([video.phases for video in videos]),
    )


def _with_phase(videos: Sequence[LabelledVideo], phase: int) -> list[LabelledVideo]:
    return [video for video in videos if phase in video.phases]


def _to_boundary(videos: Sequence[LabelledVideo], phase: int) -> np.ndarray:
    """The time of every frame to the end of a phase, as a share of its video."""
    ends = [(video, np.flatnonzero(video.phases == phase)[-1]) for video in videos]
    return np.concatenate(
        [(np.arange(len(video.phases)) - last) / len(video.phases) for video, last in ends] or [[]]
    )


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    return _mean([value for value in values if not np.isnan(value)])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
