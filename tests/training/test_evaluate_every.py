"""Evaluation during training changes nothing and returns what evaluating that step would return."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow import NARROW_CNN
from runs import RECIPE, numbers, same, weights
from steps import Killed, stopped_at
from vclr_cases import RECIPE as VCLR_RECIPE

from fastseq.video import write_video
from training import evaluate, report, retrieve
from training.data.index import build_index
from training.evaluation.curve import KEYS, VIDEO_KEYS, step_evaluation
from training.evaluation.frame_level import evaluate_frame_level
from training.evaluation.video_level import evaluate_video_level
from training.models import small_cnn
from training.recipe.load import load_config
from training.runs.log import read_lines
from training.runs.model import initial_model
from training.train import main

EVERY = "train.evaluate_every=5"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Six videos of a growing square, in three phases; four are for training."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    entries = {}
    for number in range(6):
        length = int(rng.integers(18, 26))
        frames = np.full((length, 24, 24, 3), 40 * number, np.uint8)
        for t in range(length):
            frames[t, : 4 + 16 * t // length, :12] = 255
        write_video(folder / f"{number}.mp4", frames, 25.0)
        split = "test" if number > 3 else "train"
        entries[f"{number}.mp4"] = {"split": split, "boundaries": [5 + number, 12 + number % 3]}
    content = {"classes": {"all": ["a", "b", "c"]}, "videos": entries}
    (folder / "labels.json").write_text(json.dumps(content))
    build_index(folder)
    return folder


@pytest.fixture
def place(labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    shutil.copytree(labelled, "videos")
    build_index("videos")
    Path("tiny.yaml").write_text(RECIPE)
    return tmp_path


def lines(run):
    return read_lines(Path(run) / "evaluations.jsonl")


def test_a_run_with_evaluations_equals_one_without(place):
    assert main(["tiny.yaml", "train.run_dir=plain"]) == 0
    assert main(["tiny.yaml", "train.run_dir=watched", EVERY]) == 0
    assert same(weights("plain"), weights("watched"))
    assert numbers("plain") == numbers("watched")
    assert not Path("plain/evaluations.jsonl").exists()
    assert [line["step"] for line in lines("watched")] == [0, 5, 10, 12]

    rows = evaluate_frame_level("watched", progress=False)["rows"]
    for line, row in ((lines("watched")[0], "untrained"), (lines("watched")[-1], "trained")):
        assert line["metrics"] == pytest.approx({k: rows[row]["metrics"][k] for k in KEYS})
        clock = rows["time index only"]["metrics"]
        assert line["time_index"] == pytest.approx({k: clock[k] for k in KEYS})
    assert lines("watched")[0]["metrics"] != lines("watched")[-1]["metrics"]

    # Killed in step 12 with a checkpoint of step 5, after the log lines of steps 0, 5 and 10.
    arguments = ["tiny.yaml", "train.run_dir=parts", EVERY, "train.checkpoint_every=7"]
    with stopped_at(11), pytest.raises(Killed):
        main(arguments)
    assert [line["step"] for line in lines("parts")] == [0, 5, 10]
    assert main([*arguments, "--resume"]) == 0
    assert lines("parts") == lines("watched")


def test_val_videos_are_evaluated_where_there_are_any(place, capsys):
    """No figure of the test videos is in evaluations.jsonl, and the report names the split."""
    content = json.loads(Path("videos/labels.json").read_text())
    for name in ("2.mp4", "3.mp4"):
        content["videos"][name]["split"] = "val"
    Path("videos/labels.json").write_text(json.dumps(content))
    build_index("videos")
    assert main(["tiny.yaml", "train.run_dir=run", "train.steps=2", EVERY]) == 0
    assert [line["split"] for line in lines("run")] == ["val"] * 2
    assert evaluate.main(["run", "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert "2 training and 2 val videos" in out
    assert "written to run/evaluation_val.json" in out
    assert not Path("run/evaluation.json").exists()
    assert evaluate.main(["run", "--split", "train", "--protocol", "vclr"]) == 2
    assert "cannot score the split 'train'" in capsys.readouterr().err
    assert retrieve.main(["--run", "run", "--split", "val", "--out", "val.png"]) == 0
    assert report.main(["run"]) == 0
    text = Path("run/report.html").read_text()
    assert "The network on the val videos while it was trained" in text
    assert "metrics on the val videos over training steps" in text
    assert "its figures are then too good" not in text

    results = {
        "val": json.loads(Path("run/evaluation_val.json").read_text()),
        "test": json.loads(Path("run/evaluation.json").read_text()),
        "train": evaluate_frame_level("run", split="train", progress=False),
    }
    last = lines("run")[-1]["metrics"]
    for name, one in results.items():
        assert (one["split"], one["videos"]) == (name, {"train": 2, "test": 2})
        found = {key: one["rows"]["trained"]["metrics"][key] for key in KEYS}
        assert (last == pytest.approx(found)) == (name == "val")


def test_the_best_checkpoint_has_the_weights_of_its_step(place, caplog):
    keep = ["train.keep_best=alignment_error", "train.patience=9"]
    assert main(["tiny.yaml", "train.run_dir=run", EVERY, *keep]) == 0
    (warning,) = [one.getMessage() for one in caplog.records if "keep_best" in one.getMessage()]
    assert "keep_best chooses on the test videos, because no video has the split 'val'" in warning
    found = json.loads(Path("run/best.json").read_text())
    values = {line["step"]: line["metrics"]["alignment_error"] for line in lines("run")}
    assert found["value"] == min(values.values()) == values[found["step"]]

    cfg = load_config("run/config.yaml")
    model = initial_model(cfg)
    state = torch.load("run/checkpoints/best.pt", weights_only=True)
    model.load_state_dict(state["model"])
    again = step_evaluation(cfg, model)()
    assert again["metrics"]["alignment_error"] == pytest.approx(found["value"], rel=1e-6)


def test_a_vclr_run_is_evaluated_by_its_videos(place, caplog):
    """Without phases: the metrics are those of VCLR's protocol, and other ones are refused."""
    splits = ["train", "train", "train", "train", "val", "val"]
    entries = {
        f"{number}.mp4": {"split": split, "action": "pour" if number % 2 else "swing"}
        for number, split in enumerate(splits)
    }
    Path("videos/labels.json").write_text(json.dumps({"videos": entries}))
    build_index("videos")
    Path("vclr.yaml").write_text(VCLR_RECIPE)
    arguments = ["vclr.yaml", "train.run_dir=run", "train.steps=2", "train.evaluate_every=1"]
    assert main([*arguments, "train.keep_best=recall_at_1"]) == 0
    assert "keep_best" not in caplog.text
    made = lines("run")
    assert [line["step"] for line in made] == [0, 1, 2]
    assert made[-1]["metrics"].keys() == {*VIDEO_KEYS}
    row = evaluate_video_level("run", split="val", progress=False)["rows"]["trained"]["metrics"]
    assert made[-1]["metrics"] == pytest.approx({key: row[key] for key in VIDEO_KEYS})
    best = max(line["metrics"]["recall_at_1"] for line in made)
    assert json.loads(Path("run/best.json").read_text())["value"] == best


