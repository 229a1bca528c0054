"""A sweep over values of a recipe: its points, continuing, the table and the picture."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import RECIPE

from fastseq.video import write_video
from training import sweep, train
from training.data.index import build_index
from training.studies.sweep import Point, parse, summary, table
from training.support.command import UserError


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four clips with three phases."""
    folder = tmp_path_factory.mktemp("sweep") / "videos"
    folder.mkdir()
    labels = {}
    for k, split in enumerate(("train", "train", "test", "test")):
        frames = np.zeros((16, 24, 32, 3), np.uint8)
        for t in range(16):
            frames[t, 4:12, t : t + 8 + k] = 255
        write_video(folder / f"{k}.mp4", frames, 25)
        labels[f"{k}.mp4"] = {"split": split, "boundaries": [4 + k, 9 + k]}
    classes = {"all": ["start", "middle", "end"]}
    (folder / "labels.json").write_text(json.dumps({"classes": classes, "videos": labels}))
    build_index(folder)
    return folder


@pytest.fixture
def arguments(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return ["tiny.yaml", "train.steps=2", "--folder", str(clips), "--out", "out", "--seeds", "2"]


def test_values_are_separated_by_commas_outside_brackets_and_quotes():
    fixed, swept = parse(
        ["a.x=1,2", "b.y=[1,2]", "c.z='a,b'", "d.u=[1,2],[3,4],null", "data.folder=/x/y"]
    )
    assert fixed == ("b.y=[1,2]", "c.z='a,b'", "data.folder=/x/y")
    assert swept == {"a.x": ["1", "2"], "d.u": ["[1,2]", "[3,4]", "null"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr"], "expected key=value or key=a,b,c"),
        (["optim.lr=1,,2"], "a value between commas is empty"),
        (["optim.lr=1,2,1"], "1 occurs twice"),
        (["optim.lr=1,2", "optim.lr=3"], "this key is also swept"),
        (["optim.lr=1,2", "optim.lr=3,4"], "optim.lr is swept twice"),
        (["train.seed=1,2"], "--seeds sets train.seed"),
        (["train.run_dir=x"], "--out sets train.run_dir"),
    ],
)
def test_words_that_cannot_be_used(words, message):
    with pytest.raises(UserError, match=message):
        parse(words)


def test_folders_of_points_differ_and_have_bounded_names():
    short = Point((("a.x", "1"), ("b", "x/y"))).folder
    assert short == "a.x=1,b=x%2Fy"
    long = [Point((("key", "v" * 300 + end),)).folder for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) < 140 for name in long)


def test_every_point_has_a_run_for_each_seed(arguments, monkeypatch, capsys):
    words = [*arguments, "model.layers=0,1", "optim.lr=1e-3,1e-4", "--protocol", "lav"]
    assert sweep.main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "8 runs, 8 to be trained" in out
    assert "the first of them, model.layers=0 optim.lr=1e-3, seed 0:" in out
    assert "2 steps in total" in out  # training's own plan
    assert "8 such runs; the others may take more or less time" in out
    assert not Path("out").exists()

    assert sweep.main(words) == 0
    out = capsys.readouterr().out
    content = json.loads(Path("out/sweep.json").read_text())
    assert [point["name"] for point in content["points"]] == [
        f"model.layers={layers} optim.lr={lr}" for layers in (0, 1) for lr in ("1e-3", "1e-4")
    ]
    for point in content["points"]:
        assert list(point["runs"]) == ["0", "1"]
        accuracies = []
        for seed, run in point["runs"].items():
            evaluation = json.loads(Path(run, "evaluation.json").read_text())
            assert evaluation["protocol"] == "lav"
            config = Path(run, "config.yaml").read_text()
            assert f"layers: {point['values']['model.layers']}" in config
            assert f"seed: {seed}" in config
            trained = evaluation["rows"]["trained"]["metrics"]
            assert point["rows"][seed]["trained"] == trained
            accuracies.append(trained["classification"])
        found = point["metrics"]["classification"]
        assert found["mean"] == pytest.approx(np.mean(accuracies))
        assert found["std"] == pytest.approx(np.std(accuracies, ddof=1))
    clock = content["points"][0]["rows"]["0"]["time index only"]
    line = next(one for one in out.splitlines() if one.startswith("time index only "))
    assert f" {clock['classification']:.3f} " in line
    line = next(one for one in out.splitlines() if one.startswith("model.layers=0 optim.lr=1e-3 "))
    found = content["points"][0]["metrics"]["classification"]
    assert f" {found['mean']:.3f} ± {found['std']:.3f} " in line
    assert "choose on val videos" in out
    assert Path("out/sweep.png").stat().st_size > 5000

    # Finished runs are skipped; another protocol only evaluates; another value is refused.
    calls = []
    original = train.main
    monkeypatch.setattr(train, "main", lambda argv: calls.append(argv) or original(argv))
    assert sweep.main(words) == 0
    assert capsys.readouterr().out.count("there already") == 8
    assert calls == []
    assert sweep.main([*words[:-1], "carl", "--fractions", "0.5", "1"]) == 0
    assert {call[-1] for call in calls} == {"--resume"}
    assert "classification_at_0.5" in Path("out/sweep.json").read_text()
    capsys.readouterr()
    assert sweep.main([*words, "optim.weight_decay=0.1"]) == 2
    assert "is the result of other values of optim.weight_decay" in capsys.readouterr().err


