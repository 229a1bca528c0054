"""Metrics compared with slow independent loops and hand-computed values; the table end to end."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from training.evaluate import write_and_print
from training.evaluation import classifiers, metrics
from training.evaluation.baselines import time_index, time_index_embedding
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.metrics import LabelledVideo, labelled_video, phase_position
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.tables import format_table, format_value


def record(name, phases, *, action="all", split="test", frames=None, view=""):
    phases = None if phases is None else np.asarray(phases, dtype=np.int64)
    return SimpleNamespace(
        id=name,
        path=name,
        frames=len(phases) if frames is None else frames,
        fps=25.0,
        action=action,
        split=split,
        phases=phases,
        view=view,
    )


def video(x, phases, name="v", view=""):
    """A LabelledVideo from plain lists; 1-d embeddings may be a flat list."""
    x = np.asarray(x, dtype=np.float64).reshape(len(phases), -1)
    phases = np.asarray(phases, dtype=np.int64)
    position, frames = phase_position(phases), np.arange(len(phases))
    return LabelledVideo(name, x, phases, position, view, frames=frames, times=frames / 25)


def random_videos(count, seed=0, dim=3, phases=3):
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        length = int(rng.integers(9, 15))
        labels = np.sort(rng.integers(0, phases, length))
        labels[:phases] = range(phases)
        labels.sort()
        out.append(video(rng.normal(size=(length, dim)) + labels[:, None], labels, str(number)))
    return out


def squared(a, b):
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


# --- phase position -----------------------------------------------------------------------------


def test_phase_position_is_linear_within_each_phase():
    position = phase_position(np.array([0, 0, 1, 1, 1, 1, 2]))
    np.testing.assert_allclose(position, [0, 0.5, 1, 1.25, 1.5, 1.75, 2])


def test_phase_position_skips_absent_phases_and_unlabelled_frames():
    position = phase_position(np.array([-1, 1, 1, -1, 3, 3, -1]))
    np.testing.assert_allclose(position, [np.nan, 1, 1.5, np.nan, 3, 3.5, np.nan])


def test_phase_position_of_a_gap_inside_a_phase_keeps_the_clock():
    position = phase_position(np.array([0, -1, -1, 0]))
    np.testing.assert_allclose(position, [0, np.nan, np.nan, 0.75])


def test_phases_that_step_back_have_no_position():
    assert phase_position(np.array([0, 1, 0])) is None


def test_unlabelled_frames_are_dropped_after_embedding():
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    labelled = labelled_video(EmbeddedVideo(record("a", [-1, 0, 1, -1]), x))
    np.testing.assert_array_equal(labelled.embeddings, x[1:3])
    np.testing.assert_array_equal(labelled.phases, [0, 1])
    assert labelled_video(EmbeddedVideo(record("a", [-1, -1]), x[:2])) is None
    assert labelled_video(EmbeddedVideo(record("a", None, frames=4), x)) is None


def test_label_and_frame_counts_must_agree():
    with pytest.raises(ValueError, match=r"a has 3 phase labels and 4 frames.*training\.prepare"):
        labelled_video(EmbeddedVideo(record("a", [0, 0, 1]), np.zeros((4, 2), np.float32)))


# --- Kendall's tau ------------------------------------------------------------------------------


def tau_b(x, y):
    """Kendall's tau-b by its definition, over all pairs of observations."""
    agree = ties_x = ties_y = 0
    pairs = list(itertools.combinations(range(len(x)), 2))
    for a, b in pairs:
        dx, dy = np.sign(x[a] - x[b]), np.sign(y[a] - y[b])
        agree += dx * dy
        ties_x += dx == 0
        ties_y += dy == 0
    return agree / math.sqrt((len(pairs) - ties_x) * (len(pairs) - ties_y))


@pytest.mark.parametrize("stride", [1, 2])
def test_tau_equals_explicit_loops(stride):
    videos = random_videos(4)
    expected = []
    for a, b in itertools.permutations(videos, 2):
        nearest = []
        for x in a.embeddings[::stride]:
            distances = [squared(x, y) for y in b.embeddings[::stride]]
            nearest.append(distances.index(min(distances)))
        expected.append(tau_b(range(len(nearest)), nearest))
    score = metrics.kendalls_tau(videos, stride)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert not +score.left_out


