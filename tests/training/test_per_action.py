"""One run for each action: the table, continuing, and actions that fail."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import RECIPE

from fastseq.video import write_video
from training import per_action, train
from training.data.index import build_index
from training.evaluation.options import Options
from training.studies.evaluated_runs import finished
from training.studies.per_action import Plan, summary, table

SPLITS = {"a.mp4": "train", "b.mp4": "train", "c.mp4": "test", "d.mp4": "test"}


@pytest.fixture(scope="module")
def actions(tmp_path_factory):
    """Two actions of four clips each, and one without test videos."""
    folder = tmp_path_factory.mktemp("actions") / "videos"
    labels = {}
    for number, action in enumerate(("golf swing", "no", "jump")):
        for k, (name, split) in enumerate(SPLITS.items()):
            frames = np.full((16, 24, 32, 3), 40 * number, np.uint8)
            for t in range(16):
                frames[t, 4:12, t : t + 8 + k] = 255
            place = f"{number}/{name}"
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            write_video(folder / place, frames, 25)
            split = "train" if action == "jump" else split
            labels[place] = {"action": action, "split": split, "boundaries": [4 + k, 9 + k]}
    classes = {action: ["start", "middle", "end"] for action in ("golf swing", "no", "jump")}
    (folder / "labels.json").write_text(json.dumps({"classes": classes, "videos": labels}))
    build_index(folder)
    return folder


@pytest.fixture
def arguments(actions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    values = [f"data.folder={actions}", "train.steps=2", "train.log_every=1"]
    return ["tiny.yaml", *values, "--out", "out"]


def read(name):
    return json.loads(Path("out", name).read_text())


def test_every_action_has_a_run_and_a_row(arguments, monkeypatch, capsys):
    options = [*arguments, "--protocol", "lav", "--fractions", "0.5", "1", "--stride", "2"]
    options += ["--few-shot", "1", "--episodes", "2", "--ks", "5"]
    assert per_action.main(options) == 3
    out, err = capsys.readouterr()
    assert "golf swing: " in out
    assert "(1 of 2), about" in out
    assert "no result for jump: no video in the split 'test'" in err
    assert not Path("out/jump").exists()
    content = read("per_action.json")
    assert list(content["actions"]) == ["golf swing", "no"]
    assert content["failed"] == {"jump": "no video in the split 'test'"}
    assert (content["protocol"], content["stride"]) == ("lav", 2)
    for action, entry in content["actions"].items():
        assert entry["videos"] == {"train": 2, "test": 2}
        trained = json.loads(Path(entry["run"], "training_videos.json").read_text())["videos"]
        number = ("golf swing", "no").index(action)
        assert sorted(trained) == [f"{number}/a.mp4", f"{number}/b.mp4"]
        evaluation = json.loads(Path(entry["run"], "evaluation.json").read_text())
        assert evaluation["actions"] == [action]
        assert entry["rows"]["trained"] == evaluation["rows"]["trained"]["metrics"]
        assert Path(entry["run"], "few_shot.png").is_file()
    rows = [entry["rows"]["trained"] for entry in content["actions"].values()]
    mean = content["mean"]["trained"]
    assert mean["ap_at_5"] == pytest.approx((rows[0]["ap_at_5"] + rows[1]["ap_at_5"]) / 2)
    assert {"time index only", "untrained"} < content["mean"].keys()
    lines = out.splitlines()
    head = next(line for line in lines if "classification, 50 %" in line)
    assert head.split()[:2] == ["train", "test"]
    assert "classification from 1" in head
    assert "AP@10" not in head
    row = next(line for line in lines if line.startswith("golf swing  "))
    assert row.split()[2:4] == ["2", "2"]
    assert f" {rows[0]['kendalls_tau']:.3f} " in row
    last = next(line for line in lines if line.startswith("mean of 2, trained "))
    assert last.split()[4:6] == ["4", "4"]
    assert f" {mean['ap_at_5']:.3f} " in last
    assert "support vector machine" in content["definitions"]["classification"]
    assert "one encoder for all actions" in content["definitions"]["per action"]

    # Finished actions are skipped; another protocol only evaluates.
    calls = []
    original = train.main
    monkeypatch.setattr(train, "main", lambda argv: calls.append(argv) or original(argv))
    assert per_action.main(options) == 3
    assert "golf swing: there already" in capsys.readouterr().out
    assert calls == []
    plan = Plan("tiny.yaml", arguments[1:-2], Path("out"), Options("lav", 2, (0.5, 1), [1], 2))
    run, values = plan.run("no"), plan.values("no")
    assert not finished(
        plan.recipe, run, values, vars(plan.options)
    )  # other numbers of nearest frames
    same = replace(plan.options, ks=[5])
    assert finished(plan.recipe, run, values, vars(same))
    weights = [path.read_bytes() for path in sorted(Path("out").glob("*/checkpoints/*.pt"))]
    assert per_action.main([*arguments, "--actions", "no"]) == 0
    assert [call[-1] for call in calls] == ["--resume"]
    assert read("per_action.json")["protocol"] == "carl"
    assert [p.read_bytes() for p in sorted(Path("out").glob("*/checkpoints/*.pt"))] == weights

    # Other values of the recipe are refused before anything is trained.
    assert per_action.main([*arguments, "optim.lr=0.5"]) == 2
    assert "is the result of other values of optim.lr" in capsys.readouterr().err


def test_an_action_that_fails_does_not_stop_the_others(arguments, monkeypatch, capsys):
    original = train.main

    def broken(argv):
        if any("golf" in word for word in argv):
            raise RuntimeError("CUDA out of memory")
        return original(argv)

    monkeypatch.setattr(train, "main", broken)
    wanted = [*arguments, "--actions", "golf swing", "no"]
    assert per_action.main(wanted) == 3
    err = capsys.readouterr().err
    assert "RuntimeError: CUDA out of memory" in err
    assert "no result for golf swing: its training or evaluation failed" in err
    assert list(read("per_action.json")["actions"]) == ["no"]
    monkeypatch.setattr(train, "main", lambda argv: 130)
    assert per_action.main(wanted) == 130
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(train, "main", lambda argv: 2)
    assert per_action.main([*arguments[:-1], "other", "--actions", "no"]) == 1
    assert not Path("other/per_action.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actions", "golf"], "--actions: no video of"),
        (["--fractions", "2"], "fractions are [2.0]; expected numbers in (0, 1]"),
        (["--stride", "0"], "stride is 0"),
        (["train.run_dir=x"], "leave train.run_dir out"),
        (["data.action=dive"], "data.action: no video of"),
        (["optm.lr=1"], "Did you mean 'optim.lr'"),
    ],
)
def test_wrong_requests(arguments, capsys, options, message):
    assert per_action.main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def result(**metrics):
    rows = {"time index only": {"tau": 0.5}, "trained": metrics}
    return {
        "videos": {"train": 3, "test": 1},
        "left_out": {},
        "rows": {name: {"metrics": values} for name, values in rows.items()},
        "definitions": {},
        "row_definitions": {},
    }


def test_means_are_over_the_actions_with_a_value():
    plan = Plan("r.yaml", [], Path("out"), Options(fractions=[0.1, 1.0]))
    first = result(classification=0.5, kendalls_tau=math.nan, **{"classification_at_0.1": 0.25})
    second = result(classification=0.7, kendalls_tau=None, **{"classification_at_0.1": 0.35})
    content = summary(plan, {"a": first, "b": second}, {})
    assert content["mean"]["trained"]["classification"] == pytest.approx(0.6)
    assert math.isnan(content["mean"]["trained"]["kendalls_tau"])
    lines = [line.split("  ") for line in table(content).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["train", "test", "classification, 10 %", "classification", "tau"]
    assert cells[1] == ["a", "3", "1", "0.250", "0.500", "-"]
    assert cells[3] == ["mean of 2, trained", "6", "2", "0.300", "0.600", "-"]


def test_any_action_has_a_folder():
    plan = Plan("r.yaml", ["x=1"], Path("out"), Options())
    assert plan.run("pour/milk: 50 %") == Path("out/pour%2Fmilk%3A 50 %25")
    assert plan.run(".hidden") == Path("out/%2Ehidden")
    assert plan.values('say "no"') == [
        "x=1",
        'data.action="say \\"no\\""',
        'train.run_dir="out/say \\"no\\""',
    ]
