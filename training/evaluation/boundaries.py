"""Phases that a classifier predicts for each frame of a video, and where they begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.evaluation.classifiers import fitted
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.videos import seconds_of


@dataclass(frozen=True)
class Boundary:
    """The beginning of a phase in a video: labelled and predicted frame, None if not predicted."""

    phase: int
    labelled: int
    predicted: int | None


def predicted_phases(
    train: Sequence[EmbeddedVideo], videos: Sequence[EmbeddedVideo], classifier: str = "logistic"
) -> list[np.ndarray | None]:
    """The phase of each embedding of ``videos``, by a classifier fitted to ``train``.

    The classifier is that of `classifiers.fitted`: one for each action, fitted to every labelled
    frame of its training videos.

    Args:
        train, videos: embedded videos of one network.
        classifier: "logistic" (multinomial logistic regression) or "svm" (RBF kernel).

    Returns:
        For each video int64 (n,), the phases of its n embeddings, or None if no training video of
        its action has labels.
    """
    predictors: dict[str, Any] = {}
    found: list[np.ndarray | None] = []
    for video in videos:
        action = video.record.action
        if action not in predictors:
            of_action = [one for one in train if one.record.action == action]
            predictors[action] = _predictor(of_action, classifier)
        predict = predictors[action]
        found.append(None if predict is None else predict(video.embeddings.astype(float)))
    return found


def _predictor(train: Sequence[EmbeddedVideo], classifier: str) -> Any:
    """The function that predicts phases of embeddings; None without labelled frames."""
    known = [video for video in train if video.phases is not None and (video.phases >= 0).any()]
    if not known:
        return None
    x = np.concatenate([video.embeddings[video.phases >= 0] for video in known]).astype(float)
    return fitted(x, np.concatenate([v.phases[v.phases >= 0] for v in known]), classifier)


def on_frames(video: EmbeddedVideo, phases: np.ndarray) -> np.ndarray:
    """int64 (frames,): phases of the embeddings on all frames of the video, -1 in gaps."""
    shown = np.full(video.record.frames, -1)
    shown[video.frames] = phases
    return shown


def phase_starts(phases: np.ndarray) -> dict[int, int]:
    """Phase -> the frame where it begins, in order of the frames.

    A phase k covers the interval of frames for which (frames of phase k) - (frames of other phases)
    is largest, and begins with the first frame of it; of equal intervals the first counts. For
    phases without interruption these are their first frames. A few frames that a classifier gets
    wrong within a phase do not move its beginning. Frames of -1 count for no phase.
    """
    known = np.flatnonzero(phases >= 0)
    values = phases[known]
    starts = {}
    for phase in np.unique(values):
        sums = np.r_[0, np.cumsum(np.where(values == phase, 1, -1))]
        lowest = np.minimum.accumulate(sums[:-1])
        end = int((sums[1:] - lowest).argmax())
        # Of equal intervals to this end the shortest one, which begins with the phase.
        begin = int(np.flatnonzero(sums[: end + 1] == lowest[end])[-1])
        starts[int(phase)] = int(known[begin])
    return dict(sorted(starts.items(), key=lambda item: item[1]))


def inner_starts(phases: np.ndarray) -> dict[int, int]:
    """`phase_starts` without the phase of the first frame, which may have begun before."""
    known = np.flatnonzero(phases >= 0)
    return {phase: frame for phase, frame in phase_starts(phases).items() if frame != known[0]}


def boundaries(video: EmbeddedVideo, predicted: np.ndarray) -> list[Boundary]:
    """The labelled beginnings of phases in a video, each beside the predicted one.

    ``predicted``: phases of the embeddings, int64 (n,).
    """
    if video.record.phases is None:
        return []
    found = phase_starts(on_frames(video, predicted))
    return [
        Boundary(phase, frame, found.get(phase))
        for phase, frame in inner_starts(video.record.phases).items()
    ]


def off_by(video: EmbeddedVideo, boundary: Boundary) -> tuple[int, float] | None:
    """Predicted minus labelled beginning in frames and seconds; None if it is not predicted."""
    if boundary.predicted is None:
        return None
    labelled, predicted = seconds_of(video.record, [boundary.labelled, boundary.predicted])
    return boundary.predicted - boundary.labelled, float(predicted - labelled)