def test_tau_of_a_reversed_video_is_minus_one():
    a, b = video([0, 1, 2, 3], [0, 0, 1, 1]), video([3, 2, 1, 0], [0, 0, 1, 1])
    assert metrics.kendalls_tau([a, b], 1).value == pytest.approx(-1.0)
    assert metrics.kendalls_tau([a, a], 1).value == pytest.approx(1.0)


def test_tau_takes_the_first_of_tied_neighbours():
    # From [0, 1, 2] into [0, 0, 1]: neighbours 0, 2, 2 (tau-b .8165). Back: 0, 0, 1 (.8165).
    a, b = video([0, 1, 2], [0, 0, 0]), video([0, 0, 1], [0, 0, 0])
    assert metrics.kendalls_tau([a, b], 1).value == pytest.approx(math.sqrt(2 / 3), abs=1e-12)


def test_constant_neighbours_are_left_out_and_counted():
    # All of b's frames are nearest to a's frame 0; a's frames tie at b's frame 0 as well.
    a, b = video([0, 5, 6], [0, 0, 0]), video([0.1, 0.1, 0.1], [0, 0, 0])
    score = metrics.kendalls_tau([a, b], 1)
    assert math.isnan(score.value)
    assert sum(score.left_out.values()) == 2


# --- retrieval ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "k"), [(1, 5), (2, 3), (3, 40)])
def test_precision_equals_explicit_loops(stride, k):
    videos = random_videos(4, seed=1)
    per_video = []
    for query in videos:
        candidates = [
            (x, label)
            for other in videos
            if other is not query
            for x, label in zip(other.embeddings[::stride], other.phases[::stride], strict=True)
        ]
        values = []
        for x, label in list(zip(query.embeddings, query.phases, strict=True))[::stride]:
            ranked = sorted(candidates, key=lambda c, x=x: squared(x, c[0]))[:k]
            values.append(sum(c[1] == label for c in ranked) / len(ranked))
        per_video.append(sum(values) / len(values))
    score = metrics.precision_at_k(videos, stride, k)
    assert score.value == pytest.approx(sum(per_video) / len(per_video), abs=1e-12)
    assert bool(+score.left_out) == (k == 40)  # 40 is more than the number of candidates


def test_precision_is_averaged_per_video_not_per_frame():
    # The short video always hits; the long one only in the one frame that has phase 0.
    short = video([0.0], [0])
    long = video([0.1, 0.2, 0.3, 0.4], [0, 1, 1, 1])
    assert metrics.precision_at_k([short, long], 1, 1).value == pytest.approx((1 + 1 / 4) / 2)


def test_a_single_video_has_no_pairs():
    one = random_videos(1)
    assert math.isnan(metrics.kendalls_tau(one, 1).value)
    assert math.isnan(metrics.precision_at_k(one, 1, 5).value)
    assert math.isnan(metrics.alignment_error(one).value)


# --- classification -----------------------------------------------------------------------------


def test_classification_is_micro_accuracy_of_a_linear_classifier():
    train = [video([-3, -2, 2, 3], [0, 0, 1, 1])]
    test = [video([-1], [0]), video([-1, 1, 2], [1, 1, 1])]  # 3 of 4 frames are right
    assert metrics.classification(train, test).value == pytest.approx(0.75)


def test_classification_matches_a_direct_minimiser_of_the_objective():
    """Cross-entropy plus |W|^2 / 2, minimised by scipy; this is the meaning of C = 1."""
    from scipy.optimize import minimize

    train, test = random_videos(3, seed=2), random_videos(3, seed=3)
    x = np.concatenate([v.embeddings for v in train])
    y = np.concatenate([v.phases for v in train])

    def objective(flat):
        weights, bias = flat[:9].reshape(3, 3), flat[9:]
        logits = x @ weights + bias
        log_norm = np.log(np.exp(logits).sum(axis=1))
        return (log_norm - logits[np.arange(len(y)), y]).sum() + 0.5 * (weights**2).sum()

    best = minimize(objective, np.zeros(12), tol=1e-10).x
    x_test = np.concatenate([v.embeddings for v in test])
    predicted = (x_test @ best[:9].reshape(3, 3) + best[9:]).argmax(axis=1)
    expected = np.mean(predicted == np.concatenate([v.phases for v in test]))
    assert metrics.classification(train, test).value == pytest.approx(expected, abs=1e-12)


