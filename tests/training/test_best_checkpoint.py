"""train.keep_best keeps the weights of the best evaluation, train.patience ends the run early."""

import json
import math
from pathlib import Path

import pytest
import torch
from processes import launch, said, wait
from runs import RECIPE, same, weights
from scripted import Scripted, train_scripted
from steps import Killed, stopped_at

import training.evaluation.curve
import training.loop.trainer
from training.pages.sections import curves
from training.recipe.load import load_config
from training.runs import checkpoint
from training.runs.best import BestCheckpoint, read_best
from training.runs.log import read_lines
from training.support.checkpoint_files import (
    CheckpointError,
    list_checkpoints,
    read_manifest,
    sha256,
)
from training.train import main

KEEP = ["train.steps=6", "train.evaluate_every=1", "train.keep_best=classification"]


def feed(best: BestCheckpoint, values, start: int = 0) -> list[int]:
    """The steps at which the best checkpoint was written."""
    written = []
    for step, value in enumerate(values, start):

        def content(step=step):
            written.append(step)
            return {"model": {"w": torch.tensor([float(step)])}}

        best.update(step, {"split": "val", "metrics": {"m": value}}, content)
    return written


def lines_of(values) -> list[dict]:
    return [{"step": s, "split": "val", "metrics": {"m": v}} for s, v in enumerate(values)]


def best_pt(run: str | Path) -> dict:
    return torch.load(Path(run) / "checkpoints/best.pt", weights_only=True)


@pytest.mark.parametrize(
    ("values", "lower", "written", "exhausted"),
    [
        ([0.5, 0.7, 0.7, 0.6], False, [0, 1], True),  # the first of equal values
        ([0.5, 0.7, 0.6], True, [0], True),
        ([3.0, 2.0, 2.5], True, [0, 1], False),
        ([math.nan, None, math.nan], False, [], False),  # nothing to wait for yet
        ([0.5, math.nan, math.inf], False, [0], True),
        ([0.5, 0.4, 0.6, 0.5], False, [0, 2], False),
    ],
)
def test_the_best_value_is_kept(tmp_path, values, lower, written, exhausted):
    best = BestCheckpoint(tmp_path, "m", 2, lower_is_better=lower)
    assert feed(best, values) == written
    assert best.exhausted == exhausted
    assert not BestCheckpoint(tmp_path, "m").exhausted
    if written:
        assert best_pt(tmp_path)["model"]["w"].item() == written[-1]
        about = {"step": written[-1], "metric": "m", "value": values[written[-1]], "split": "val"}
        assert read_best(tmp_path) == about
        assert {k: v for k, v in best_pt(tmp_path).items() if k != "model"} == about
    else:
        assert [*tmp_path.iterdir()] == []


def test_the_manifest_has_its_sum_after_later_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    best = BestCheckpoint(tmp_path, "m")
    feed(best, [0.5])
    for step in (1, 2, 3):
        checkpoint.save_checkpoint(folder, step, {"step": step}, keep=2)
    assert read_manifest(folder)["best.pt"]["sha256"] == sha256(folder / "best.pt")
    assert read_manifest(folder).keys() == {*("best.pt", "step_00000002.pt", "step_00000003.pt")}
    assert [path.name for path in list_checkpoints(folder)] == [
        *("step_00000002.pt", "step_00000003.pt")
    ]
    feed(best, [0.6], start=4)
    assert read_manifest(folder)["best.pt"]["sha256"] == sha256(folder / "best.pt")
    assert len(read_manifest(folder)) == 3


def test_the_manifest_has_its_sum_at_every_moment(tmp_path, monkeypatch):
    best = BestCheckpoint(tmp_path, "m")
    feed(best, [0.5])
    written = []
    write = checkpoint._write_manifest

    def noted(folder, entries):
        written.append({*entries})
        write(folder, entries)

    monkeypatch.setattr(checkpoint, "_write_manifest", noted)
    for step in (1, 1, 2):  # step 1 is written again
        checkpoint.save_checkpoint(tmp_path / "checkpoints", step, {"step": step}, keep=1)
    assert len(written) == 4
    assert all("best.pt" in names for names in written)
    (tmp_path / "checkpoints/best.pt").unlink()
    checkpoint.save_checkpoint(tmp_path / "checkpoints", 3, {"step": 3}, keep=1)
    assert written[-1] == {"step_00000003.pt"}


