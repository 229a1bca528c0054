"""log.writer shows the numbers elsewhere; a writer that fails never ends a training."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted import Scripted

import training.evaluation.curve
from training.recipe.load import load_config
from training.runs.log import read_log
from training.runs.writers import Writers, check_writers
from training.train import main

EVALUATED = ["train.evaluate_every=2", "train.run_dir=run", "train.steps=4", "train.log_every=2"]


class FakeWandb(SimpleNamespace):
    """Records calls as wandb 0.17 and later names them: init, then log and finish of the run."""

    __file__ = "wandb/__init__.py"

    def __init__(self) -> None:
        super().__init__(calls=[], fails_in="")

    def _record(self, call: str, options: dict) -> None:
        if self.fails_in == call:
            raise RuntimeError(f"no {call}:\nthe service does not answer")
        self.calls.append((call, options))

    def init(self, *, project, name, dir, config, mode, id, resume):
        options = {"project": project, "name": name, "dir": dir, "mode": mode}
        self._record("init", options | {"id": id, "resume": resume})
        self.config = config
        return SimpleNamespace(
            id=id or "abc123",
            log=lambda data, step: self._record("log", {"data": data, "step": step}),
            finish=lambda: self._record("finish", {}),
        )

    def named(self, name: str) -> list[dict]:
        return [options for called, options in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture(autouse=True)
def evaluations(monkeypatch):
    def open_evaluation(cfg, model):
        return Scripted([0.25, 0.75, None, 0.5, 0.5]) if cfg.train.evaluate_every else None

    monkeypatch.setattr(training.evaluation.curve, "step_evaluation", open_evaluation)


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_the_log_and_the_evaluations(recipe):
    assert main([recipe, *EVALUATED]) == 0
    found = scalars("run/tensorboard")
    assert found["val/classification"] == [(0, 0.25), (2, 0.75)]  # undefined in step 4
    assert found["val/time_index/classification"] == [(0, 0.5), (2, 0.5), (4, 0.5)]
    assert dict(found["loss"]) == pytest.approx(
        {line["step"]: line["loss"] for line in read_log("run")}, rel=1e-6
    )
    assert not Path("run/wandb").exists()


def test_none_writes_nothing(recipe, tmp_path):
    writers = Writers(load_config(recipe, ["log.writer=none"]), tmp_path / "run", 0)
    writers.scalars(1, {"loss": 1.0})
    writers.close()
    assert not Path("run").exists()


def test_wandb_has_the_same_numbers_and_a_resumed_run_continues_them(recipe, wandb):
    arguments = [recipe, *EVALUATED, "log.writer=wandb", "log.project=golf", "train.max_minutes=9"]
    assert main([*arguments, "train.max_minutes=1e-9"]) == 0  # ends after the first step
    (started,) = wandb.named("init")
    assert started == {
        "project": "golf",
        "name": "run",
        "dir": str(Path("run").resolve()),
        "mode": "offline",
        "id": None,
        "resume": None,
    }
    assert wandb.config["optim"]["lr"] == 1e-3
    assert Path("run/wandb/run_id").read_text() == "abc123\n"
    logged = wandb.named("log")
    assert logged[0] == {
        "data": {"val/classification": 0.25, "val/time_index/classification": 0.5},
        "step": 0,
    }
    assert len(wandb.named("finish")) == 1

    assert main([*arguments, "--resume", "log.name=swing"]) == 0
    again = wandb.named("init")[1]
    assert (again["id"], again["resume"], again["name"]) == ("abc123", "allow", "swing")
    lines = [one for one in wandb.named("log") if "loss" in one["data"]]
    assert [(one["step"], one["data"]["loss"]) for one in lines] == [
        (line["step"], line["loss"]) for line in read_log("run")
    ]
    steps = [one["step"] for one in wandb.named("log")]
    assert steps == sorted(steps)
    assert len(wandb.named("finish")) == 2
    assert not Path("run/tensorboard").exists()


def test_a_new_run_has_an_id_of_its_own(recipe, wandb, tmp_path):
    cfg = load_config(recipe, ["log.writer=wandb"])
    for start in (0, 0, 5):
        Writers(cfg, tmp_path / "run", start)
    assert [one["id"] for one in wandb.named("init")] == [None, None, "abc123"]


@pytest.mark.parametrize(("moment", "logged"), [("init", 0), ("log", 0), ("finish", 2)])
def test_a_writer_that_fails_is_named_once(recipe, tmp_path, wandb, caplog, moment, logged):
    wandb.fails_in = moment
    writers = Writers(load_config(recipe, ["log.writer=[wandb,tensorboard]"]), tmp_path, 0)
    for step in (1, 2):
        writers.scalars(step, {"loss": 1.0})
    writers.close()
    (warning,) = caplog.records
    assert warning.getMessage() == (
        "log.writer: wandb failed and is left out from now on "
        f"(no {moment}: the service does not answer); log.jsonl has all numbers"
    )
    assert len(wandb.named("log")) == logged
    assert scalars(str(tmp_path / "tensorboard")) == {"loss": [(1, 1.0), (2, 1.0)]}


def test_a_training_goes_on_without_its_writer(recipe, wandb, caplog):
    wandb.fails_in = "log"
    assert main([recipe, *EVALUATED, "log.writer=wandb"]) == 0
    assert "log.writer: wandb failed" in caplog.text
    assert len(read_log("run")) == 2


def test_a_missing_package_names_its_extra(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([recipe, "train.run_dir=run", "log.writer=wandb"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'log.writer: wandb needs: pip install "fastseq[wandb]"' in line
    assert not Path("run").exists()


def test_a_folder_named_wandb_is_not_the_package(recipe, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    Path("wandb").mkdir()
    monkeypatch.syspath_prepend(".")
    assert main([recipe, "train.run_dir=run", "log.writer=wandb"]) == 2
    assert "no package wandb is installed" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


@pytest.mark.parametrize("value", ["wandbb", "[tensorboard,csv]"])
def test_an_unknown_writer_is_refused(recipe, capsys, value):
    assert main([recipe, "train.run_dir=run", f"log.writer={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "log.writer: expected one or a list of none, tensorboard, wandb, got '" in line
    check_writers(load_config(recipe, ["log.writer=[none,tensorboard]"]))