def test_fraction_takes_the_first_videos_and_at_least_one():
    good, wrong = video([-2, 2], [0, 1]), video([-9, 9] * 4, [1, 0] * 4)
    test = [video([-1, 1], [0, 1])]
    assert metrics.classification([good, wrong], test, 0.5).value == 1.0
    assert metrics.classification([good, wrong], test, 0.1).value == 1.0
    assert metrics.classification([good, wrong], test, 1.0).value == 0.0


def test_phases_without_training_frames_count_as_wrong():
    score = metrics.classification([video([0, 1], [0, 0])], [video([0, 1], [0, 2])])
    assert score.value == 0.5
    assert sum(score.left_out.values()) == 1


# --- progression --------------------------------------------------------------------------------


def slow_progression(train, test, num_phases):
    scores = []
    for c in range(num_phases - 1):

        def rows(videos, c=c):
            out = []
            for v in videos:
                places = [t for t, label in enumerate(v.phases) if label == c]
                if places:
                    length = len(v.phases)
                    out += [
                        (x, (t - places[-1]) / length) for t, x in enumerate(v.embeddings.tolist())
                    ]
            return out

        fit, score = rows(train), rows(test)
        design = np.array([[*x, 1.0] for x, _ in fit])
        weights = np.linalg.lstsq(design, np.array([y for _, y in fit]), rcond=None)[0]
        truth = [y for _, y in score]
        errors = [y - float(np.dot([*x, 1.0], weights)) for x, y in score]
        mean = sum(truth) / len(truth)
        scores.append(1 - sum(e**2 for e in errors) / sum((y - mean) ** 2 for y in truth))
    return sum(scores) / len(scores)


def test_progression_equals_explicit_least_squares():
    train, test = random_videos(4, seed=4), random_videos(3, seed=5)
    score = metrics.progression(train, test, 3)
    assert score.value == pytest.approx(slow_progression(train, test, 3), abs=1e-9)
    assert not +score.left_out


@pytest.mark.parametrize("change", ["none", "zero", "twice", "nearly", "wide", "constant"])
def test_the_linear_regression_is_that_of_scikit_learn(change, monkeypatch):
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    x, test = (rng.normal(size=(n, 12)) + 3 for n in (40, 9))
    if change == "zero":
        x[:, 3] = 0
    elif change == "twice":
        x[:, 3] = x[:, 5]
    elif change == "nearly":  # a singular value at the limit where lstsq cuts off
        x[:, 3] = x[:, 5] * (1 + 1e-14 * rng.normal(size=40))
    elif change == "wide":
        x = x[:10]
    elif change == "constant":
        x[:] = 2
    y = rng.normal(size=(len(x), 2))
    expected = LinearRegression().fit(x, y).predict(test)
    fitted = []
    fit = LinearRegression.fit
    monkeypatch.setattr(LinearRegression, "fit", lambda *a: fitted.append(change) or fit(*a))
    found = classifiers.linear_regression(x, y)(test)
    np.testing.assert_allclose(found, expected, atol=1e-11)
    assert bool(fitted) == (change not in ("none", "zero"))  # the slow way is the exception


def test_progression_leaves_out_videos_without_the_phase():
    train, test = random_videos(4, seed=6), random_videos(3, seed=7)
    without = test[0]
    test[0] = video(without.embeddings, np.where(without.phases == 1, 2, without.phases))
    score = metrics.progression(train, test, 3)
    assert score.value == pytest.approx(slow_progression(train, test, 3), abs=1e-9)
    assert +score.left_out == {"(test video, boundary) pairs where the phase does not occur": 1}


