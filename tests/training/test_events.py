"""Events transferred to other videos, compared with explicit loops and values by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from statistics import mean, median

import numpy as np
import pytest
from test_evaluation import record, squared, video

from training.evaluation.embed import EmbeddedVideo
from training.evaluation.events import event_errors, events_of
from training.evaluation.metrics import labelled_video
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.tables import event_cells


def cheapest_path(cost):
    """Cells of the cheapest monotone path from corner to corner, by recursion from the end."""
    best = {}
    for i, j in itertools.product(range(len(cost)), range(len(cost[0]))):
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        known = [(best[cell][0], cell) for cell in before if cell in best]
        least, cell = min(known) if known else (0, None)
        best[i, j] = cost[i][j] + least, cell
    path, cell = [], (len(cost) - 1, len(cost[0]) - 1)
    while cell is not None:
        path.append(cell)
        cell = best[cell][1]
    return path[::-1]


def slow_errors(videos):
    """Lists of the errors in frames and in seconds, over all pairs and events, for both methods."""
    out = {"nearest": ([], []), "dtw": ([], [])}
    for a, b in itertools.permutations(videos, 2):
        cost = [[squared(x, y) for y in b.embeddings.tolist()] for x in a.embeddings.tolist()]
        path = cheapest_path(cost)
        for phase in range(1, 10):
            rows = [v.phases.tolist().index(phase) if phase in v.phases else 0 for v in (a, b)]
            if not all(rows):
                continue
            paired = [j for i, j in path if i == rows[0]]
            matches = {
                "nearest": cost[rows[0]].index(min(cost[rows[0]])),
                "dtw": paired[(len(paired) - 1) // 2],
            }
            for method, match in matches.items():
                for values, found in zip((b.frames, b.times), out[method], strict=True):
                    found.append(abs(float(values[match]) - float(values[rows[1]])))
    return out


def random_labelled(seed):
    """Videos of different lengths and variable rates, with missing frames, some without a phase."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(4):
        length = int(rng.integers(12, 18))
        labels = np.sort(rng.integers(number % 2, 4, length))
        labels = np.where(labels == 2, 3, labels) if number == 3 else labels
        one = video(rng.normal(size=(length, 3)) + labels[:, None], labels, str(number))
        frames = np.sort(rng.choice(40, length, replace=False))
        out.append(replace(one, frames=frames, times=np.sort(rng.random(length))))
    return out


@pytest.mark.parametrize("seed", [0, 1])
def test_event_errors_equal_explicit_loops(seed):
    videos = random_labelled(seed)
    scores = {name: score.value for name, score in event_errors(videos).items()}
    slow = slow_errors(videos)
    expected = {}
    for key, method in (("event_error", "nearest"), ("event_error_dtw", "dtw")):
        frames, seconds = slow[method]
        expected |= {key: mean(frames), f"{key}_median": median(frames)}
        expected |= {f"{key}_seconds": mean(seconds), f"{key}_median_seconds": median(seconds)}
    assert scores == pytest.approx(expected, abs=1e-12)
    assert expected["event_error"] != expected["event_error_dtw"]


def test_event_errors_by_hand_in_true_frame_numbers():
    # The event is row 2 in both. From a it is nearest to b's row 3, from b to a's row 1.
    a = replace(video([0, 1, 2, 3], [0, 0, 1, 1]), times=np.array([0, 0.1, 0.2, 0.3]))
    b = replace(video([-1, 0, 1, 2], [0, 0, 1, 1]), frames=np.array([0, 1, 6, 10]))
    b = replace(b, times=np.array([0, 0.05, 0.3, 0.5]))
    scores = event_errors([a, b])
    assert scores["event_error"].value == pytest.approx((4 + 1) / 2)
    assert scores["event_error_seconds"].value == pytest.approx((0.2 + 0.1) / 2)
    assert scores["event_error_median"].value == pytest.approx(2.5)
    # DTW pairs (0,0) (0,1) (1,2) (2,3) (3,3): a's event with b's row 3, b's with a's row 1.
    assert scores["event_error_dtw"].value == pytest.approx(2.5)


def test_a_phase_that_a_video_begins_with_is_no_event():
    assert events_of(video(np.arange(5), [1, 1, 2, 2, 4])) == {2: 2, 4: 4}
    assert events_of(video(np.arange(3), [0, 0, 0])) == {}
    # Frames before the first usable one are a gap: phase 1 has begun there.
    cut = record("cut", [0, 0, 1, 1, 2, 2])
    cut.gaps = ((0, 3),)
    one = labelled_video(EmbeddedVideo(cut, np.zeros((3, 2), np.float32)))
    assert events_of(one) == {2: 1}
    assert one.frames.tolist() == [3, 4, 5]
    assert one.times.tolist() == [3 / 25, 4 / 25, 5 / 25]
    cut.times = np.array([0, 1, 2, 4, 8, 16.0])
    one = labelled_video(EmbeddedVideo(cut, np.zeros((3, 2), np.float32)))
    assert one.times.tolist() == [4, 8, 16]


def test_what_events_leave_out_is_counted():
    a, b = video([0, 1, 2], [0, 1, 2]), video([0, 1, 2], [0, 1, 1])
    back = video([0, 1, 2], [0, 1, 0])
    scores = event_errors([a, b, back])
    assert scores["event_error"].value == 0.0
    reason = "(test video pair, event) where only one of the two shows the event"
    assert +scores["event_error"].left_out == {reason: 2}
    nothing = event_errors([video([0, 1], [0, 0])] * 2)
    assert all(math.isnan(score.value) for score in nothing.values())
    embedded = [
        EmbeddedVideo(record(str(n), v.phases), v.embeddings.astype(np.float32))
        for n, v in enumerate([a, b, back])
    ]
    row = evaluate_embeddings(embedded, embedded, {"all": list("xyz")}, stride=1)
    assert row["left_out"]["test videos whose phases go backwards"] == 1
    assert row["left_out"][reason] == 2


def test_the_table_of_events():
    keys = [f"event_error{way}{kind}" for way in ("", "_dtw") for kind in ("", "_median")]
    values = dict(zip(keys, (6.666, 4.0, 1.386, 1.0), strict=True))
    values |= {f"{key}_seconds": value / 30 for key, value in values.items()}
    rows = {"time index only": {"metrics": {}}, "trained": {"metrics": values}}
    lines = event_cells(rows)
    assert lines[1] == ["time index only", "-", "-", "-", "-"]
    assert lines[2] == ["trained", "6.67 (4.00)", "0.22 (0.13)", "1.39 (1.00)", "0.05 (0.03)"]
    assert lines[0][1:3] == ["by nearest frame, frames", "same, seconds"]
    assert event_cells({"trained": {"metrics": {"linear_svm": 0.5}}}) == []
