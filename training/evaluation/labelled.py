"""What the metrics of frame embeddings have in common: labelled frames, scores, means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.evaluation.embed import EmbeddedVideo
from training.evaluation.videos import seconds_of
from training.support.command import UserError


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
    """The value of a metric and, by reason, the number of things left out.

    draws: of a mean over random choices, the value of each.
    """

    value: float
    left_out: Counter[str] = field(default_factory=Counter)
    draws: tuple[float, ...] = ()


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


def labelled_video(
    video: EmbeddedVideo, dtype: type[np.floating] = np.float64
) -> LabelledVideo | None:
    """The labelled frames of a video, or None if it has none; frames in gaps count as unlabelled.

    dtype: of the embeddings that are returned.
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
        video.embeddings[keep].astype(dtype, copy=False),
        phases[keep],
        None if position is None else position[video.frames[keep]],
        video.record.view,
        frames=video.frames[keep],
        times=seconds_of(video.record, video.frames[keep]),
    )


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    return mean([value for value in values if not np.isnan(value)])


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