def test_a_full_disk_leaves_the_earlier_best(tmp_path, monkeypatch):
    best = BestCheckpoint(tmp_path, "m")
    feed(best, [0.5])

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_save", full)
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be written \(No space left on"):
        feed(best, [0.6], start=1)
    assert best_pt(tmp_path)["step"] == read_best(tmp_path)["step"] == 0
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        *("best.pt", "manifest.json")
    }


def test_a_resumed_run_continues_the_count(tmp_path):
    values = [0.5, 0.8, 0.6, 0.7]
    feed(BestCheckpoint(tmp_path, "m", 3), values)
    again = BestCheckpoint(tmp_path, "m", 3)
    again.resume(3, lines_of(values))
    assert not again.exhausted
    assert feed(again, [0.8], start=4) == []
    assert again.exhausted
    # The checkpoint is older than the best one: its step is reached again.
    older = BestCheckpoint(tmp_path, "m", 3)
    older.resume(0, [])
    assert feed(older, values[1:], start=1) == [1]
    before = BestCheckpoint(tmp_path, "m", 1)
    read = {"step": 3, "metric": "m", "value": 0.9, "split": "val"}
    (tmp_path / "best.json").write_text(json.dumps(read))
    before.resume(2, lines_of(values[:3]))
    assert before.exhausted  # 0.6 after 0.8
    assert feed(before, [0.9], start=3) == [3]


def test_another_metric_or_split_starts_anew(tmp_path):
    feed(BestCheckpoint(tmp_path, "m"), [0.9])
    lines = [{"step": 0, "split": "val", "metrics": {"m": 0.9, "other": 0.9}}]
    other = BestCheckpoint(tmp_path, "other", 1)
    other.resume(1, lines)
    found = {"split": "val", "metrics": {"other": 0.1}}
    other.update(2, found, lambda: {"model": {}})
    assert read_best(tmp_path)["value"] == 0.1
    again = BestCheckpoint(tmp_path, "other", 1)
    again.resume(2, [*lines, {"step": 2, **found}])
    again.update(3, {"split": "test", "metrics": {"other": 0.05}}, lambda: {"model": {}})
    assert read_best(tmp_path) == {"step": 3, "metric": "other", "value": 0.05, "split": "test"}


def scripted(monkeypatch, values, **options) -> None:
    made = Scripted(values, **options)
    monkeypatch.setattr(training.evaluation.curve, "step_evaluation", lambda cfg, model: made)


def test_a_run_stops_early_and_continues_with_more_patience(recipe, monkeypatch, caplog):
    caplog.set_level("INFO")
    arguments = [recipe, "train.run_dir=run", "train.checkpoint_every=2", *KEEP]
    scripted(monkeypatch, [0.4, 0.6, 0.5, 0.6])
    assert main([*arguments, "train.patience=2"]) == 0
    assert (
        "stopped early at step 3: classification was not better than 0.6, that of step 1, in 2 "
        "evaluations on the val videos" in caplog.text
    )
    assert "done, stopped early at step 3: next, " in caplog.text
    lines = read_lines(Path("run/evaluations.jsonl"))
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line.get("stopped_early") for line in lines] == [None, None, None, True]
    assert [path.name for path in list_checkpoints("run/checkpoints")][-1] == "step_00000003.pt"
    kept = best_pt("run")
    assert (kept["step"], kept["value"]) == (1, 0.6)

    caplog.clear()  # with the same patience nothing is left to do
    scripted(monkeypatch, [])
    assert main([*arguments, "train.patience=2", "--resume"]) == 0
    assert "done, stopped early at step 3" in caplog.text
    Path("pictures").mkdir()
    page = " ".join(curves(Path("run"), Path("pictures")))
    assert "best.pt (dotted line) is the network of step 1, the best by classification" in page
    assert "The training stopped early, at step 3" in page

    caplog.clear()
    scripted(monkeypatch, [0.5, 0.7, 0.6])
    assert main([*arguments, "train.patience=4", "--resume"]) == 0
    assert "stopped early" not in caplog.text
    assert read_best("run") == {
        **{"step": 5, "metric": "classification", "value": 0.7, "split": "val"}
    }
    page = " ".join(curves(Path("run"), Path("pictures")))
    assert "network of step 5" in page
    assert "stopped early" not in page

    scripted(monkeypatch, [0.4, 0.6, 0.5, 0.6, 0.5, 0.7, 0.6])
    assert main([recipe, "train.run_dir=whole", *KEEP]) == 0
    assert same(best_pt("whole")["model"], best_pt("run")["model"])
    assert same(weights("whole"), weights("run"))
    assert not same(best_pt("whole")["model"], weights("whole"))