def test_a_metric_without_its_labels_is_refused(place, capsys):
    keep = ["train.keep_best=classification", EVERY, "train.run_dir=run"]
    Path("videos/labels.json").write_text(json.dumps({"videos": {"5.mp4": {"split": "test"}}}))
    build_index("videos")
    assert main(["tiny.yaml", *keep]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error")]
    assert "train.keep_best=classification cannot be computed: none of the 5 readable" in line
    # What cannot work is refused before features are computed, which may take hours.
    frozen = ["data.cache=features", "model.train_from=none", "model.random_frozen=true"]
    assert main(["tiny.yaml", *keep, *frozen]) == 2
    assert main(["tiny.yaml", "train.run_dir=run", "optim.backbone_lr=1e-4", *frozen]) == 2
    err = capsys.readouterr().err
    assert "classification cannot be computed" in err
    assert "model.train_from=none trains no parameter of it" in err
    assert not Path("videos/.fastseq_features").exists()
    Path("vclr.yaml").write_text(VCLR_RECIPE)
    assert main(["vclr.yaml", *keep, "train.keep_best=linear_svm"]) == 2
    err = capsys.readouterr().err
    assert "linear_svm, recall_at_1 need training videos of at least two actions" in err
    assert not Path("run").exists()


def test_without_labels_there_is_one_warning_and_no_evaluation(place, caplog):
    Path("videos/labels.json").write_text(json.dumps({"videos": {"5.mp4": {"split": "test"}}}))
    build_index("videos")
    with caplog.at_level(logging.WARNING, logger="training.evaluation.curve"):
        assert main(["tiny.yaml", "train.run_dir=run", "train.steps=2", EVERY]) == 0
    (warning,) = caplog.records
    assert "nothing is evaluated: none of the 5 readable videos" in warning.getMessage()
    assert not Path("run/evaluations.jsonl").exists()


def test_modes_and_random_states_are_left_as_they_were(place, caplog, monkeypatch):
    cfg = load_config("tiny.yaml", [EVERY, "data.folder=videos"])
    model = initial_model(cfg).train()
    model.layers[0].eval()  # modules are in different modes
    modes = [module.training for module in model.modules()]
    evaluation = step_evaluation(cfg, model)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    original = model.encode

    def drawing(*args, **kwargs):
        torch.rand(3)
        assert not model.training
        return original(*args, **kwargs)

    monkeypatch.setattr(model, "encode", drawing)
    found = evaluation()
    assert found.keys() == {"split", "metrics", "time_index"}
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes

    # A network that has diverged does not end the training.
    with torch.no_grad():
        model.embedding.weight.fill_(torch.nan)
    assert evaluation() is None
    assert "not evaluated: encoder 'trained' returned NaN" in caplog.text
    assert [module.training for module in model.modules()] == modes


def test_a_video_that_cannot_be_read_is_named_once(place, capsys):
    cfg = load_config("tiny.yaml", [EVERY, "data.folder=videos"])
    evaluation = step_evaluation(cfg, initial_model(cfg))
    Path("videos/0.mp4").write_bytes(b"no video")
    first, second = evaluation(), evaluation()
    assert first == second
    assert capsys.readouterr().err.count("left out 0.mp4") == 1
    Path("videos/1.mp4").write_bytes(b"no video")
    third, fresh = evaluation(), step_evaluation(cfg, evaluation.model)()
    assert third == fresh
    assert third["time_index"] != second["time_index"]
