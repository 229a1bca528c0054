"""A trainer of the small recipe without files, and runs that stop and continue."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import RECIPE, squares
from vclr_cases import RECIPE as VCLR_RECIPE
from vclr_cases import tuples

from training.loop.trainer import Trainer
from training.recipe.load import load_config
from training.runs.checkpoint import list_checkpoints, load_latest
from training.runs.model import initial_model
from training.train import main

# No dropout, and all frames in one chunk.
PLAIN = ["model.dropout=0", "model.fc_dropout=0", "train.chunk_frames=0"]


def make_trainer(folder: Path, *overrides: str, vclr: bool = False) -> Trainer:
    recipe = folder / "small.yaml"
    recipe.write_text(VCLR_RECIPE if vclr else RECIPE)
    cfg = load_config(recipe, [*PLAIN, *overrides])
    return Trainer(cfg, initial_model(cfg), (tuples if vclr else squares)(cfg), folder / "run")


def batches(trainer: Trainer, number: int) -> list[dict]:
    return list(trainer.loader.stream(number))


def last_state(run: str) -> dict:
    return load_latest(f"{run}/checkpoints")


def newest(run: str) -> Path:
    return list_checkpoints(f"{run}/checkpoints")[-1]


class Killed(BaseException):
    """Ends a run as SIGKILL does: the trainer does not catch it and writes nothing more."""


@contextmanager
def stopped_at(step: int, error: type[BaseException] = Killed) -> Iterator[None]:
    """Trainers raise ``error`` instead of training on the batch after ``step`` steps."""
    original = Trainer._train_step

    def train_step(self, batches, rate):
        if self.step == step:
            raise error
        return original(self, batches, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", train_step)
        yield


def train_in_two_parts(arguments: list[str], stop_at: int) -> None:
    """Train until a step that raises, after the last checkpoint, then resume to the end."""
    with stopped_at(stop_at, KeyboardInterrupt):
        assert main(arguments) == 130
    assert main([*arguments, "--resume"]) == 0
