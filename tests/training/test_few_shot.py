"""Few-shot classification in every protocol: draws, spread, tables and the plot; options."""

import json
import math

import numpy as np
import pytest
from test_evaluation import embedded, random_videos, video

from training.evaluate import write_and_print
from training.evaluation import metrics
from training.evaluation.definitions import definitions
from training.evaluation.few_shot import write_few_shot
from training.evaluation.frame_level import evaluate_frame_level
from training.evaluation.options import Options
from training.evaluation.protocols import PROTOCOLS, columns
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.tables import few_shot_cells, format_tables
from training.support.command import UserError

CLASSES = {"cut": ["x", "y"], "pour": ["x", "y"]}


def two_actions(count):
    labels = [0, 0, 0, 1, 1, 1]
    return [
        embedded(f"{action}{n}", labels, action, 10 * n + len(action))
        for action in CLASSES
        for n in range(count)
    ]


def test_spread_is_that_of_the_mean_over_actions():
    train, test = two_actions(4), two_actions(3)
    options = {"few_shot": (1, 2), "episodes": 5, "metrics": ("tau",)}
    row = evaluate_embeddings(train, test, CLASSES, **options)
    for count in (1, 2):
        draws = []
        for action in CLASSES:
            fit, score = (
                [metrics.labelled_video(v) for v in videos if v.record.action == action]
                for videos in (train, test)
            )
            draws.append(metrics.few_shot(fit, score, count, 5).draws)
        means = np.mean(draws, axis=0)
        assert len(means) == 5
        assert means.std() > 0
        found = row["few_shot"]["classification"][str(count)]
        expected = {"mean": means.mean(), "std": means.std(), "episodes": 5}
        assert found == pytest.approx(expected)
        assert row["metrics"][f"classification from {count}"] == pytest.approx(means.mean())
    assert set(row["few_shot"]["classification"]) == {"1", "2"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_has_it(protocol):
    videos = two_actions(3)
    extra = {"probe_epochs": 2} if protocol == "finegym" else {}
    options = {"protocol": protocol, "few_shot": (), "episodes": 2, "metrics": ["classification"]}
    row = evaluate_embeddings(videos, videos, CLASSES, **options, **extra)
    score = "weighted_f1" if protocol == "ae2" else "classification"
    counts = ["1", "2", "3", "5", "10", *(["half"] if protocol == "ae2" else [])]
    found = row["few_shot"][score]
    assert list(found) == counts
    enough = 6 if protocol == "finegym" else 3  # videos of a classifier
    for count in counts:
        videos_needed = 1 if count == "half" else int(count)
        assert math.isnan(found[count]["mean"]) == (videos_needed > enough)
    assert "F1 from 1" in columns(row["metrics"]).values() or score == "classification"
    texts = definitions(Options(**options, **extra))
    assert all(f"{score} from {count}" in texts for count in counts)


def test_default_numbers_of_draws():
    assert Options(few_shot=True).draws == dict.fromkeys(("1", "2", "3", "5", "10"), 10)
    assert Options("ae2", few_shot=[1, 4, "half"]).draws == {"1": 50, "4": 50, "half": 10}
    assert Options(few_shot=["7"], episodes=3).draws == {"7": 3}
    assert Options().draws == {}


@pytest.mark.parametrize("options", [{}, {"few_shot": ()}, {"protocol": "tcc"}])
def test_options_survive_a_copy(options):
    once = Options(**options)
    assert Options(**vars(once)) == once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"few_shot": [0]}, "few_shot has 0; expected numbers of videos"),
        ({"few_shot": ["some"]}, "few_shot has some"),
        ({"episodes": 3}, "--episodes is the number of random"),
        ({"episodes": 3}, "add --few-shot"),
        ({"few_shot": (), "episodes": 0}, "episodes is 0"),
        ({"metrics": ["speed"]}, "protocol carl has classification, progression, tau, retrieval"),
        ({"metrics": []}, "metrics are"),
        ({"protocol": "tcc", "metrics": ["retrieval"]}, "protocol tcc has classification"),
        ({"protocol": "finegym", "metrics": ["tau"]}, "protocol finegym has classification"),
        ({"protocol": "tcc", "ks": [5]}, "retrieval is not computed"),
        ({"metrics": ["tau"], "ks": [3]}, "retrieval is not computed"),
        ({"ks": [0, 5]}, "at least 1"),
        ({"frame_index": True}, "part of the protocol ae2, not carl"),
        ({"protocol": "ae2", "frame_index": True, "metrics": ["tau"]}, "add it to the metrics"),
        ({"probe_lr": 1.0}, "--probe-lr and --probe-epochs are of the protocol finegym, not carl"),
        ({"protocol": "finegym", "probe_lr": 0.0}, "probe_lr is 0"),
        ({"protocol": "finegym", "probe_epochs": 0}, "probe_epochs is 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_wrong_options_raise_before_the_run_is_opened():
    with pytest.raises(UserError, match="of the protocol finegym, not carl"):
        evaluate_frame_level("no run", probe_lr=1.0)


# --- choice of metrics, K, frame index ----------------------------------------------------------

KEYS = {
    "classification": {"classification"},
    "progression": {"progression"},
    "tau": {"kendalls_tau"},
    "retrieval": {"ap_at_5", "ap_at_10", "ap_at_15"},
    "alignment": {"alignment_error", "alignment_error_dtw"},
}


@pytest.mark.parametrize("name", KEYS)
def test_nothing_but_the_chosen_metric_is_computed(name, monkeypatch):
    videos = two_actions(3)
    full = evaluate_embeddings(videos, videos, CLASSES)["metrics"]
    called = []
    for function in ("classification", "progression", "pair_scores", "precisions_at"):
        original = getattr(metrics, function)
        monkeypatch.setattr(
            metrics,
            function,
            lambda *args, _=function, original=original, **kw: (
                called.append(_) or original(*args, **kw)
            ),
        )
    row = evaluate_embeddings(videos, videos, CLASSES, metrics=[name])
    assert row["metrics"] == pytest.approx({key: full[key] for key in KEYS[name]}, nan_ok=True)
    assert len(set(called)) == 1
    texts = definitions(Options(metrics=[name]))
    defined = {key for keys in KEYS.values() for key in keys} & texts.keys()
    assert defined == KEYS[name]
    assert ("stride" in texts) == (name in ("tau", "retrieval"))
    assert "stride" not in Options(metrics=["events"]).facts()


def test_any_number_of_nearest_frames():
    labels = [0, 0, 0, 1, 1, 1]
    views = ["ego", "exo", "ego", "exo"]
    videos = [embedded(str(n), labels, "all", n, view) for n, view in enumerate(views)]
    options = {"protocol": "ae2", "ks": [5, 7], "metrics": ["retrieval"]}
    row = evaluate_embeddings(videos, videos, {"all": ["x", "y"]}, **options)["metrics"]
    frames = [metrics.labelled_video(one) for one in videos]
    for k in (5, 7):
        key = f"map_at_{k}"
        assert row[key] == metrics.average_precision_at_k(frames, 1, k).value
        across = metrics.average_precision_at_k(frames, 1, k, views=("exo", "ego")).value
        assert row[f"{key} exo to ego"] == across
    titles = list(columns(row).values())
    assert titles[:2] == ["mAP@5", "mAP@7"]
    assert "mAP@7 exo to ego" in titles
    assert "mAP@7" in definitions(Options(**options), views)["map_at_7 ego to exo"]


def test_the_frame_index_is_one_more_feature_of_progression():
    train, test = random_videos(4, seed=1), random_videos(3, seed=2)

    def with_index(videos):
        return [
            video([[*x, 1e-3 * t] for t, x in enumerate(one.embeddings)], one.phases, one.id)
            for one in videos
        ]

    expected = metrics.progression(with_index(train), with_index(test), 3, last_phase=True).value
    found = metrics.progression(train, test, 3, last_phase=True, frame_index=True).value
    assert found == pytest.approx(expected, abs=1e-12)
    assert found > metrics.progression(train, test, 3, last_phase=True).value + 0.1
    given = {"protocol": "ae2", "metrics": ["progression", "classification"]}
    videos = two_actions(3)
    plain, indexed = (
        evaluate_embeddings(videos, videos, CLASSES, frame_index=on, **given)["metrics"]
        for on in (False, True)
    )
    assert plain["progression"] != indexed["progression"]
    assert plain["weighted_f1"] == indexed["weighted_f1"]
    assert "0.001" in definitions(Options(frame_index=True, **given))["progression"]


# --- tables and the plot ------------------------------------------------------------------------


def few_shot_rows():
    score = {str(n): {"mean": 0.4 + n / 20, "std": 0.05, "episodes": 10} for n in (1, 3, 10)}
    lacking = score | {"10": {"mean": math.nan, "std": math.nan, "episodes": 10}}
    keys = {"classification": 0.9, "classification from 1": 0.45, "ap_at_5": 0.5}
    return {
        "time index only": {"metrics": keys, "few_shot": {"classification": lacking}},
        "trained": {"metrics": keys, "few_shot": {"classification": score}},
    }


def test_tables():
    rows = few_shot_rows()
    cells = few_shot_cells(rows)["classification"]
    assert cells[0] == ["", "1", "3", "10"]
    assert cells[1] == ["time index only", "0.450 (0.050)", "0.550 (0.050)", "-"]
    assert format_tables(rows, 40).splitlines() == [
        "                 classification   AP@5",
        "time index only           0.900  0.500",
        "trained                   0.900  0.500",
    ]
    assert format_tables(rows, 37).splitlines() == [
        "                 classification",
        "time index only           0.900",
        "trained                   0.900",
        "",
        "                  AP@5",
        "time index only  0.500",
        "trained          0.500",
    ]


def test_views_have_separate_tables():
    keys = (
        "weighted_f1",
        "weighted_f1 ego to exo",
        "map_at_5 ego to exo",
        "weighted_f1 exo to ego",
    )
    rows = {"trained": {"metrics": dict(zip(keys, (0.1, 0.2, 0.3, 0.4), strict=True))}}
    assert format_tables(rows, 80).splitlines() == [
        "            F1",
        "trained  0.100",
        "",
        "ego to exo",
        "            F1  mAP@5",
        "trained  0.200  0.300",
        "",
        "exo to ego",
        "            F1",
        "trained  0.400",
    ]


def test_shares_of_the_training_videos_are_columns():
    keys = ["classification", "classification_at_0.5", "classification_at_0.1", "ap_at_20"]
    titles = ["classification, 10 %", "classification, 50 %", "classification", "AP@20"]
    assert list(columns([*keys, "sync_else"]).values()) == titles


@pytest.mark.parametrize(
    ("file", "picture"),
    [("evaluation.json", "few_shot.png"), ("evaluation_val.json", "few_shot_val.png")],
)
def test_the_plot_is_beside_the_evaluation(file, picture, tmp_path, capsys):
    facts = {"videos": {"train": 2, "test": 2}, "split": "test", "actions": ["all"], "seconds": 1}
    facts |= {"class_set": "", "definitions": {"protocol": ""}, "row_definitions": {}}
    rows = {name: row | {"left_out": {}} for name, row in few_shot_rows().items()}
    write_and_print(tmp_path / file, {"rows": rows} | facts)
    out = capsys.readouterr().out
    assert "0.450 (0.050)" in out
    assert "classification from N labelled videos" in out
    assert f"written to {tmp_path / picture}" in out
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    undefined = json.loads((tmp_path / file).read_text())["rows"]["time index only"]
    assert undefined["few_shot"]["classification"]["10"]["mean"] is None
    assert write_few_shot(tmp_path / "x.json", {"trained": {"metrics": {}}}) is None
