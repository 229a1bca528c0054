"""Aligning two videos: the DTW path, its files, and a video that plays them in step."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastseq.ops.soft_dtw import dtw_local_path_from_cost, dtw_path_from_cost
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.videos import seconds_of, usable_range
from training.support.command import UserError
from training.support.files import replacing

# The share of all pairs of frames that earn something in an open alignment where no threshold is
# given. On golf swings (README) a tenth leaves too much out, 3 tenths too little.
EARNING_SHARE = 0.2
OUTSIDE = -1


@dataclass(frozen=True)
class Alignment:
    """The DTW path between two videos, cost = squared distance of the unit-length embeddings.

    i, j: int64, the path, in rows of the embeddings, which are frames unless there are gaps.
    matched: a row of the second video for every row of the first, OUTSIDE where the path has none.
    similarity: mean cosine similarity along the path. straight: the same along the straight line
    from first to last frames, which is what stretching evenly would give.
    threshold, score: of an open alignment, see `align_open`.
    """

    i: np.ndarray
    j: np.ndarray
    matched: np.ndarray
    similarity: float
    straight: float
    threshold: float | None = None
    score: float | None = None


def align(a: EmbeddedVideo, b: EmbeddedVideo) -> Alignment:
    """Align two embedded videos from first to last frame."""
    similarity = a.embeddings @ b.embeddings.T
    path, _ = dtw_path_from_cost(2.0 - 2.0 * similarity)
    return _alignment(a, b, similarity, path.numpy())


def align_open(a: EmbeddedVideo, b: EmbeddedVideo, threshold: float | None = None) -> Alignment:
    """Align the parts of two embedded videos that go together; what is before and behind stays out.

    Each pair of the path earns its cosine similarity less the threshold, and the path with the
    highest sum wins: :func:`fastseq.ops.soft_dtw.dtw_local_path_from_cost`. Unless given, the
    threshold is the similarity that EARNING_SHARE of all pairs of frames exceed. Where at an end of
    the path one video stands still on a frame, only the innermost pair is kept: there that video
    has ended, or not begun. The score is the sum over the pairs that are left.

    Raises UserError when no pair exceeds the threshold.
    """
    similarity = a.embeddings @ b.embeddings.T
    if threshold is None:
        threshold = float(np.quantile(similarity, 1 - EARNING_SHARE))
    path, _ = dtw_local_path_from_cost(-similarity, threshold=-threshold)
    if not len(path):
        raise UserError(
            f"no frame of {a.record.id} and {b.record.id} has a similarity above {threshold:.4f}; "
            f"the highest is {similarity.max():.4f}: give a lower threshold"
        )
    found = _alignment(a, b, similarity, _without_still_ends(path.numpy()))
    score = float((similarity[found.i, found.j] - threshold).sum(dtype=np.float64))
    return replace(found, threshold=threshold, score=score)


def _without_still_ends(path: np.ndarray) -> np.ndarray:
    """The path less its first and last runs of pairs with the same frame but the inmost of them."""
    first = (path == path[0]).sum(axis=0).max() - 1
    last = len(path) - (path == path[-1]).sum(axis=0).max()
    return path[first : last + 1] if first <= last else path


def _alignment(
    a: EmbeddedVideo, b: EmbeddedVideo, similarity: np.ndarray, path: np.ndarray
) -> Alignment:
    i, j = path.T
    matched = np.full(len(a.embeddings), OUTSIDE)
    inside = slice(i[0], i[-1] + 1)
    matched[inside] = match_frames(i - i[0], j, len(matched[inside]))
    even = stretched(a, b)
    return Alignment(
        i,
        j,
        matched,
        float(similarity[i, j].mean()),
        float(similarity[np.arange(len(even)), even].mean()),
    )


def centred(video: EmbeddedVideo) -> EmbeddedVideo:
    """The video with its mean embedding taken off every frame, unit-length again.

    What is the same in all its frames, as place, person and view are, counts no longer. A frame
    that equals the mean becomes 0, similar to nothing.
    """
    rest = video.embeddings - video.embeddings.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(rest, axis=1, keepdims=True)
    unit = np.where(length > 1e-6, rest / np.maximum(length, 1e-6), 0)
    return EmbeddedVideo(video.record, unit.astype(np.float32))


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
    """For every row of a, the row of b whose frame is nearest to `evenly`'s.

    Of a trimmed video what is left of it counts.
    """
    (first_a, last_a), (first_b, last_b) = usable_range(a.record), usable_range(b.record)
    frames, even = b.frames, evenly(last_a - first_a + 1, last_b - first_b + 1)
    asked = first_b + even[a.frames - first_a]
    after = np.searchsorted(frames, asked).clip(max=len(frames) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(frames[before] - asked) < np.abs(frames[after] - asked)
    return np.where(nearer, before, after)


def matches(a: EmbeddedVideo, b: EmbeddedVideo, alignment: Alignment) -> list[dict[str, float]]:
    """Each frame of a that has a matched frame of b, in order.

    ``frame_a``, ``frame_b``: int, numbers in the videos from 0; ``time_a``, ``time_b``: their
    presentation times in seconds; ``similarity``: cosine of the two embeddings.
    """
    rows = np.flatnonzero(alignment.matched != OUTSIDE)
    matched = alignment.matched[rows]
    similarity = (a.embeddings[rows] * b.embeddings[matched]).sum(axis=1, dtype=np.float64)
    frames_a, frames_b = a.frames[rows], b.frames[matched]
    columns = {
        "frame_a": frames_a,
        "frame_b": frames_b,
        "time_a": seconds_of(a.record, frames_a).round(4),
        "time_b": seconds_of(b.record, frames_b).round(4),
        "similarity": similarity.round(6),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def write_matches(a: EmbeddedVideo, b: EmbeddedVideo, alignment: Alignment, file: Path) -> None:
    """A CSV file of `matches`: a line for each, with the names of the columns first."""
    columns = ("frame_a", "frame_b", "time_a", "time_b", "similarity")
    with replacing(file) as partial, open(partial, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        for match in matches(a, b, alignment):
            frame_a, frame_b, *others = (match[column] for column in columns)
            writer.writerow([frame_a, frame_b, *(f"{value:.4f}" for value in others)])


def write_alignment(
    a: EmbeddedVideo, b: EmbeddedVideo, alignment: Alignment, file: Path, **about: Any
) -> None:
    """A JSON file of an alignment.

    ``a``, ``b``: id, path, frames and fps of the videos; what ``about`` holds; ``similarity`` and
    ``straight``: mean cosine similarity along the path and without alignment; ``threshold`` and
    ``score`` of an open alignment, else null; ``matches``: see `matches`; ``path``: pairs of frame
    numbers [a, b].
    """
    content: dict[str, Any] = {
        name: {key: getattr(video.record, key) for key in ("id", "path", "frames", "fps")}
        for name, video in (("a", a), ("b", b))
    }
    content |= about
    for key in ("similarity", "straight", "threshold", "score"):
        content[key] = getattr(alignment, key)
    content["matches"] = matches(a, b, alignment)
    content["path"] = np.stack([a.frames[alignment.i], b.frames[alignment.j]], axis=1).tolist()
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def write_aligned_video(
    a: EmbeddedVideo, b: EmbeddedVideo, alignment: Alignment, file: Path, *, height: int = 240
) -> None:
    """Three panels: a at its own pace, b aligned to it, and b stretched evenly for comparison.

    While a is outside the path the middle panel is empty.
    """
    from fastseq.video import write_video
    from training.evaluation.pictures import Panel, side_by_side

    frames_a, frames_b = (_pictures(video, height) for video in (a, b))
    panels = [
        Panel("at its own pace", a.record.id, frames_a, a.frames, np.arange(len(frames_a))),
        Panel("aligned", b.record.id, frames_b, b.frames, alignment.matched),
        Panel("stretched evenly", b.record.id, frames_b, b.frames, stretched(a, b)),
    ]
    write_video(file, side_by_side(panels, height=height), a.record.fps)


def _pictures(video: EmbeddedVideo, height: int) -> np.ndarray:
    """The frames that are used, uint8 (n, H, W, 3)."""
    from fastseq.video import read_frames

    crop = getattr(video.record, "crop", None)
    return read_frames(video.record.path, video.frames, short_side=height, crop=crop).numpy()
