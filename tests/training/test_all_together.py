"""Labels, an average, fp16, a rate of the backbone and the best checkpoint in one run."""

import os
from pathlib import Path

import pytest
import torch
from processes import launch, said, wait
from runs import numbers, same
from test_supervised import write_labels

import training.train
from training.evaluation.frame_level import evaluate_frame_level
from training.loop.trainer import Trainer
from training.runs.best import read_best
from training.runs.checkpoint import list_checkpoints
from training.runs.log import read_lines, read_log

OPTIONS = [
    "tiny.yaml",
    *("loss.scl.weight=1", "loss.classification.weight=1", "loss.classification.label_videos=1"),
    *("optim.lr=3e-2", "optim.backbone_lr=1e-2", "optim.ema=0.5", "train.precision=fp16"),
    *("train.steps=8", "train.accumulate=2", "train.checkpoint_every=2", "train.log_every=1"),
    *("train.evaluate_every=2", "train.keep_best=progression", "data.test_split=train"),
]


def train(arguments):
    """training.train; the environment variable KILL_AT is the step in which every rank ends."""
    step = Trainer._train_step

    def train_step(self, batches, rate):
        if str(self.step) == os.environ.get("KILL_AT"):
            os._exit(9)
        return step(self, batches, rate)

    Trainer._train_step = train_step
    return training.train.main(arguments)


def checkpoint(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.process
def test_two_ranks_resume_exactly(video_folder):
    write_labels(video_folder)
    for run, status, more, environment in [
        ("whole", 0, [], {}),
        ("cut", 9, [], {"KILL_AT": "7"}),
        ("cut", 0, ["--resume"], {}),
    ]:
        ranks = launch(train, [*OPTIONS, f"train.run_dir={run}", *more], num=2, **environment)
        assert wait(ranks) == [status, status], said(ranks[0]) + said(ranks[1])
    # Some steps overflow, and some batches of a rank have no labelled frame.
    assert 0 < read_log("whole")[5]["skipped"] < 6  # before the checkpoint of the cut run
    assert numbers("cut") == numbers("whole")
    lines = [read_lines(Path(run, "evaluations.jsonl")) for run in ("cut", "whole")]
    assert lines[0] == lines[1]
    last = [checkpoint(list_checkpoints(f"{run}/checkpoints")[-1]) for run in ("cut", "whole")]
    best = [checkpoint(Path(run, "checkpoints/best.pt")) for run in ("cut", "whole")]
    for a, b in (last, best):
        assert same(a["model"], b["model"])
        assert same(a["ema"], b["ema"])
        assert not same(a["model"], a["ema"])
    assert last[0]["scaler"] == last[1]["scaler"]
    assert read_best("cut") == read_best("whole")
    # The average was evaluated, and it is what the commands load.
    rows = evaluate_frame_level("whole", checkpoint="best")["rows"]
    assert rows["trained"]["metrics"]["progression"] == read_best("whole")["value"]
