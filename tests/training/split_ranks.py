"""Computations of test_split_time.py for ranks that share every clip, run in child processes."""

import os
from pathlib import Path

import torch
from runs import SquareEngine, SquareItems
from two_ranks import SUPERVISED, batch_of, configuration, gradient, squares

from fastseq.video import ClipLoader, VideoError
from training.support import distributed

CASES = {
    "scl": [],
    "scl, centred features": ["model.centre=true"],
    "scl, paper": ["loss.scl.reduction=paper"],
    "scl, sum": ["loss.scl.reduction=sum"],
    "scl, batch": ["loss.scl.negatives=batch"],
    "scl + classification": ["loss.scl.weight=1", *SUPERVISED],
    "two batches": [],
    "parts without frames": [],
}
# (ranks, data.split_time) -> the cases that are computed
DIVISIONS = {
    (1, 1): [*CASES],
    (2, 2): [*CASES],
    (4, 2): ["scl", "scl, paper", "scl + classification", "two batches"],
    (4, 4): ["scl", "scl, batch", "parts without frames"],
}


def mine(items: range, parts: int, name: str) -> dict:
    """This rank's part of these items of `batch_of`."""
    split = distributed.time_split(parts)
    share, shares = distributed.data_share(split)
    size = len(items) // shares
    batch = batch_of(range(items.start + share * size, items.start + (share + 1) * size))
    if name == "parts without frames":  # the second half of the ranks of a group have none
        batch["valid"] &= torch.arange(8) < 4
    if "centred" in name:  # a single frame becomes 0, where ReLU has no derivative
        batch["valid"] |= torch.arange(8) < 2
    part = 0 if split is None else split.part
    frames = slice(part * 8 // parts, (part + 1) * 8 // parts)
    cut = {key: batch[key][:, :, frames] for key in ("frames", "steps", "valid", "labels")}
    return batch | cut


def main(folder: Path) -> None:
    distributed.start()
    rank = distributed.rank()
    for (ranks, parts), names in DIVISIONS.items():
        if ranks != distributed.world_size():
            continue
        results = {}
        for name in names:
            cfg = configuration(folder, f"data.split_time={parts}", *CASES[name])
            batches = [range(0, 4), range(4, 8)] if name == "two batches" else [range(8)]
            results[name] = gradient(cfg, [mine(items, parts, name) for items in batches])
        torch.save(results, folder / f"split{parts}_{rank}_of_{ranks}.pt")


class ReplacedItems(SquareItems):
    """The next item replaces one that cannot be read."""

    def item(self, seed, epoch, index, bad=()):
        left = [k for k in range(index, index + len(self)) if str(k % len(self)) not in bad]
        return super().item(seed, epoch, left[0] % len(self)) if left else None


class BrokenEngine(SquareEngine):
    """Cannot read the videos BROKEN, a list of numbers; with several ranks, only the last one."""

    def read(self, readings) -> torch.Tensor:
        if distributed.rank() == distributed.world_size() - 1:
            for reading in readings:
                if reading.path in os.environ["BROKEN"].split():
                    raise VideoError(reading.path, "is broken")
        return super().read(readings)


def broken(cfg, *_, **__) -> ClipLoader:
    """Replaces training.train.training_loader: `squares`, with items that cannot be read."""
    loader = squares(cfg, videos=12)
    loader.items, loader.engine = ReplacedItems(12, padded=True), BrokenEngine(16)
    return loader
