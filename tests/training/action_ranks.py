"""Computations of test_action_training.py for one rank and for two, run in child processes."""

from pathlib import Path

import torch
from action_cases import RECIPE, segments

from training.loop.trainer import Trainer
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.support import distributed


def two_steps(folder: Path, *options: str) -> dict:
    recipe = folder / f"recipe{distributed.rank()}.yaml"
    recipe.write_text(RECIPE)
    cfg = load_config(recipe, ["data.batch_size=4", *options])
    loader = segments(cfg, videos=11)
    trainer = Trainer(cfg, initial_model(cfg).double(), loader, folder)
    trainer.gradient_step.distribute()
    parts = cfg.train.accumulate
    stream = trainer.loader.stream(2 * parts)
    found = [trainer._train_step([next(stream) for _ in range(parts)], 0.02) for _ in range(2)]
    return {
        "loss": [one.loss for one in found],
        "accuracy": [one.losses["accuracy"] for one in found],
        "state": trainer.model.state_dict(),
    }


def both(folder: Path) -> dict:
    return {
        "steps": two_steps(folder, "loss.action.label_smoothing=0.1"),
        "parts": two_steps(folder, "train.accumulate=2"),
        "clips": two_steps(folder, "model.backbone=small_cnn3d", "data.tuple_frames=4"),
    }


def main(folder: Path) -> None:
    distributed.start()
    torch.save(both(folder), folder / f"rank{distributed.rank()}.pt")
    distributed.leave(0)
