"""Aligning two videos: the DTW path, its picture, and a video that plays them in step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastseq.ops.soft_dtw import dtw_path_from_cost
from training.evaluation.embed import EmbeddedVideo


@dataclass(frozen=True)
class Alignment:
    """The DTW path between two videos, cost = squared distance of the unit-length embeddings.

    i, j: int64, the path, in rows of the embeddings, which are frames unless there are gaps.
    matched: a row of the second video for every row of the first.
    similarity: mean cosine similarity along the path. straight: the same along the straight line
    from first to last frames, which is what stretching evenly would give.
    """

    i: np.ndarray
    j: np.ndarray
    matched: np.ndarray
    similarity: float
    straight: float


def align(a: EmbeddedVideo, b: EmbeddedVideo) -> Alignment:
    """Align two embedded videos from first to last frame."""
    similarity = a.embeddings @ b.embeddings.T
    path, _ = dtw_path_from_cost(2.0 - 2.0 * similarity)
    i, j = path.numpy().T
    even = stretched(a, b)
    return Alignment(
        i,
        j,
        match_frames(i, j, len(a.embeddings)),
        float(similarity[i, j].mean()),
        float(similarity[np.arange(len(even)), even].mean()),
    )


def match_frames(i: np.ndarray, j: np.ndarray, length: int) -> np.ndarray:
    """One frame of the second sequence for each of the ``length`` frames of the first.

    The path may pair a frame with several; the middle one of them is taken.
    """
    first = np.searchsorted(i, np.arange(length), side="left")
    last = np.searchsorted(i, np.arange(length), side="right") - 1
    return j[(first + last) // 2]


def evenly(frames_a: int, frames_b: int) -> np.ndarray:
    """For every frame of a, the frame of b at the same share of its length."""
    return np.round(np.linspace(0, frames_b - 1, frames_a)).astype(np.int64)


def stretched(a: EmbeddedVideo, b: EmbeddedVideo) -> np.ndarray:
    """For every row of a, the row of b whose frame is nearest to `evenly`'s."""
    frames, asked = b.frames, evenly(a.record.frames, b.record.frames)[a.frames]
    after = np.searchsorted(frames, asked).clip(max=len(frames) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(frames[before] - asked) < np.abs(frames[after] - asked)
    return np.where(nearer, before, after)


def write_aligned_video(
    a: EmbeddedVideo, b: EmbeddedVideo, alignment: Alignment, file: Path, *, height: int = 240
) -> None:
    """Three panels: a at its own pace, b aligned to it, and b stretched evenly for comparison."""
    from fastseq.video import read_frames, write_video
    from training.evaluation.pictures import Panel, side_by_side

    frames_a, frames_b = (
        read_frames(video.record.path, video.frames, short_side=height).numpy() for video in (a, b)
    )
    panels = [
        Panel("at its own pace", a.record.id, frames_a, a.frames, np.arange(len(frames_a))),
        Panel("aligned", b.record.id, frames_b, b.frames, alignment.matched),
        Panel("stretched evenly", b.record.id, frames_b, b.frames, stretched(a, b)),
    ]
    write_video(file, side_by_side(panels, height=height), a.record.fps)
