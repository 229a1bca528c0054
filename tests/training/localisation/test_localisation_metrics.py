"""AR@AN, AUC and mAP against loops written from ActivityNet's definitions."""

import numpy as np
import pytest

from training.localisation.metrics import (
    THRESHOLDS,
    average_recall,
    interpolated_ap,
    mean_average_precision,
    temporal_iou,
)


def iou(a, b):
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - common
    return common / union if union > 0 else 0.0


def naive_recall(segments, proposals, most=100):
    """recall[threshold][j], as eval_proposal.py describes it."""
    videos = [name for name in segments if len(segments[name])]
    ordered = {
        name: sorted((list(p) for p in proposals.get(name, [])), key=lambda p: -p[2])
        for name in videos
    }
    total = sum(map(len, ordered.values()))
    if total == 0:
        return np.zeros((10, 100))
    ratio = most * float(len(videos)) / total
    for name in videos:
        ordered[name] = ordered[name][: int(len(ordered[name]) * ratio)]
    used = sum(map(len, ordered.values()))
    out = np.zeros((10, 100))
    if used == 0:
        return out
    for level, threshold in enumerate(THRESHOLDS):
        for j in range(1, 101):
            share = j / 100.0 * (most * float(len(videos)) / used)
            found = 0
            for name in videos:
                kept = ordered[name][: int(len(ordered[name]) * share)]
                for segment in segments[name]:
                    found += any(iou(one, segment) >= threshold for one in kept)
            out[level, j - 1] = found / sum(len(segments[name]) for name in videos)
    return out


def naive_ap(label, truth, predictions, threshold):
    found = [
        (name, row)
        for name, (rows, labels) in predictions.items()
        for row, one in zip(rows, labels, strict=True)
        if one == label
    ]
    found.sort(key=lambda pair: -pair[1][2])
    positives, free = 0, {}
    for name, (rows, labels) in truth.items():
        free[name] = [tuple(r) for r, one in zip(rows, labels, strict=True) if one == label]
        positives += len(free[name])
    right = 0
    points = []  # (recall, precision)
    for place, (name, row) in enumerate(found, start=1):
        best = max(free.get(name, []), key=lambda one: iou(row, one), default=None)
        if best is not None and iou(row, best) >= threshold:
            free[name].remove(best)
            right += 1
        points.append((right / positives, right / place))
    area, last = 0.0, 0.0
    for recall in sorted({r for r, _ in points if r > 0}):
        area += (recall - last) * max(p for r, p in points if r >= recall)
        last = recall
    return area


def draw(rng, videos=6, few=False):
    """Segments and proposals: a video without each, duplicates, equal scores, nested segments."""
    segments, proposals = {}, {}
    for number in range(videos):
        start = rng.uniform(0, 60, rng.integers(1, 5))
        segments[f"v{number}"] = np.stack([start, start + rng.uniform(1, 30, len(start))], 1)
        count = int(rng.integers(1, 8 if few else 160))
        start = rng.uniform(0, 60, count)
        length = rng.uniform(1, 30, count)
        score = np.round(rng.random(count), 1)  # many are equal
        rows = np.stack([start, start + length, score], 1)
        proposals[f"v{number}"] = np.concatenate([rows, rows[:2]])
    segments["none"] = np.zeros((0, 2))
    proposals["none"] = np.array([[0.0, 5.0, 2.0]])
    proposals["unknown"] = np.array([[0.0, 5.0, 2.0]])
    del proposals["v0"]
    proposals["v1"] = np.zeros((0, 3))
    proposals["v2"][0, :2] = segments["v2"][0]
    return segments, proposals


