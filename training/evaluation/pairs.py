"""One pass over all pairs of videos of an action: tau, alignment and events from one distance
matrix each.

Memory: a copy of all frames' embeddings, and for each thread 16 rows of distances and a byte for
each pair of frames of two videos. Threads: torch's number, which OMP_NUM_THREADS sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from training.evaluation.labelled import LabelledVideo
from training.support.command import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

# Differences of one call of the kernel: about 50 ms.
_PER_CALL = 500_000_000
_T = TypeVar("_T")


@dataclass(frozen=True)
class Comparison:
    """Values of all pairs of videos; pair i (i - 1) / 2 + j is videos i and j < i.

    tau, nearest, dtw: float64 (pairs, 2), from i to j and from j to i: Kendall's tau-b, NaN where
    it is undefined, and the alignment errors by nearest frame and by DTW in phases, NaN unless both
    videos have phase positions. frames: int32 (2, n), seconds: float64 (2, n): the errors of all
    events that both videos have, by nearest frame and by DTW.
    """

    tau: np.ndarray
    nearest: np.ndarray
    dtw: np.ndarray
    frames: np.ndarray
    seconds: np.ndarray


def compare_videos(
    videos: Sequence[LabelledVideo],
    *,
    stride: int | None = None,
    align: bool = False,
    events: Sequence[dict[int, int]] | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare every video with every other one, in both directions.

    Args:
        videos: the labelled frames of the videos of one action.
        stride: step in frames of Kendall's tau; None: no tau.
        align: whether to compute the alignment errors, between the videos with phase positions.
        events: of each video phase -> row of the event, see
            :func:`training.evaluation.events.events_of`; only with ``align``. Default: no events.
        progress: whether to show a bar.

    Raises:
        UserError: embeddings with NaN or infinity.
    """
    pairs = len(videos) * (len(videos) - 1) // 2
    out = np.full((3, pairs, 2), np.nan)
    frames, seconds = [np.empty((2, 0), np.int32)], [np.empty((2, 0))]
    if pairs and (stride is not None or align):
        compare = _comparer(videos, stride, align, events, out)
        with pairs_bar(pairs, "comparing videos", progress) as bar:
            for count, in_frames, in_seconds in in_parallel(compare, _parts(videos)):
                frames.append(in_frames)
                seconds.append(in_seconds)
                bar.update(count)
    return Comparison(*out, np.concatenate(frames, axis=1), np.concatenate(seconds, axis=1))


def _comparer(
    videos: Sequence[LabelledVideo],
    stride: int | None,
    align: bool,
    events: Sequence[dict[int, int]] | None,
    out: np.ndarray,
) -> Callable[[tuple[int, int, int]], tuple[int, np.ndarray, np.ndarray]]:
    """A function of (i, begin, end) that compares video i with the videos begin to end - 1.

    It writes into ``out`` and returns the number of pairs and the errors of their events.
    """
    from training.evaluation.pair_kernels import compare_pairs  # loads numba: after --help

    x = np.concatenate([finite_embeddings(video) for video in videos])
    starts = np.cumsum([0, *(len(video.phases) for video in videos)])
    position = np.concatenate(
        [np.full(len(v.phases), np.nan) if v.position is None else v.position for v in videos]
    )
    numbers = np.concatenate([video.frames for video in videos])
    times = np.concatenate([video.times for video in videos])
    table = _event_table(videos, events or [{}] * len(videos))
    options = stride is not None, stride or 1, align

    def compare(part: tuple[int, int, int]) -> tuple[int, np.ndarray, np.ndarray]:
        i, begin, end = part
        pair, phase = np.nonzero((table[begin:end] >= 0) & (table[i] >= 0))
        matched = np.zeros((len(pair), 4), np.int64)
        first = i * (i - 1) // 2
        values = out[:, first + begin : first + end]
        compare_pairs(x, starts, position, options, i, begin, end, table, values, matched)
        # Rows in the packed arrays: where i's events are matched to in j, then j's events in i,
        # (method, event, direction), and where the events are (event, direction).
        j = begin + pair
        found = np.stack([starts[j, None] + matched[:, :2], starts[i] + matched[:, 2:]]).T
        true = np.stack([starts[j] + table[j, phase], starts[i] + table[i, phase]]).T
        in_frames = np.abs(numbers[found] - numbers[true]).astype(np.int32)
        in_seconds = np.abs(times[found] - times[true])
        return end - begin, in_frames.reshape(2, -1), in_seconds.reshape(2, -1)

    return compare


def _event_table(videos: Sequence[LabelledVideo], events: Sequence[dict[int, int]]) -> np.ndarray:
    """int64 (V, P): rows of the events, -1 where a video has none or no phase positions."""
    table = np.full((len(videos), 1 + max(max(rows, default=-1) for rows in events)), -1)
    for row, video, rows in zip(table, videos, events, strict=True):
        if video.position is not None:
            row[list(rows)] = list(rows.values())
    return table


def _parts(videos: Sequence[LabelledVideo]) -> Iterator[tuple[int, int, int]]:
    """(i, begin, end) of all pairs, each with about _PER_CALL differences."""
    lengths = np.array([len(video.phases) for video in videos])
    before = np.cumsum(lengths) - lengths
    channels = videos[0].embeddings.shape[1]
    for i in range(1, len(videos)):
        calls = 1 + int(before[i]) * int(lengths[i]) * channels // _PER_CALL
        cuts = np.linspace(0, i, min(calls, i) + 1).astype(int).tolist()
        for begin, end in pairwise(cuts):
            yield i, begin, end


def finite_embeddings(video: LabelledVideo) -> np.ndarray:
    """The embeddings of a video; UserError if they have NaN or infinity."""
    if not np.isfinite(video.embeddings).all():
        raise UserError(
            f"{video.id}: the embeddings have NaN or infinity; expected finite numbers. Look for "
            "the step in log.jsonl where the loss became NaN, and evaluate an earlier checkpoint"
        )
    return video.embeddings


def pairs_bar(total: int, what: str, progress: bool) -> tqdm:
    """A bar over pairs with the time that is left; hidden unless ``progress``."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit="pair", unit_scale=True, disable=not progress)


def in_parallel(function: Callable[[Any], _T], items: Iterable[Any]) -> Iterator[_T]:
    """function(item) of each item in order, in torch's number of threads."""
    import torch  # after --help

    workers = torch.get_num_threads()
    if workers == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="evaluation")
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
