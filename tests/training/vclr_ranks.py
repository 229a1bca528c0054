"""Computations of test_vclr_ranks.py for one rank and for two, run in child processes."""

from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from vclr_cases import CLIPS, RECIPE, tuples

from training.loop.trainer import Trainer
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.support import distributed

BATCH = 4


def trainer_of(folder: Path, *options: str, frozen: bool) -> Trainer:
    recipe = folder / f"recipe{distributed.rank()}.yaml"
    recipe.write_text(RECIPE)
    cfg = load_config(recipe, [f"data.batch_size={BATCH}", *options])
    model = initial_model(cfg).double()
    trainer = Trainer(cfg, model, tuples(cfg), folder)
    if frozen:
        for module in trainer.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    trainer.gradient_step.distribute()
    return trainer


def steps(folder: Path, *options: str, broken: int | None = None) -> dict:
    """Two steps with frozen batch norms; in step `broken` the losses of the last rank are NaN."""
    trainer = trainer_of(folder, *options, frozen=True)
    results = []
    parts = trainer.cfg.train.accumulate
    stream = trainer.loader.stream(2 * parts)
    for number in range(2):
        if number == broken and distributed.rank() == distributed.world_size() - 1:
            trainer.gradient_step.weights.fill_(torch.nan)
        results.append(trainer._train_step([next(stream) for _ in range(parts)], 0.02))
    return {
        "loss": [result.loss for result in results],
        "losses": [result.losses for result in results],
        "finite": [result.finite for result in results],
        "shuffles": trainer.gradient_step.shuffles,
        "state": trainer.model.state_dict(),
    }


def shuffled(folder: Path, *options: str) -> dict:
    """The step's features of 8 clips, which the ranks share."""
    trainer = trainer_of(folder, *options, frozen=False)
    step = trainer.gradient_step
    frames = random_clips(step.cfg.data.tuple_frames)
    mine = frames.chunk(distributed.world_size())[distributed.rank()]
    index = torch.arange(len(mine)).view(1, -1)
    return {"shuffles": step.shuffles, "features": step._features(mine[None], index)[0]}


def random_clips(length: int) -> torch.Tensor:
    """uint8 (8, L, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (8, length, 3, 16, 16), dtype=torch.uint8, generator=generator)


def main(folder: Path) -> None:
    distributed.start()
    results = {
        "steps": steps(folder),
        "parts": steps(folder, "train.accumulate=2", f"data.batch_size={BATCH // 2}"),
        "clips": steps(folder, *CLIPS),
        "broken": steps(folder, broken=1),
        "shuffled": shuffled(folder),
        "shuffled clips": shuffled(folder, *CLIPS),
    }
    torch.save(results, folder / f"ranks{distributed.world_size()}_{distributed.rank()}.pt")
    distributed.leave(0)
