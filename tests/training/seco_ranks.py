"""Computations of test_seco.py for one rank and for two, run in child processes."""

from pathlib import Path

import torch
from vclr_cases import CLIPS
from vclr_ranks import BATCH, steps

from training.support import distributed

# SeCo instead of the losses of vclr_cases.RECIPE.
SECO = (
    "loss.vclr.weight=0",
    "loss.seco.weight=1",
    "loss.seco.queue_size=20",
    "loss.seco.momentum=0.9",
    "data.segments=2",
)


def main(folder: Path) -> None:
    distributed.start()
    results = {
        "steps": steps(folder, *SECO),
        "clips": steps(folder, *SECO, *CLIPS),
        "parts": steps(folder, *SECO, "train.accumulate=2", f"data.batch_size={BATCH // 2}"),
    }
    torch.save(results, folder / f"ranks{distributed.world_size()}_{distributed.rank()}.pt")
    distributed.leave(0)