def test_progression_of_a_linear_clock_is_one_and_of_a_constant_at_most_zero():
    phases = [0] * 4 + [1] * 3 + [2] * 3
    clock = video(np.arange(10), phases)
    assert metrics.progression([clock], [clock], 3).value == pytest.approx(1.0)
    constant = video(np.ones(10), phases)
    assert metrics.progression([constant], [constant], 3).value == pytest.approx(0.0)


# --- alignment error ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["nearest", "dtw"])
def test_perfect_embeddings_have_no_alignment_error(method):
    fast = [0, 0, 1, 1, 1, 1, 2, 2]
    slow = [phase for phase in fast for _ in range(3)]
    a = video(phase_position(np.array(fast)), fast)
    b = video(phase_position(np.array(fast)), fast)
    assert metrics.alignment_error([a, b], method).value == 0.0
    # At a third of the speed, a third of the frames match exactly. The others are within a third of
    # a frame's step of the fast video, so the error is only that of sampling.
    c = video(phase_position(np.array(slow)), slow)
    assert metrics.alignment_error([a, c], method).value < 0.25


def test_alignment_error_by_hand():
    # p = 0, .5, 1, 1.5 for both; b's features are shifted so that matches are one frame late.
    a, b = video([0, 1, 2, 3], [0, 0, 1, 1]), video([-1, 0, 1, 2], [0, 0, 1, 1])
    # a -> b: frames 1, 2, 3, 3 (errors .5 .5 .5 0); b -> a: 0, 0, 1, 2 (0 .5 .5 .5).
    assert metrics.alignment_error([a, b]).value == pytest.approx(0.375)
    # The DTW path (0,0) (0,1) (1,2) (2,3) (3,3) costs 1 + 0 + 0 + 0 + 1: from a, errors
    # (0 + .5)/2, .5, .5, 0 and back 0, .5, .5, (.5 + 0)/2.
    assert metrics.alignment_error([a, b], "dtw").value == pytest.approx(0.3125)


def test_videos_that_step_back_are_left_out_of_the_alignment_error():
    a = video([0, 1, 2, 3], [0, 0, 1, 1])
    score = metrics.alignment_error([a, a, video([0, 1, 2], [0, 1, 0])])
    assert score.value == 0.0
    assert sum(score.left_out.values()) == 1
    with pytest.raises(ValueError, match="'nearest' or 'dtw'"):
        metrics.alignment_error([a, a], "soft")


# --- time index ---------------------------------------------------------------------------------


def test_time_index_neighbours_are_those_of_the_plain_clock():
    for frames_a, frames_b in [(7, 30), (100, 37), (211, 300)]:
        a, b = time_index_embedding(frames_a), time_index_embedding(frames_b)
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-6)
        u, v = np.linspace(0, 1, frames_a), np.linspace(0, 1, frames_b)
        found = (a.astype(float) @ b.T.astype(float)).argmax(axis=1)
        gap = np.abs(u[:, None] - v)
        np.testing.assert_allclose(gap[np.arange(frames_a), found], gap.min(axis=1), atol=1e-3)


def test_time_index_keeps_the_order_and_bends():
    records = [record(str(n), [0] * n + [1] * (80 - n)) for n in (20, 40, 60)]
    row = evaluate_embeddings(time_index(records), time_index(records), {"all": ["a", "b"]})
    assert row["metrics"]["kendalls_tau"] == pytest.approx(1.0)
    middle = [record("m", [0] * 30 + [1] * 30 + [0] * 30)]  # not linear in t, yet it is fitted
    row = evaluate_embeddings(time_index(middle * 4), time_index(middle), {"all": ["a", "b"]})
    assert row["metrics"]["classification"] > 0.9


def test_a_video_of_one_frame_has_an_embedding():
    assert np.isfinite(time_index_embedding(1)).all()


# --- protocol -----------------------------------------------------------------------------------


def embedded(name, phases, action, seed, view=""):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(phases), 4)).astype(np.float32)
    return EmbeddedVideo(record(name, phases, action=action, view=view), x)


