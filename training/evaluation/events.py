"""Errors of events that are carried over from one video to another, in frames and in seconds.

An event is the first labelled frame of a phase. As in `metrics`, all videos show one action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from training.evaluation.labelled import LabelledVideo, Score
from training.evaluation.pairs import Comparison, compare_videos

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


def event_errors(test: Sequence[LabelledVideo], *, progress: bool = False) -> dict[str, Score]:
    """Error = |frame that a video's event is matched to - the other video's own event|, in frames.

    For each ordered pair of different videos and each event of `events_of` that both have, the
    frame of the first is matched to a labelled frame of the second: to the nearest embedding
    (``event_error``), or to the middle one of the frames that the cheapest monotone path pairs it
    with (``event_error_dtw``, see :func:`training.evaluation.alignment.match_frames`). Errors are
    in frame numbers of the second video; seconds are the difference of the two frames' presentation
    times.

    Args:
        test: the labelled frames of the test videos of one action.
        progress: whether to show a bar over pairs of videos.

    Returns:
        Mean and median over all pairs and events under each of `event_keys`; NaN without any.
        Videos whose phases go backwards are left out; their number is in
        :func:`training.evaluation.metrics.alignment_error`, which leaves out the same videos.
    """
    events = [events_of(video) for video in test]
    return event_scores(test, compare_videos(test, align=True, events=events, progress=progress))


def event_scores(test: Sequence[LabelledVideo], compared: Comparison) -> dict[str, Score]:
    """The scores of :func:`event_errors` from a comparison with ``align`` and ``events``."""
    scores = {}
    for key, *errors in zip(KEYS, compared.frames, compared.seconds, strict=True):
        values = [
            float(reduce(one)) if one.size else np.nan
            for one in errors
            for reduce in (np.mean, np.median)
        ]
        scores |= dict(zip(event_keys(key), map(Score, values), strict=True))
    placed = [events_of(video) for video in test if video.position is not None]
    having = Counter(event for events in placed for event in events)
    # Each video with the event and each without it are two ordered pairs.
    alone = sum(2 * count * (len(placed) - count) for count in having.values())
    reason = "(test video pair, event) where only one of the two shows the event"
    scores["event_error"].left_out = Counter({reason: alone})
    return scores
