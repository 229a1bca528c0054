"""Predicted phases on the strips, the map of embeddings, and their sections of the report."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from pairs import embedded, warped
from PIL import Image

from training.evaluation import classifiers, embedding_map, strips
from training.evaluation.boundaries import (
    boundaries,
    inner_starts,
    off_by,
    on_frames,
    phase_starts,
    predicted_phases,
)
from training.evaluation.labelled import labelled_video
from training.evaluation.plots import new_figure
from training.pages import figures


def test_phase_starts_equal_an_explicit_search():
    rng = np.random.default_rng(0)
    for _ in range(30):
        phases = rng.integers(-1, 3, 14)
        expected = {}
        for phase in {*phases.tolist()} - {-1}:
            votes = np.where(phases == phase, 1, np.where(phases < 0, 0, -1))
            best = max(
                (int(votes[a:b].sum()), -b, a)
                for a in range(14)
                for b in range(a + 1, 15)
                if phases[a] == phase
            )
            expected[phase] = best[2]
        assert phase_starts(phases) == expected


def test_wrong_frames_do_not_move_a_boundary():
    phases = np.repeat([0, 1, 2], 20)
    assert phase_starts(phases) == {0: 0, 1: 20, 2: 40}
    phases[[3, 27, 28, 45]] = 2, 0, 2, 1
    assert phase_starts(phases) == {0: 0, 1: 20, 2: 40}
    assert inner_starts(phases) == {1: 20, 2: 40}
    phases[:5] = -1
    assert inner_starts(phases) == {1: 20, 2: 40}
    assert phase_starts(np.full(4, -1)) == inner_starts(np.full(4, -1)) == {}


@pytest.mark.parametrize("classifier", ["logistic", "svm"])
def test_predictions_are_those_of_the_classification_metric(classifier):
    train = [embedded(f"a{n}", warped(40, 1.0 + n / 3)) for n in range(2)]
    test = [embedded(f"b{n}", warped(30 + n, 0.6)) for n in range(2)]
    rng = np.random.default_rng(0)
    for video in train + test:
        video.embeddings[:] += 0.15 * rng.normal(size=video.embeddings.shape)
        video.record.view = ""
    predicted = predicted_phases(train, test, classifier)
    right = np.concatenate([p == v.phases for p, v in zip(predicted, test, strict=True)])
    score = classifiers.classification(
        [labelled_video(v) for v in train], [labelled_video(v) for v in test], classifier=classifier
    )
    assert right.mean() == pytest.approx(score.value)
    assert 0.5 < right.mean() < 1


def test_predictions_are_made_within_an_action():
    train = [
        embedded("a", warped(30, 1.0), action="a"),
        embedded("b", np.full(9, 2.5), action="b"),  # a single phase
        embedded("c", warped(9, 1.0), action="c", phases=False),
    ]
    test = [embedded("t", warped(20, 1.0), action=action) for action in "abcd"]
    found = predicted_phases(train, test)
    assert (found[0] == test[0].phases).mean() > 0.8
    assert found[1].tolist() == [2] * 20
    assert found[2] is found[3] is None


def test_boundaries_are_compared_in_frames_and_in_seconds():
    video = embedded("a", warped(30, 1.0))  # phases begin at 0, 10, 20
    video.record.times = np.cumsum(np.r_[0, np.full(14, 0.1), np.full(15, 0.5)])
    predicted = np.repeat([0, 1], [13, 17])
    first, second = boundaries(video, predicted)
    assert (first.phase, first.labelled, first.predicted) == (1, 10, 13)
    assert off_by(video, first) == (3, pytest.approx(0.3))
    assert (second.phase, second.labelled, second.predicted) == (2, 20, None)
    assert off_by(video, second) is None
    whole = boundaries(video, np.ones(30, int))  # predicted from the first frame on
    assert off_by(video, whole[0]) == (-10, pytest.approx(-1.0))
    assert boundaries(embedded("b", warped(9, 1.0), phases=False), np.zeros(9, int)) == []


def test_bars_have_the_colours_of_their_phases_and_white_in_gaps():
    video = embedded("a", warped(12, 1.0))
    video.record.gaps = ((3, 5),)
    predicted = np.repeat([0, 1, 2], [3, 4, 3])
    assert on_frames(video, predicted).tolist() == [0, 0, 0, -1, -1, 1, 1, 1, 1, 2, 2, 2]
    bar = strips.predicted_bar(video, predicted, "predicted")
    assert (bar.colours[3:5] == 1).all()
    assert bar.starts == (5, 9)
    assert bar.phases == (0, 1, 2)
    labelled = strips.labelled_bar(video, named=True)
    assert (labelled.starts, labelled.name) == ((4, 8), "labelled")
    np.testing.assert_array_equal(bar.colours[5], labelled.colours[4])
    assert (bar.colours[0] != bar.colours[5]).any()
    assert strips.labelled_bar(video).starts == ()


def test_strips_show_predicted_phases(tmp_path):
    video = embedded("a", warped(12, 1.0))
    names = {"all": ["x", "y", "z"]}
    sizes = []
    for number, predicted in enumerate(([], [np.full(12, 3)])):
        file = tmp_path / f"{number}.png"
        strips.embedding_strips([video], names, file, predicted=predicted)
        image = Image.open(file).convert("RGB")
        sizes.append(image.height)
        colours = {tuple(c) for c in np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()}
        assert ((0xCC, 0xBB, 0x44) in colours) == bool(len(predicted))  # of phase 3
        assert (0x44, 0x77, 0xAA) in colours  # of the labelled phase 0
    assert sizes[1] > sizes[0]


@pytest.mark.parametrize(("start", "after"), [(1000, 0), (1000, 1), (2999, 0)])
def test_a_phase_of_one_frame_is_seen_beside_its_tick(start, after):
    phases = np.zeros(3000, dtype=int)
    phases[start:] = after
    phases[start] = 2
    bar = strips._phase_bar(phases, "predicted")
    assert bar.starts[0] == start
    figure = new_figure(8.2, 1)
    axes = figure.subplots()
    strips._draw_bar(axes, bar, 1.0)
    axes.set_xlim(0, 1)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    shown = np.abs(pixels - 255 * bar.colours[start]).max(axis=2) < 2
    assert 3 <= shown.any(axis=0).sum() <= 10


def clusters(count=3, size=20):
    rng = np.random.default_rng(0)
    x = np.repeat(np.eye(count, 8), size, axis=0) + 0.05 * rng.normal(size=(count * size, 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_the_map_keeps_groups_together_and_is_always_the_same():
    x = clusters()
    points = embedding_map.tsne(x)
    np.testing.assert_array_equal(points, embedding_map.tsne(x))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(1) // 20 == np.arange(60) // 20).all()


def test_there_is_no_map_of_few_or_equal_embeddings(tmp_path):
    assert embedding_map.tsne(clusters()[:9]) is None
    assert embedding_map.tsne(np.ones((50, 4), np.float32)) is None
    assert embedding_map.embedding_map([embedded("a", [1.0])], {}, tmp_path / "map.png") == 0
    assert not (tmp_path / "map.png").exists()
    assert figures.embedding_map([embedded("a", [1.0])], index(), tmp_path, "test") == []


@pytest.mark.parametrize("most", [7, 30, 500])
def test_frames_of_the_map_are_every_kth(most):
    videos = [embedded(str(n), np.zeros(n)) for n in (40, 3, 30)]
    rows = embedding_map.evenly_chosen(videos, most)
    together = np.concatenate([r + n for r, n in zip(rows, (0, 40, 43), strict=True)])
    assert len(together) <= most
    assert together[0] == 0
    step = -(-73 // most)
    assert (np.diff(together) == step).all()
    assert len(together) == -(-73 // step)


def test_the_legend_names_the_largest_groups():
    names = [f"video {n:02d}" for n in range(40) for _ in range(2 + (n % 4 == 0))] + [None]
    axes = Figure().subplots()
    points = np.random.default_rng(0).normal(size=(len(names), 2))
    embedding_map._scatter(axes, points, names, sorted({*names} - {None}), "by video")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[-1] == "28 others, no label"
    assert len(labels) == embedding_map.NAMED + 1
    assert {f"video {n:02d}" for n in range(0, 40, 4)} <= {*labels}
    assert sum(len(c.get_offsets()) for c in axes.collections) == len(names)


def index(**classes):
    return SimpleNamespace(classes=classes, videos=[])


def test_the_section_counts_beginnings_that_are_not_predicted(tmp_path):
    train = [embedded("train", np.minimum(warped(30, 1.0), 1.99))]  # without phase 2
    videos = [embedded("<a>", warped(30, 1.0)), embedded("b", warped(20, 1.0))]
    body = figures.strips(videos, train, index(all=["x", "y", "z"]), tmp_path, "test")
    text = "\n".join(body)
    assert "2 of 4 labelled beginnings have no predicted phase." in text
    assert "fitted to the labelled frames of 1 training video." in text
    assert "<td>&lt;a&gt;, y</td><td>10</td>" in text
    assert "<td>&lt;a&gt;, z</td><td>20</td><td>-</td><td>-</td><td>-</td>" in text
    without = "\n".join(figures.strips(videos, [], index(), tmp_path, "test"))
    assert "predict" not in without


def test_few_shot_needs_the_picture_and_the_figures(tmp_path):
    assert figures.few_shot(tmp_path / "evaluation.json") == []
    Image.new("RGB", (4, 4)).save(tmp_path / "few_shot.png")
    assert figures.few_shot(tmp_path / "evaluation.json") == []
    result = {"rows": {"trained": {"metrics": {}}}}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    assert figures.few_shot(tmp_path / "evaluation.json") == []
    result["rows"]["trained"]["few_shot"] = {"classification": {"1": {"mean": 0.5}}}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    assert "data:image/png" in figures.few_shot(tmp_path / "evaluation.json")[2]
    (tmp_path / "evaluation.json").rename(tmp_path / "evaluation_best.json")
    assert figures.few_shot(tmp_path / "evaluation_best.json") == []  # the picture is of another
    (tmp_path / "few_shot.png").rename(tmp_path / "few_shot_best.png")
    assert figures.few_shot(tmp_path / "evaluation_best.json")


def test_the_classifier_is_that_of_the_evaluation(tmp_path):
    assert figures.classifier(tmp_path / "evaluation.json") == "logistic"
    for protocol, expected in (("ae2", "svm"), ("carl", "logistic"), ("sync", "logistic")):
        (tmp_path / "evaluation.json").write_text(json.dumps({"protocol": protocol}))
        assert figures.classifier(tmp_path / "evaluation.json") == expected