def test_a_run_at_its_end_has_not_stopped_early(recipe, monkeypatch, caplog):
    caplog.set_level("INFO")
    arguments = [recipe, "train.run_dir=run", *KEEP, "train.steps=2", "train.patience=2"]
    scripted(monkeypatch, [0.6, 0.5, 0.4])
    assert main(arguments) == 0
    assert main([*arguments, "--resume"]) == 0
    assert "stopped early" not in caplog.text
    assert "stopped_early" not in Path("run/evaluations.jsonl").read_text()


def test_a_killed_run_keeps_the_best_of_its_checkpoint(recipe, monkeypatch):
    arguments = [recipe, "train.checkpoint_every=2", *KEEP, "train.steps=4", "train.patience=9"]
    values = [0.3, 0.5, 0.4, 0.9, 0.2]
    scripted(monkeypatch, values)
    with stopped_at(3), pytest.raises(Killed):
        main([*arguments, "train.run_dir=cut"])
    assert read_best("cut")["step"] == 3  # after the checkpoint of step 2
    scripted(monkeypatch, values[3:])
    assert main([*arguments, "train.run_dir=cut", "--resume"]) == 0
    scripted(monkeypatch, values)
    assert main([*arguments, "train.run_dir=whole"]) == 0
    assert read_best("cut") == read_best("whole")
    assert same(best_pt("cut")["model"], best_pt("whole")["model"])
    manifests = [read_manifest(f"{run}/checkpoints") for run in ("cut", "whole")]
    assert manifests[0].keys() == manifests[1].keys() >= {"best.pt"}


def test_a_run_killed_before_its_first_checkpoint_counts_step_0(recipe, monkeypatch):
    arguments = [recipe, "train.run_dir=run", *KEEP, "train.steps=3", "train.patience=2"]
    scripted(monkeypatch, [0.5])
    with stopped_at(0), pytest.raises(Killed):
        main(arguments)
    scripted(monkeypatch, [0.3, 0.4, 0.1])
    assert main([*arguments, "--resume"]) == 0
    assert read_best("run")["step"] == best_pt("run")["step"] == 0
    assert read_lines(Path("run/evaluations.jsonl"))[-1]["step"] == 2  # 2 without a better one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.keep_best=classification"], "needs evaluations during training: set train.eval"),
        (["train.keep_best=acc", "train.evaluate_every=2"], "one of classification, progression,"),
        (["train.keep_best=linear_svm", "train.evaluate_every=2"], "expected one of class"),
        (["train.patience=2"], "train.keep_best, which is null: set it to a metric"),
        (["train.patience=0"], "train.patience: expected at least 1, got 0"),
    ],
)
def test_keys_that_do_not_fit_are_refused(recipe, capsys, options, message):
    assert main([recipe, "train.run_dir=run", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("run").exists()


def test_vclr_runs_have_more_metrics(recipe):
    frames = load_config(recipe)
    vclr = load_config(
        recipe,
        ["model.encoder=vclr", "data.clips=tuples", "loss.vclr.weight=1", "data.num_context=1"],
    )
    more = {*training.evaluation.curve.recorded_keys(vclr)}
    assert more - {*training.evaluation.curve.recorded_keys(frames)} == {
        *("linear_svm", "recall_at_1")
    }


@pytest.mark.process
def test_two_ranks_stop_at_the_same_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    arguments = ["tiny.yaml", "train.run_dir=run", *KEEP, "train.patience=1"]
    ranks = launch(train_scripted, arguments, num=2, VALUES="0.4 0.6 0.5")
    assert wait(ranks) == [0, 0], said(ranks[0]) + said(ranks[1])
    assert "stopped early at step 2" in said(ranks[0])
    assert said(ranks[1]) == ""
    assert read_best("run")["step"] == 1
    assert [path.name for path in list_checkpoints("run/checkpoints")][-1] == "step_00000002.pt"
