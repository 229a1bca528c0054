"""Details in which the protocols differ, compared with explicit loops; the command end to end."""

import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from test_evaluation import embedded, random_videos, squared, video

from training.data.index import build_index, load_index
from training.data.labels import LabelError
from training.evaluation import metrics
from training.evaluation.definitions import definitions
from training.evaluation.options import Options
from training.evaluation.protocols import EVENT_COLUMNS, FEW_SHOT_AE2, PROTOCOLS, columns
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.tables import format_table
from training.support.command import UserError


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
    # From 0, the order of the other video's frames is right, wrong, right: (1 + 2/3) / 2. From each
    # of those three, the single frame of the first video is nearest: 1, 0, 1.
    query, other = video([0.0], [0]), video([1.0, 2.0, 3.0], [0, 1, 0])
    score = metrics.average_precision_at_k([query, other], 1, 10)
    assert score.value == pytest.approx((5 / 6 + 1 + 0 + 1) / 4)
    assert metrics.precision_at_k([query, other], 1, 10).value == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_weighted_f1_by_hand():
    train = [video([0.0, 0.1, 5.0, 5.1], [0, 0, 1, 1])]
    # Determined by the position: predicted 0 0 0 1 1, true 0 0 1 1 1.
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
    with pytest.raises(ValueError, match="expected 'logistic', 'svm' or 'sgd'"):
        metrics.classification(rings, rings, classifier="tree")


def test_progression_to_the_end_of_the_last_phase():
    # The embedding is the time itself: every target is linear in it for videos of one length.
    times = np.arange(6.0)
    videos = [video(times, [0, 0, 1, 1, 2, 2]), video(times, [0, 1, 1, 1, 2, 2])]
    assert metrics.progression(videos[:1], videos[:1], 3, last_phase=True).value == pytest.approx(1)
    # Phases 0 and 1 end at other times in the second video, phase 2 does not: R^2 is 1 for the
    # last.
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
        "finegym": {"classification"},
    }[name]
    events = set()
    if name != "finegym":
        columns |= {"progression", "kendalls_tau", "alignment_error", "alignment_error_dtw"}
        columns |= {"event_error", "event_error_dtw"}
        events = {key for _, *keys in EVENT_COLUMNS for key in keys}  # defined with their means
    assert row["metrics"].keys() == columns | events
    texts = definitions(Options(name))
    about = {"protocol", "embeddings", "mean over actions"}
    about |= {"across views"} if name == "ae2" else set()
    assert texts.keys() == columns | about | ({"stride"} if name != "finegym" else set())
    assert all(text.endswith(".") for text in texts.values())
    header = format_table({"trained": row}).splitlines()[0]
    assert ("mAP@10" in header, "AP@5" in header) == (name == "ae2", name in ("carl", "lav"))


def test_definitions_tell_the_protocols_apart():
    texts = {name: definitions(Options(name)) for name in PROTOCOLS}
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


# --- AE2: across views, few shots ---------------------------------------------------------------


def test_retrieval_across_views_by_hand():
    # Queries are the frames of ego videos: at 0 (phase 0) and at 10 (phase 1). Candidates are only
    # the exo frames, at 1, 2, 3 and 9, although the other ego video has closer frames.
    ego = [video([0.0, 10.0], [0, 1], "a", "ego"), video([0.1, 9.9], [1, 0], "b", "ego")]
    exo = [video([1.0, 2.0], [0, 1], "c", "exo"), video([3.0, 9.0], [0, 1], "d", "exo")]
    nowhere = video([0.0, 10.0], [0, 1], "e")
    # Ranks from 0 and 0.1: phases 0 1 0 1; from 10 and 9.9: 1 0 1 0. Cut off at 3.
    ap = {(0, 0): (1 + 2 / 3) / 2, (10, 1): (1 + 2 / 3) / 2, (0.1, 1): 1 / 2, (9.9, 0): 1 / 2}
    score = metrics.average_precision_at_k([*ego, *exo, nowhere], 1, 3, views=("ego", "exo"))
    assert score.value == pytest.approx(sum(ap.values()) / 4)
    assert math.isnan(metrics.average_precision_at_k(ego, 1, 3, views=("ego", "exo")).value)
    assert math.isnan(metrics.average_precision_at_k(exo, 1, 3, views=("ego", "exo")).value)


@pytest.mark.parametrize("views", [("ego", "exo"), ("exo", "ego")])
def test_retrieval_across_views_equals_loops_over_all_frames(views):
    videos = [
        replace(v, view=("ego", "exo")[n % 2]) for n, v in enumerate(random_videos(5, seed=3))
    ]
    frames = [
        (v, x, p) for v in videos for x, p in zip(v.embeddings, v.phases.tolist(), strict=True)
    ]
    values = []
    for query, x, phase in frames:
        if query.view != views[0]:
            continue
        ranked = sorted(frames, key=lambda other, x=x: squared(x, other[1]))
        allowed = [p for v, _, p in ranked if v.id != query.id and v.view != query.view][:10]
        precisions = [allowed[: j + 1].count(phase) / (j + 1) for j in range(10)]
        hits = [p for p, other in zip(precisions, allowed, strict=True) if other == phase]
        values.append(sum(hits) / len(hits) if hits else 0.0)
    score = metrics.average_precision_at_k(videos, 1, 10, views=views)
    assert score.value == pytest.approx(np.mean(values), abs=1e-12)


