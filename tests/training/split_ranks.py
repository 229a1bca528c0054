"""Computations of test_split_time.py for ranks that share every clip, run in child processes."""

import os
from pathlib import Path

import torch
from runs import SquareEngine
from two_ranks import SUPERVISED, batch_of, configuration, gradient, squares

from fastseq.video import ClipLoader, VideoError
from training.support import distributed

SPLITS = {1: [1], 2: [2], 4: [2, 4]}  # ranks -> the values of data.split_time
CASES = {
    "scl": [],
    "scl, centred features": ["model.centre=true"],
    "scl, paper": ["loss.scl.reduction=paper"],
    "scl, sum": ["loss.scl.reduction=sum"],
    "scl, video": ["loss.scl.negatives=video"],
    "scl, batch": ["loss.scl.negatives=batch"],
    "scl + classification": ["loss.scl.weight=1", *SUPERVISED],
    "classification": SUPERVISED,
}
TWO_BATCHES = (range(0, 4), range(4, 8))


def mine(items: range, parts: int, most: int = 8) -> dict:
    """This rank's part of the items ``items`` of `batch_of`, with at most ``most`` real frames."""
    split = distributed.time_split(parts)
    share, shares = distributed.data_share(split)
    size = len(items) // shares
    batch = batch_of(range(items.start + share * size, items.start + (share + 1) * size))
    batch["valid"] &= torch.arange(8) < most
    part = 0 if split is None else split.part
    frames = slice(part * 8 // parts, (part + 1) * 8 // parts)
    cut = {key: batch[key][:, :, frames] for key in ("frames", "steps", "valid", "labels")}
    return batch | cut


def gradients(folder: Path, parts: int) -> dict:
    base = f"data.split_time={parts}"
    results = {}
    for name, options in CASES.items():
        if name == "scl, batch" and parts < distributed.world_size():
            continue
        cfg = configuration(folder, base, *options)
        results[name] = gradient(cfg, [mine(range(8), parts)])
    cfg = configuration(folder, base)
    results["accumulated"] = gradient(cfg, [mine(items, parts) for items in TWO_BATCHES])
    # With 4 frames a clip, the second half of the ranks of a group have padding alone.
    results["parts without frames"] = gradient(cfg, [mine(range(8), parts, most=4)])
    return results


def main(folder: Path) -> None:
    distributed.start()
    ranks = distributed.world_size()
    for parts in SPLITS[ranks]:
        results = gradients(folder, parts)
        torch.save(results, folder / f"split{parts}_{distributed.rank()}_of_{ranks}.pt")


class BrokenEngine(SquareEngine):
    """Cannot read the videos BROKEN, a list of numbers; with several ranks, only the last one."""

    def read(self, readings) -> torch.Tensor:
        if distributed.rank() == distributed.world_size() - 1:
            for reading in readings:
                if reading.path in os.environ["BROKEN"].split():
                    raise VideoError(reading.path, "is broken")
        return super().read(readings)


def broken(cfg, *_, **__) -> ClipLoader:
    """Replaces training.train.training_loader: `squares`, some of which cannot be read."""
    loader = squares(cfg, videos=12)
    loader.engine = BrokenEngine(16)
    return loader
