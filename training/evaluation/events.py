"""Errors of events that are carried over from one video to another, in frames and in seconds.

An event is the first labelled frame of a phase. As in `metrics`, all videos show one action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from training.evaluation.metrics import LabelledVideo, Score, ordered_pairs

KEYS = ("event_error", "event_error_dtw")


def event_keys(key: str) -> tuple[str, str, str, str]:
    """The keys of mean and median in frames, then in seconds, for one of KEYS."""
    return key, f"{key}_median", f"{key}_seconds", f"{key}_median_seconds"


def events_of(video: LabelledVideo) -> dict[int, int]:
    """Phase -> row of its first labelled frame, for the phases whose beginning the video shows.

    The first phase of a video has no event, because it may have begun before the video.
    """
    phases, rows = np.unique(video.phases, return_index=True)
    return {int(phase): int(row) for phase, row in zip(phases, rows, strict=True) if phase and row}


def event_errors(test: Sequence[LabelledVideo]) -> dict[str, Score]:
    """Error = |frame that a video's event is matched to - the other video's own event|, in frames.

    For each ordered pair of different videos and each event of `events_of` that both have, the
    frame of the first is matched to a labelled frame of the second: to the nearest embedding
    (``event_error``), or to the middle one of the frames that the cheapest monotone path pairs it
    with (``event_error_dtw``, see :func:`training.evaluation.alignment.match_frames`). Errors are
    in frame numbers of the second video; seconds are the difference of the two frames' presentation
    times.

    Returns:
        Mean and median over all pairs and events under each of `event_keys`; NaN without any.
        Videos whose phases go backwards are left out; their number is in
        :func:`training.evaluation.metrics.alignment_error`, which leaves out the same videos.
    """
    from fastseq.ops.soft_dtw import dtw_path_from_cost  # loads torch: after --help
    from training.evaluation.alignment import match_frames

    placed = [video for video in test if video.position is not None]
    events = {id(video): events_of(video) for video in placed}
    left_out: Counter[str] = Counter()
    errors: dict[str, list[np.ndarray]] = {key: [] for key in KEYS}
    seconds: dict[str, list[np.ndarray]] = {key: [] for key in KEYS}
    for query, other, distances in ordered_pairs(placed):
        there, wanted = events[id(query)], events[id(other)]
        shared = sorted(there.keys() & wanted.keys())
        left_out["(test video pair, event) where only one of the two shows the event"] += len(
            there.keys() ^ wanted.keys()
        )
        if not shared:
            continue
        rows = [there[event] for event in shared]
        true = [wanted[event] for event in shared]
        path, _ = dtw_path_from_cost(distances)
        matched = {
            "event_error": distances[rows].argmin(axis=1),
            "event_error_dtw": match_frames(*path.numpy().T, len(distances))[rows],
        }
        for key, match in matched.items():
            errors[key].append(np.abs(other.frames[match] - other.frames[true]))
            seconds[key].append(np.abs(other.times[match] - other.times[true]))
    scores = {}
    for key in KEYS:
        for name, values, reduce in zip(
            event_keys(key),
            (errors[key], errors[key], seconds[key], seconds[key]),
            (np.mean, np.median) * 2,
            strict=True,
        ):
            scores[name] = Score(float(reduce(np.concatenate(values))) if values else np.nan)
    scores["event_error"].left_out = left_out
    return scores
