"""The parts of the protocols that differ, against explicit loops; the command end to end."""

import math

import numpy as np
import pytest
from test_evaluation import embedded, random_videos, squared, video

from training.evaluation import metrics
from training.evaluation.cli import UserError
from training.evaluation.protocol import evaluate_embeddings, format_table
from training.evaluation.protocols import PROTOCOLS, definitions


@pytest.mark.parametrize(("stride", "k"), [(1, 10), (2, 3), (3, 40)])
def test_average_precision_equals_explicit_loops(stride, k):
    videos = random_videos(4, seed=1)
    values = []
    for query in videos:
        candidates = [
            (x, label)
            for other in videos
            if other is not query
            for x, label in zip(other.embeddings[::stride], other.phases[::stride], strict=True)
        ]
        for x, label in list(zip(query.embeddings, query.phases, strict=True))[::stride]:
            ranked = sorted(candidates, key=lambda c, x=x: squared(x, c[0]))[:k]
            relevant = [c[1] == label for c in ranked]
            hits = sum(relevant)
            precisions = [sum(relevant[: j + 1]) / (j + 1) for j, hit in enumerate(relevant) if hit]
            values.append(sum(precisions) / hits if hits else 0.0)
    score = metrics.average_precision_at_k(videos, stride, k)
    assert score.value == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert bool(+score.left_out) == (k == 40)
    assert math.isnan(metrics.average_precision_at_k(videos[:1], 1, 5).value)


def test_average_precision_rewards_early_hits():
    # From 0 the other video's frames come in the order right, wrong, right: (1 + 2/3) / 2. From
    # each of those three the single frame of the first is nearest: 1, 0, 1.
    query, other = video([0.0], [0]), video([1.0, 2.0, 3.0], [0, 1, 0])
    score = metrics.average_precision_at_k([query, other], 1, 10)
    assert score.value == pytest.approx((5 / 6 + 1 + 0 + 1) / 4)
    assert metrics.precision_at_k([query, other], 1, 10).value == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_weighted_f1_by_hand():
    train = [video([0.0, 0.1, 5.0, 5.1], [0, 0, 1, 1])]
    # Told by the place: predicted 0 0 0 1 1, true 0 0 1 1 1.
    test = [video([0.0, 0.1, 0.2, 5.0, 5.1], [0, 0, 1, 1, 1])]
    for classifier in ("logistic", "svm"):
        options = {"classifier": classifier, "weighted_f1": True}
        f1 = {0: 2 * (2 / 3) * 1 / (2 / 3 + 1), 1: 2 * 1 * (2 / 3) / (1 + 2 / 3)}
        expected = (2 * f1[0] + 3 * f1[1]) / 5
        assert metrics.classification(train, test, **options).value == pytest.approx(expected)
    assert metrics.classification(train, test, classifier="svm").value == pytest.approx(0.8)


def test_a_support_vector_machine_tells_what_no_line_can():
    x = [[math.cos(a) * r, math.sin(a) * r] for r in (1, 3) for a in np.linspace(0, 6, 20)]
    rings = [video(x, [0] * 20 + [1] * 20)]
    assert metrics.classification(rings, rings, classifier="svm").value == 1.0
    assert metrics.classification(rings, rings).value < 0.8
    with pytest.raises(ValueError, match="expected 'logistic' or 'svm'"):
        metrics.classification(rings, rings, classifier="tree")


def test_progression_to_the_end_of_the_last_phase():
    # The embedding is the time itself: every target is linear in it, in videos of one length.
    times = np.arange(6.0)
    videos = [video(times, [0, 0, 1, 1, 2, 2]), video(times, [0, 1, 1, 1, 2, 2])]
    assert metrics.progression(videos[:1], videos[:1], 3, last_phase=True).value == pytest.approx(1)
    # Phases 0 and 1 end elsewhere in the second video, phase 2 does not: R^2 is 1 for the last.
    without = metrics.progression(videos[:1], videos[1:], 3).value
    included = metrics.progression(videos[:1], videos[1:], 3, last_phase=True).value
    assert included == pytest.approx((2 * without + 1) / 3)
    assert without < 1


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_column_of_a_protocol_is_defined(name):
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    videos = [embedded(str(seed), labels, "all", seed) for seed in range(4)]
    row = evaluate_embeddings(videos[:2], videos[2:], {"all": list("xyz")}, protocol=name)
    columns = {
        "carl": {"classification", "ap_at_5", "ap_at_10", "ap_at_15"},
        "lav": {"classification", "ap_at_5", "ap_at_10", "ap_at_15"},
        "tcc": {"classification"},
        "ae2": {"weighted_f1", "map_at_10"},
    }[name]
    columns |= {"progression", "kendalls_tau", "alignment_error", "alignment_error_dtw"}
    assert row["metrics"].keys() == columns
    texts = definitions(name, 5)
    assert columns <= texts.keys()
    assert all(text.endswith(".") for text in texts.values())
    header = format_table({"trained": row}).splitlines()[0]
    assert ("mAP@10" in header, "AP@5" in header) == (name == "ae2", name in ("carl", "lav"))


def test_definitions_tell_the_protocols_apart():
    texts = {name: definitions(name, 5) for name in PROTOCOLS}
    assert "logistic regression" in texts["carl"]["classification"]
    assert "support vector machine" in texts["lav"]["classification"]
    assert "retrieval every 5th" in texts["carl"]["stride"]
    assert "retrieval every one" in texts["lav"]["stride"]
    assert "last phase included" in texts["ae2"]["progression"]
    assert "last phase" not in texts["tcc"]["progression"]


def test_strides_of_the_protocols():
    labels = list(np.repeat([0, 1, 2], 8))
    videos = [embedded(str(seed), labels, "all", seed) for seed in range(4)]

    def row(protocol, stride=None):
        classes = {"all": list("xyz")}
        return evaluate_embeddings(
            videos[:2], videos[2:], classes, protocol=protocol, stride=stride
        )["metrics"]

    carl, lav = row("carl"), row("lav")
    assert carl["kendalls_tau"] == lav["kendalls_tau"]
    assert carl["ap_at_5"] != lav["ap_at_5"] == row("carl", 1)["ap_at_5"]
    assert lav["ap_at_5"] == row("lav", 2)["ap_at_5"]
    with pytest.raises(UserError, match="expected one of carl, lav, tcc, ae2"):
        row("gta")