def test_temporal_iou():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 9, (7, 2)), rng.uniform(0, 9, (5, 2))
    a, b = np.sort(a, axis=1), np.sort(b, axis=1)
    a[0], b[0] = (3, 3), (3, 3)  # without length
    a[1] = b[1]
    expected = [[iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(temporal_iou(a, b), expected, atol=1e-15)
    assert temporal_iou(np.zeros((0, 2)), b).shape == (0, 5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("few", "most"), [(False, 100), (True, 100), (False, 30)])
def test_average_recall_against_loops(seed, few, most):
    """With fewer and with more proposals than the largest average number."""
    segments, proposals = draw(np.random.default_rng(seed), few=few)
    found = average_recall(segments, proposals, most=most)
    expected = naive_recall(segments, proposals, most)
    assert 0 < expected.max() < 1
    np.testing.assert_allclose(found.recall, expected, atol=1e-12)
    np.testing.assert_allclose(found.numbers, np.arange(1, 101) * most / 100)
    ar = expected.mean(axis=0)
    area = sum((ar[j] + ar[j + 1]) / 2 for j in range(99)) / 100  # of the largest number
    assert found.auc == pytest.approx(area)
    assert found.at(10) == pytest.approx(ar[9])


def test_recall_by_hand():
    segments = {"a": np.array([[0.0, 10.0]])}
    one = average_recall(segments, {"a": np.array([[0.0, 7.2, 0.5]])})  # tIoU 0.72
    assert one.at(1) == one.at(100) == pytest.approx(0.5)  # 0.5, 0.55, ... 0.7
    whole = average_recall(segments, {"a": np.array([[0.0, 10.0, 0.5]])})
    assert (whole.recall == 1).all()
    assert whole.auc == pytest.approx(0.99)  # the area begins at AN = 1
    # Of 200 proposals per video half are used; here the right one is number 101.
    rows = np.array([[20.0, 30.0, 1.0]] * 100 + [[0.0, 10.0, 0.5]] + [[20.0, 30.0, 0.1]] * 99)
    assert average_recall(segments, {"a": rows}).recall.max() == 0
    rows[99:101, 2] = 0.5, 1.0  # now number 100
    assert average_recall(segments, {"a": rows}).recall[:, -1].min() == 1


@pytest.mark.parametrize("proposals", [{}, {"a": np.zeros((0, 3))}, {"b": np.ones((4, 3))}])
def test_no_proposals(proposals):
    found = average_recall({"a": np.array([[0.0, 1.0]])}, proposals)
    assert not found.recall.any()
    assert found.auc == 0


def test_no_segments():
    assert average_recall({"a": np.zeros((0, 2))}, {"a": np.ones((4, 3))}).auc == 0


@pytest.mark.parametrize("seed", range(4))
def test_map_against_loops(seed):
    rng = np.random.default_rng(seed)
    segments, proposals = draw(rng)
    names = np.array(["run", "jump", "sit"])
    truth = {name: (rows, [*rng.choice(names, len(rows))]) for name, rows in segments.items()}
    predictions = {}
    for name, rows in proposals.items():
        own = segments.get(name, np.zeros((0, 2)))
        near = np.column_stack([own + rng.uniform(-2, 2, own.shape), rng.random(len(own))])
        rows = np.concatenate([rows[:20], near, near[:1]])
        labels = [*rng.choice([*names, "unheard of"], len(rows))]
        labels[len(rows) - len(near[:1]) - len(own) :] = [
            *truth.get(name, ((), []))[1],
            *truth.get(name, ((), []))[1][:1],
        ]
        predictions[name] = (rows, labels)
    found = mean_average_precision(truth, predictions)
    assert sorted(found) == ["jump", "run", "sit"]
    for label, values in found.items():
        expected = [naive_ap(label, truth, predictions, t) for t in THRESHOLDS]
        np.testing.assert_allclose(values, expected, atol=1e-12)
    assert 0 < np.mean([*found.values()]) < 1


def test_map_by_hand():
    truth = {"a": (np.array([[0.0, 10.0], [20.0, 30.0]]), ["x", "x"])}
    rows = np.array([[0, 10, 0.9], [0, 10, 0.8], [20, 30, 0.7]], float)  # the second is a repeat
    found = mean_average_precision(truth, {"a": (rows, ["x"] * 3)})["x"]
    np.testing.assert_allclose(found, (1 + 2 / 3) / 2)
    assert mean_average_precision(truth, {})["x"].tolist() == [0.0] * 10
    assert interpolated_ap(np.array([False, True]), 1) == 0.5
    assert interpolated_ap(np.array([], bool), 3) == 0.0
