"""The fast metrics over pairs and nearest frames equal plain loops, ties included."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_evaluation import video

from benchmarks import evaluation_peers as plain
from training.evaluation import metrics, pairs
from training.evaluation.events import event_errors, event_keys
from training.evaluation.neighbours import _nearest_hits
from training.support.command import UserError


def made(kind, seed, dim):
    """Videos of 1 to 50 frames: some without the first phase, one whose phases go backwards."""
    rng = np.random.default_rng(seed)
    out = []
    for number, length in enumerate([50, 1, 33, 16, 2, 17, 31]):
        bits = rng.integers(0, 2, (length, dim))
        x = {
            "random": rng.normal(size=(length, dim)),
            "tied": bits,
            "constant": np.ones((length, dim)),
            "slow": bits.cumsum(axis=0) / 7,
        }[kind]
        labels = np.sort(rng.integers(number % 2, 5, length))
        if number == 2:
            labels = labels[::-1].copy()
        one = video(x, labels, str(number), view="ab"[number % 3 == 0])
        frames = np.sort(rng.choice(99, length, replace=False))
        out.append(replace(one, frames=frames, times=np.sort(rng.random(length))))
    return out


KINDS = ["random", "tied", "constant", "slow"]


def expected_scores(videos, stride):
    """What `pair_scores` returns, from the plain loops."""
    taus = plain.taus(videos, stride)
    scores = {"kendalls_tau": taus[~np.isnan(taus)]}
    scores["alignment_error"] = plain.alignment_errors(videos, "nearest")
    scores["alignment_error_dtw"] = plain.alignment_errors(videos, "dtw")
    values = {key: float(np.mean(found)) if len(found) else np.nan for key, found in scores.items()}
    for key, errors in plain.event_errors(videos)[0].items():
        reduced = [reduce(one) for one in errors for reduce in (np.mean, np.median)]
        values |= dict(zip(event_keys(key), reduced, strict=True))
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stride", "dim"), [(1, 3), (2, 4), (7, 13)])
def test_pair_scores_equal_plain_loops(kind, stride, dim):
    videos = made(kind, dim, dim)
    scores = metrics.pair_scores(videos, stride)
    values = {name: score.value for name, score in scores.items()}
    expected = expected_scores(videos, stride)
    assert list(values) == list(expected)
    assert values == pytest.approx(expected, abs=1e-12, nan_ok=True)
    # What is left out: pairs without a tau, the video that goes back, events of one video alone.
    assert [sum(scores[name].left_out.values()) for name in list(scores)[:4]] == [
        int(np.isnan(plain.taus(videos, stride)).sum()),
        1,
        0,
        plain.event_errors(videos)[1],
    ]
    # Each metric alone is the same.
    alone = [
        metrics.kendalls_tau(videos, stride),
        metrics.alignment_error(videos),
        metrics.alignment_error(videos, "dtw"),
        *event_errors(videos).values(),
    ]
    scores["alignment_error_dtw"].left_out = scores["alignment_error"].left_out
    assert repr(alone) == repr(list(scores.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stride", "dim", "views"), [(1, 5, None), (3, 8, None), (1, 1, "ab")])
def test_retrieval_equals_plain_loops(kind, stride, dim, views):
    videos, ks = made(kind, dim, dim), [1, 5, 15, 200]
    views = views and tuple(views)
    for k in (4, 200):  # 200: more than all candidates
        ours = list(_nearest_hits(videos, stride, k, views, progress=False))
        theirs = list(plain.nearest_hits(videos, stride, k, views))
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    average = metrics.average_precisions_at(videos, stride, ks, views)
    precision = metrics.precisions_at(videos, stride, ks)
    for k in ks:
        hits = list(plain.nearest_hits(videos, stride, k, views))
        expected = np.mean(np.concatenate([plain.average_precisions(one) for one in hits]))
        assert average[k].value == pytest.approx(expected, abs=1e-12)
        assert sum(average[k].left_out.values()) == sum(one.shape[1] < k for one in hits)
        expected = np.mean([one.mean() for one in plain.nearest_hits(videos, stride, k)])
        assert precision[k].value == pytest.approx(expected, abs=1e-12)


def test_a_tie_of_two_ways_around_a_pair_takes_the_step_in_the_query():
    # Frames 1 of both are far apart, so two paths around that pair cost 2 each. From a the path is
    # (0,0) (0,1) (1,2) (2,2): errors .25, 0, .5. From b it is (0,0) (0,1) (1,2) (2,2): the frames
    # of a are at 0, 1, 1.5, so the errors are .5, 1, .5.
    a, b = video([0, 1, 0], [0, 1, 1]), video([0, -1, 0], [0, 0, 1])
    score = metrics.alignment_error([a, b], "dtw").value
    assert score == pytest.approx((0.25 + 2 / 3) / 2, abs=1e-12)
    assert score == pytest.approx(plain.alignment_errors([a, b], "dtw").mean(), abs=1e-12)


def test_many_parts_and_threads_change_nothing(monkeypatch):
    videos = made("random", 0, 3)
    expected = repr(metrics.pair_scores(videos, 2)), repr(metrics.precision_at_k(videos, 1, 5))
    assert len(list(pairs._parts(videos))) == len(videos) - 1
    monkeypatch.setattr(pairs, "_PER_CALL", 100)
    parts = list(pairs._parts(videos))
    assert len(parts) > len(videos)
    compared = [(i, j) for i, begin, end in parts for j in range(begin, end)]
    assert compared == [(i, j) for i in range(len(videos)) for j in range(i)]
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = repr(metrics.pair_scores(videos, 2)), repr(metrics.precision_at_k(videos, 1, 5))
        assert found == expected


def test_only_the_chosen_metrics():
    videos = made("random", 1, 3)
    every = metrics.pair_scores(videos, 1)
    for which, keys in [
        ("tau", ["kendalls_tau"]),
        ("alignment", ["alignment_error", "alignment_error_dtw"]),
        ("events", [key for key in every if key.startswith("event_")]),
    ]:
        assert which in metrics.PAIR_METRICS
        scores = metrics.pair_scores(videos, 1, [which])
        assert repr(scores) == repr({key: every[key] for key in keys})
    assert metrics.pair_scores(videos, 1, []) == {}


def test_nan_is_refused_by_name():
    videos = made("random", 2, 3)
    videos[3].embeddings[5, 1] = np.nan
    for compute in (
        lambda: metrics.kendalls_tau(videos, 1),
        lambda: metrics.precision_at_k(videos, 1, 5),
    ):
        with pytest.raises(UserError, match=r"^3: the embeddings have NaN or infinity"):
            compute()


def test_the_bars_count_pairs_and_videos():
    videos, shown = made("random", 3, 3), io.StringIO()
    with redirect_stderr(shown):
        metrics.pair_scores(videos, 1)
        metrics.precisions_at(videos, 1, [5])
        assert not shown.getvalue()
        metrics.pair_scores(videos, 1, progress=True)
        metrics.precisions_at(videos, 1, [5], progress=True)
    assert "comparing videos: 100%" in shown.getvalue()
    assert "21.0/21.0" in shown.getvalue()
    assert "nearest frames: 100%" in shown.getvalue()
    assert "7/7" in shown.getvalue()


@pytest.mark.process
def test_importing_the_metrics_loads_neither_numba_nor_torch():
    code = "import sys, training.evaluation.metrics; print({'numba', 'torch'} & sys.modules.keys())"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "set()"
