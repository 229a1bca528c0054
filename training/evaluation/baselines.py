"""The baseline that learned embeddings must beat: the time index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.evaluation.embed import EmbeddedVideo
from training.evaluation.videos import usable_range

if TYPE_CHECKING:
    from training.data.index import VideoRecord

HARMONICS = 8
TIME_INDEX = "time index only"
TIME_INDEX_DEFINITION = (
    "An embedding of the frame's relative position in the video (or in its trimmed part), as sines "
    "and cosines. It uses no pixels."
)


def time_index_embedding(frames: int) -> np.ndarray:
    """Unit-length features of the relative time u = t / (frames - 1) alone, float32 (frames, 16).

    The features are sin(pi k u) / k and cos(pi k u) / k for k = 1..8. A linear model of them can
    bend over time, so this is a strong baseline for classification and progression. The distance of
    two frames grows strictly with |u - v|: its derivative is sum_k sin(pi k |u - v|) / k, which is
    positive on (0, 1). So nearest neighbours are exactly those of the plain time index.
    """
    u = np.arange(frames) / max(frames - 1, 1)
    k = np.arange(1, HARMONICS + 1)
    angle = np.pi * u[:, None] * k
    features = np.concatenate([np.sin(angle) / k, np.cos(angle) / k], axis=1)
    return (features / np.sqrt((1.0 / k**2).sum())).astype(np.float32)


def time_index(records: Sequence[VideoRecord]) -> list[EmbeddedVideo]:
    """The time-index baseline for every video, without any pixels.

    If a video has a trim, the index covers only the trimmed part.
    """
    return [EmbeddedVideo(record, _time_index_of(record)) for record in records]


def _time_index_of(record: VideoRecord) -> np.ndarray:
    from fastseq.video.gaps import frames_of

    first, last = usable_range(record)
    return time_index_embedding(last - first + 1)[frames_of(record) - first]
