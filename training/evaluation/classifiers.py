"""Classifiers and regressions of phases that are fitted to frame embeddings."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from training.evaluation.labelled import LabelledVideo, Score, mean
from training.evaluation.linear_probe import LinearProbe

# Reciprocal condition number (1-norm) above which LinearRegression cuts off no singular value.
_WELL_CONDITIONED = 1e-9


def classification(
    train: Sequence[LabelledVideo],
    test: Sequence[LabelledVideo],
    fraction: float = 1.0,
    *,
    classifier: str = "logistic",
    weighted_f1: bool = False,
    probe: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Score:
    """Share of test frames whose phase a classifier predicts correctly (micro accuracy).

    The classifier is fitted to every labelled frame of the first int(fraction * n) training videos,
    at least one. A test frame of a phase without training frames counts as wrong.

    Args:
        classifier: see :func:`fitted`.
        weighted_f1: return the F1 of each phase, weighted by its test frames, instead of the
            accuracy.
        probe: the arguments of LinearProbe, ``lr`` and ``epochs``.
        progress: show a bar of the epochs of "sgd".
    """
    if not train or not test:
        return Score(np.nan)
    from sklearn.metrics import accuracy_score, f1_score

    train = train[: max(1, int(fraction * len(train)))]
    x, y = _stack(train)
    x_test, y_test = _stack(test)
    lengths = [len(video.phases) for video in train]
    predict = fitted(x, y, classifier, lengths=lengths, probe=probe, progress=progress)
    predicted = predict(x_test)
    if weighted_f1:
        value = f1_score(y_test, predicted, average="weighted", zero_division=0)
    else:
        value = accuracy_score(y_test, predicted)
    unseen = int((~np.isin(y_test, y)).sum())
    return Score(
        float(value),
        Counter({"test frames of a phase that no training frame has (counted as wrong)": unseen}),
    )


def fitted(
    x: np.ndarray,
    y: np.ndarray,
    classifier: str = "logistic",
    *,
    lengths: Sequence[int] = (),
    probe: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Callable[[np.ndarray], np.ndarray]:
    """The function from embeddings (n, E) to phases (n,) of a classifier fitted to x and y.

    Args:
        x, y: embeddings (frames, E) and phases (frames,).
        classifier: "logistic": scikit-learn's multinomial LogisticRegression (lbfgs, C = 1, at most
            1e5 iterations). "svm": its SVC (RBF, C = 1, gamma = "scale", one against one). "sgd":
            `training.evaluation.linear_probe.LinearProbe`.
        lengths, probe, progress: of "sgd": number of frames of each video, the arguments ``lr``
            and ``epochs``, and whether to show a bar.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    if classifier == "logistic":
        model = LogisticRegression(C=1.0, solver="lbfgs", max_iter=100_000)
    elif classifier == "svm":
        model = SVC(C=1.0, kernel="rbf", gamma="scale", decision_function_shape="ovo")
    elif classifier == "sgd":
        model = LinearProbe(lengths, progress=progress, **(probe or {}))
    else:
        raise ValueError(f"classifier is {classifier!r}; expected 'logistic', 'svm' or 'sgd'")
    if np.unique(y).size == 1:  # scikit-learn does not accept a single class
        return lambda embeddings: np.full(len(embeddings), y[0])
    return model.fit(x, y).predict


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
    return Score(mean(values), draws=tuple(values))


def progression(
    train: Sequence[LabelledVideo],
    test: Sequence[LabelledVideo],
    num_phases: int,
    *,
    last_phase: bool = False,
    frame_index: bool = False,
) -> Score:
    """Mean R^2 on the test frames of linear models that predict the time to each phase boundary.

    For boundary c = 0 .. num_phases - 2, with ``last_phase`` (AE2) also num_phases - 1, the target
    of frame t is (t - last frame of phase c) / L, with t and L counted over the labelled frames.
    One linear regression per boundary is fitted on the training frames. A video without phase c is
    left out of boundary c, in fitting and in scoring (CARL's code stops with an error there). A
    boundary without any video, or with a constant target, is left out of the mean. R^2 has no lower
    bound. ``frame_index`` (AE2's code for Pour Liquid): t / 1000 is appended to the embedding of
    frame t.
    """
    from sklearn.metrics import r2_score

    if frame_index:
        train, test = (
            [replace(video, embeddings=_with_index(video.embeddings)) for video in videos]
            for videos in (train, test)
        )
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
        predict = linear_regression(_stack(fit)[0], targets)
        for place, boundary in enumerate(boundaries):
            score = _with_phase(test, boundary)
            predicted = predict(_stack(score)[0])[:, place]
            scores.append(r2_score(_to_boundary(score, boundary), predicted))
    return Score(mean(scores), left_out)


def linear_regression(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function from x (n, E) to y (n, K) of a linear regression with intercept.

    The solution is that of scikit-learn's LinearRegression, the one of least norm. A QR
    decomposition finds it in a third of the time where there are more frames than dimensions and
    the regression is well-conditioned; otherwise scikit-learn does.
    """
    from scipy.linalg import lapack, qr, solve_triangular
    from sklearn.linear_model import LinearRegression

    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    centred = x - x_mean
    used = centred.any(axis=0)  # the weight of a channel that is always 0 is 0
    dims = int(used.sum())
    if 0 < dims < len(x):
        both = np.column_stack([centred[:, used], y - y_mean])
        r = qr(both, mode="r", overwrite_a=True, check_finite=False)[0][:dims]
        if lapack.dtrcon(r[:, :dims])[0] > _WELL_CONDITIONED:
            weights = np.zeros((x.shape[1], y.shape[1]))
            weights[used] = solve_triangular(r[:, :dims], r[:, dims:])
            return lambda embeddings: (embeddings - x_mean) @ weights + y_mean
    return LinearRegression().fit(x, y).predict


def _stack(videos: Sequence[LabelledVideo]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.concatenate([video.embeddings for video in videos]),
        np.concatenate([video.phases for video in videos]),
    )


def _with_index(embeddings: np.ndarray) -> np.ndarray:
    return np.column_stack([embeddings, 1e-3 * np.arange(len(embeddings))])


def _with_phase(videos: Sequence[LabelledVideo], phase: int) -> list[LabelledVideo]:
    return [video for video in videos if phase in video.phases]


def _to_boundary(videos: Sequence[LabelledVideo], phase: int) -> np.ndarray:
    """The time of every frame to the end of a phase, as a share of its video."""
    ends = [(video, np.flatnonzero(video.phases == phase)[-1]) for video in videos]
    return np.concatenate(
        [(np.arange(len(video.phases)) - last) / len(video.phases) for video, last in ends] or [[]]
    )