def across_views(**changes):
    """Two views in which a feature has opposite signs; one of the videos has no view."""
    x, phases = np.array([[-1.0], [-0.9], [0.9], [1.0]], np.float32), [0, 0, 1, 1]

    def one(name, view, sign):
        video = embedded(name, phases, "pour", 0, view)
        return type(video)(video.record, x * sign)

    train = [one("a", "ego", 1), one("b", "exo", -1)]
    test = [one("c", "ego", 1), one("d", "exo", -1), one("e", "", 1)]
    return evaluate_embeddings(train, test, {"pour": ["x", "y"]}, **{"protocol": "ae2"} | changes)


def test_a_classifier_of_one_view_is_scored_on_the_other():
    row = across_views()
    for name in ("weighted_f1", "map_at_10"):
        assert {f"{name} ego to exo", f"{name} exo to ego"} <= row["metrics"].keys()
    # Phase 0 according to ego is phase 1 of exo.
    assert row["metrics"]["weighted_f1 ego to exo"] == 0
    # From each frame the two frames of the other phase come first: (1/3 + 2/4) / 2.
    assert row["metrics"]["map_at_10 exo to ego"] == pytest.approx(5 / 12)
    assert row["left_out"]["test videos without a view (in no comparison across views)"] == 1
    assert not any("ego" in key for key in across_views(protocol="lav")["metrics"])
    header = format_table({"trained": row}).splitlines()[0]
    assert "F1 ego to exo" in header
    assert "mAP@10 exo to ego" in header


def test_actions_with_and_without_views_are_averaged_where_there_are_views():
    labels = [0, 0, 0, 1, 1, 1]
    views = {"cut": ["", ""], "pour": ["ego", "exo"], "stir": ["ego", "exo"]}
    videos = [
        embedded(f"{action}{n}", labels, action, n, view)
        for action, pair in views.items()
        for n, view in enumerate(pair)
    ]
    row = evaluate_embeddings(videos, videos, {a: ["x", "y"] for a in views}, protocol="ae2")
    for key in ("map_at_10 ego to exo", "weighted_f1 exo to ego"):
        assert key not in row["per_action"]["cut"]
        mean = (row["per_action"]["pour"][key] + row["per_action"]["stir"][key]) / 2
        assert row["metrics"][key] == pytest.approx(mean)


def test_definitions_across_views_and_of_few_shots():
    texts = definitions(Options("ae2", few_shot=()), ["exo", "ego", ""])
    keys = [f"{k} {a} to {b}" for k in ("weighted_f1", "map_at_10") for a, b in views_both_ways()]
    keys += [f"weighted_f1 from {count}" for count in FEW_SHOT_AE2]
    for key in keys:
        assert texts[key].endswith(".")
    assert "training frames of view ego alone" in texts["weighted_f1 ego to exo"]
    assert "view ego as queries" in texts["map_at_10 ego to exo"]
    assert "50 random choices" in texts["weighted_f1 from 10"]
    assert "10 random choices" in texts["weighted_f1 from half"]
    assert "no two test videos" in definitions(Options("ae2"), ["ego", ""])["across views"]
    assert "across views" not in texts
    assert "across views" not in definitions(Options("carl"), ["ego", "exo"])


def views_both_ways():
    return list(itertools.permutations(["ego", "exo"], 2))


def test_few_shot_is_the_mean_over_the_choices_of_the_released_code():
    train, test = random_videos(5, seed=4), random_videos(3, seed=5)
    options = {"classifier": "svm", "weighted_f1": True}
    values = []
    for episode in range(6):
        random.seed(42 + episode)
        chosen = random.sample(range(5), 2)
        values.append(metrics.classification([train[i] for i in chosen], test, **options).value)
    assert len(set(values)) > 1
    assert metrics.few_shot(train, test, 2, 6, **options).value == pytest.approx(np.mean(values))
    everything = metrics.few_shot(train, test, 5, 1, **options).value
    assert everything == pytest.approx(metrics.classification(train, test, **options).value)
    for count in (0, 6):
        assert math.isnan(metrics.few_shot(train, test, count, 6).value)


def test_few_shot_columns():
    labels = [0, 0, 0, 1, 1, 1]
    videos = [embedded(str(seed), labels, "all", seed) for seed in range(6)]
    row = evaluate_embeddings(videos[:4], videos[4:], {"all": ["x", "y"]}, protocol="ae2")
    assert not any("from" in key for key in row["metrics"])
    options = {"protocol": "ae2", "few_shot": True}
    row = evaluate_embeddings(videos[:4], videos[4:], {"all": ["x", "y"]}, **options)
    values = {count: row["metrics"][f"weighted_f1 from {count}"] for count in FEW_SHOT_AE2}
    assert [count for count, value in values.items() if math.isnan(value)] == ["5", "10"]
    assert row["left_out"]["few-shot columns: not that many training videos"] == 2
    # Half of four videos is two, chosen as the first ten of the fifty choices of two.
    assert values["half"] != values["2"]
    assert "F1 from half" in columns(row["metrics"]).values()


def test_views_come_from_the_labels_file(tmp_path):
    from fastseq.video import write_video

    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", np.zeros((4, 16, 16, 3), np.uint8), 10)
    labels = {"videos": {"a.mp4": {"view": "ego"}, "b.mp4": {}}}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    build_index(tmp_path)
    assert [record.view for record in load_index(tmp_path).videos] == ["ego", ""]
    for view in (1, " "):
        (tmp_path / "labels.json").write_text(json.dumps({"videos": {"a.mp4": {"view": view}}}))
        with pytest.raises(LabelError, match=r"a\.mp4: view is .*expected a name such as 'ego'"):
            build_index(tmp_path)