def test_metrics_are_computed_within_actions_and_averaged_over_them():
    # The first action is separable by its only feature, in the second the labels are swapped.
    def make(action, sign):
        x = np.array([[-1.0], [-1.0], [1.0], [1.0]], np.float32) * sign
        return EmbeddedVideo(record(action, [0, 0, 1, 1], action=action), x)

    train = [make("run", 1), make("jump", -1)]
    flipped = EmbeddedVideo(train[1].record, -train[1].embeddings)
    row = evaluate_embeddings(
        train, [make("run", 1), flipped], {"run": ["a", "b"], "jump": ["a", "b"]}
    )
    assert row["per_action"]["run"]["classification"] == 1.0
    assert row["per_action"]["jump"]["classification"] == 0.0
    assert row["metrics"]["classification"] == 0.5
    assert math.isnan(row["metrics"]["kendalls_tau"])
    assert row["left_out"]["test videos without another one of their action (no pair to compare)"]


def test_videos_with_few_candidates_are_scored_and_not_called_left_out(capsys, tmp_path):
    labels = [0, 0, 1, 1]
    videos = [embedded(name, labels, "all", seed) for seed, name in enumerate("ab")]
    row = evaluate_embeddings(videos, videos, {"all": ["x", "y"]}, stride=1)
    reason = "query videos scored with all their candidate frames, which are fewer than 15"
    assert row["left_out"][reason] == 2
    assert not math.isnan(row["metrics"]["ap_at_15"])
    facts = {"videos": {"train": 2, "test": 2}, "split": "test", "actions": ["all"], "seconds": 1}
    facts |= {"class_set": "", "definitions": {"protocol": ""}, "row_definitions": {}}
    row["left_out"]["videos without x"] = 1
    write_and_print(tmp_path / "evaluation.json", {"rows": {"trained": row}} | facts)
    lines = capsys.readouterr().out.splitlines()
    assert f"2 {reason}" in lines
    assert "left out: 1 video without x" in lines
    assert "2 training and 2 test videos; actions: all; 1 s" in lines
    row["left_out"] = {reason: 1}
    facts["videos"] = {"train": 1, "test": 1}
    content = {"rows": {"trained": row}, "checkpoint": "best", "step": 7} | facts
    write_and_print(tmp_path / "evaluation.json", content, name_weights=True)
    lines = capsys.readouterr().out.splitlines()
    assert f"1 {reason.replace('videos', 'video')}" in lines
    assert "checkpoint best, step 7; 1 training and 1 test video; actions: all; 1 s" in lines


def test_everything_left_out_is_counted():
    labels = [-1, 0, 0, 0, 1, 1, -1]
    train = [embedded("a", labels, "all", 0), EmbeddedVideo(record("u", None, frames=7), None)]
    test = [embedded(name, labels, "all", seed) for seed, name in enumerate("bc", 1)]
    row = evaluate_embeddings(train, test, {"all": ["x", "y"]}, stride=1)
    assert row["left_out"]["training videos without labels"] == 1
    assert row["left_out"]["training frames without a label"] == 2
    assert row["left_out"]["test frames without a label"] == 4


def test_fractions_are_columns_of_their_own():
    videos = [embedded(str(seed), [0, 0, 1, 1], "all", seed) for seed in range(4)]
    row = evaluate_embeddings(videos, videos, {"all": ["x", "y"]}, fractions=(0.5, 1.0))
    assert {"classification_at_0.5", "classification"} <= row["metrics"].keys()
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        evaluate_embeddings(videos, videos, {}, fractions=(0.0,))
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_embeddings(videos, videos, {}, stride=0)


def test_table_shows_undefined_values_as_a_dash():
    row = {"metrics": {"classification": 0.5, "kendalls_tau": math.nan}}
    table = format_table({"trained": row})
    assert "0.500" in table
    assert "nan" not in table
    assert format_value(-291.6) == "-292"
    assert format_value(-291.6, "progression") == "<0"
    assert "<0" in format_table({"trained": {"metrics": {"progression": -0.001}}})
    assert "-" in table.splitlines()[1]