def test_a_result_of_other_videos_or_weights_is_not_used_again(arguments, capsys):
    words = [*arguments[:-1], "1"]
    assert sweep.main(words) == 0
    index = words.index("--folder") + 1
    folder = words[index]
    words[index] = str(Path(folder).resolve())  # the same folder
    assert sweep.main(words) == 0
    assert "there already" in capsys.readouterr().out
    shutil.copytree(folder, "others")
    for change in (["--folder", "others"], ["model.weights=others"], ["train.max_minutes=1"]):
        assert sweep.main([*words, *change]) == 2
        error = capsys.readouterr().err
        key = {"--folder": "data.folder"}.get(change[0], change[0].partition("=")[0])
        assert f"is the result of other values of {key}; repeat those values" in error
    result = Path("out/recipe/seed_0/result.json")
    content = result.read_text()
    result.unlink()  # begun, not finished
    assert sweep.main([*words, "--folder", "others"]) == 2
    assert "other values of data.folder" in capsys.readouterr().err
    result.write_text(content)
    config = result.with_name("config.yaml")
    config.write_text(config.read_text().replace(folder, "/no/longer/there"))
    assert sweep.main([*words, "--folder", "others"]) == 0  # the folder was moved
    assert "there already" in capsys.readouterr().out


def test_the_best_checkpoint_is_scored_on_the_chosen_split(arguments, capsys):
    best = ["train.evaluate_every=1", "train.keep_best=classification"]
    choice = ["--checkpoint", "best", "--split", "train", "--metrics", "classification"]
    assert sweep.main([*arguments[:-1], "1", *best, *choice]) == 0
    content = json.loads(Path("out/sweep.json").read_text())
    assert (content["checkpoint"], content["split"]) == ("best", "train")
    (point,) = content["points"]
    assert list(point["metrics"]) == ["classification"]
    run = Path(point["runs"]["0"])
    evaluation = json.loads((run / "evaluation_best_train.json").read_text())
    assert (evaluation["checkpoint"], evaluation["split"]) == ("best", "train")
    assert not (run / "evaluation.json").exists()  # which the report shows
    assert "choose on val videos" not in capsys.readouterr().out
    assert sweep.main([*arguments[:-1], "1", "train.evaluate_every=2", best[1], *choice]) == 2
    assert "other values of train.evaluate_every" in capsys.readouterr().err


def test_a_run_that_fails_does_not_stop_the_others(arguments, monkeypatch, capsys):
    original = train.main

    def broken(argv):
        if "model.layers=1" in argv:
            raise RuntimeError("CUDA out of memory")
        return original(argv)

    monkeypatch.setattr(train, "main", broken)
    words = [*arguments[:-1], "1", "model.layers=0,1"]
    assert sweep.main(words) == 3
    err = capsys.readouterr().err
    assert "RuntimeError: CUDA out of memory" in err
    assert "no result for model.layers=1, seed 0: its training or evaluation failed" in err
    content = json.loads(Path("out/sweep.json").read_text())
    assert [point["name"] for point in content["points"]] == ["model.layers=0"]
    assert list(content["failed"]) == ["model.layers=1, seed 0"]
    assert content["points"][0]["metrics"]["classification"]["std"] is None

    monkeypatch.setattr(train, "main", lambda argv: 2)
    assert sweep.main([*words, "optim.lr=0.5", "--out", "none"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.layers=1,two"], "model.layers"),
        (["model.layer=1,2"], "unknown key 'model.layer'"),
        (["--split", "val"], "has no videos in the split 'val'"),
        (["--fractions", "2"], "fractions are"),
        (["data.split_time=1,2"], "data.split_time: expected 1, because this command trains in"),
        (["train.patience=null,3"], "train.patience=3 counts evaluations"),
        (["loss.scl.temperature=0.1,-1", "--dry-run"], "temperature must be finite"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_trained(arguments, words, message, capsys):
    assert sweep.main([*arguments, *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("out").exists()


def test_the_table_shows_undefined_values_and_one_seed():
    class Fake:
        recipe, fixed, swept, seeds, out = "r", (), {"a": ["1", "2"]}, 2, Path("out")

        def points(self):
            return [Point((("a", value),)) for value in "12"]

        def run(self, point, seed):
            return Path(point.folder, str(seed))

    def result(value):
        rows = {"trained": {"metrics": {"classification": value, "progression": -2.0}}}
        return {"rows": rows, "split": "val", "videos": {}, "definitions": {}}

    one, two = Fake().points()
    content = summary(
        Fake(),
        {},
        {(one, 0): result(0.25), (one, 1): result(0.75), (two, 0): result(math.nan)},
        {},
    )
    lines = [line.split() for line in table(content).splitlines()]
    assert lines[0] == ["runs", "classification", "progression"]
    assert lines[1] == ["a=1", "2", "0.500", "±", "0.354", "<0"]
    assert lines[2] == ["a=2", "1", "-", "<0"]
