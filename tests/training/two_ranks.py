"""Computations of test_distributed.py for one rank and for two, run in child processes."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from runs import RECIPE, SquareEngine, SquareItems
from torch import nn

from fastseq.video import ClipLoader
from training.loop.trainer import Trainer
from training.models.sync_batch_norm import sync_batch_norms
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.support import distributed

ITEMS = 8


def squares(cfg, *_, videos: int = 5, **__) -> ClipLoader:
    """Replaces training.train.training_loader: each rank gets its part of the batches."""
    split = distributed.time_split(cfg.data.split_time)
    share, shares = distributed.data_share(split)
    parts = {}
    if split is not None:
        agree = partial(distributed.union_over_group, group=split.group)
        parts = {"part": (split.part, split.parts), "agree": agree}
    return ClipLoader(
        SquareItems(videos, padded=True),
        cfg.data.batch_size // shares,
        engine=SquareEngine(16),
        seed=cfg.train.seed,
        rank=share,
        world_size=shares,
        **parts,
    )


def configuration(folder: Path, *overrides: str):
    recipe = folder / f"recipe{distributed.rank()}.yaml"
    recipe.write_text(RECIPE)
    options = ["model.dropout=0", "model.fc_dropout=0", f"data.batch_size={ITEMS}"]
    options += ["train.chunk_frames=0", "optim.grad_clip=null", *overrides]
    return load_config(recipe, options)


def batch_of(items: range, *, empty: bool = False) -> dict:
    """A handmade batch with clips of very different lengths."""
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (ITEMS, 2, 8, 3, 16, 16), dtype=np.uint8)
    steps = np.sort(rng.integers(0, 40, (ITEMS, 2, 8)), -1)
    lengths = rng.integers(1, 9, (ITEMS, 2))
    if empty:
        lengths[ITEMS // 2 :] = 0
    valid = np.arange(8) < lengths[..., None]
    whole = {
        "frames": torch.from_numpy(frames),
        "steps": torch.from_numpy(steps),
        "valid": torch.from_numpy(valid),
        "num_frames": torch.full((ITEMS, 2), 40),
        "labels": torch.from_numpy(steps % 4 - 1),
    }
    return {k: v[items.start : items.stop] for k, v in whole.items()} | {
        "ids": [f"video{i}" for i in items],
        "actions": [""] * len(items),
    }


def trainer_of(cfg, dtype: torch.dtype, prepare=lambda model: None) -> Trainer:
    model = initial_model(cfg).to(dtype)
    trainer = Trainer(cfg, model, squares(cfg), Path("unused"))
    prepare(model)
    trainer.gradient_step.distribute()
    return trainer


def gradient(cfg, batches, dtype=torch.float64, prepare=lambda model: None) -> dict:
    trainer = trainer_of(cfg, dtype, prepare)
    norm, values, _ = trainer.gradient_step.gradient(batches)
    values = distributed.sum_over_ranks(values.double())
    return {
        "gradient": {
            name: parameter.grad
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None
        },
        "statistics": dict(trainer.model.named_buffers()),
        "loss": values,
        "norm": norm,
    }


def batch_norms_at_rest(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


# In one recipe, which is faster; the test compares the value of each loss.
ALIGNMENT = [f"loss.{name}.weight=1" for name in ("gta", "ae2", "vava", "drop_dtw", "lrprop")]
ALIGNMENT += ["data.clips=videos"]
SUPERVISED = [f"loss.classification.{key}" for key in ("weight=1", "classes=3", "dropout=0")]
LOSSES = {
    "scl": [],
    "scl, chunks": ["train.chunk_frames=64"],
    "scl, batch": ["loss.scl.negatives=batch"],
    "scl, paper": ["loss.scl.reduction=paper"],
    "scl, paper, batch": ["loss.scl.reduction=paper", "loss.scl.negatives=batch"],
    "scl, sum": ["loss.scl.reduction=sum"],
    "scl, sum, batch": ["loss.scl.reduction=sum", "loss.scl.negatives=batch"],
    "nearest": ["loss.nearest.weight=1"],
    "lav + tcc": ["loss.lav.weight=1", "loss.tcc.weight=2", "data.clips=videos"],
    "contrastive_idm": ["loss.contrastive_idm.weight=1", "data.clips=videos"],
    "soft_dtw": ["loss.soft_dtw.weight=1", "data.clips=videos"],
    "alignment": ALIGNMENT,
    "alignment, sides without frames": ALIGNMENT,
    "classification": SUPERVISED,
    "scl + classification": ["loss.scl.weight=1", *SUPERVISED],
    "classification, second half unlabelled": SUPERVISED,  # all items of rank 1
    "tcn": ["loss.tcn.weight=1", "data.sampling=anchors"],
    "speed": ["loss.speed.weight=1", "data.sampling=speeds"],
}


def gradients(folder: Path) -> dict:
    rank, ranks = distributed.rank(), distributed.world_size()
    share = ITEMS // ranks
    mine = range(rank * share, (rank + 1) * share)
    results = {}
    for name, options in LOSSES.items():
        batch = batch_of(mine)
        if "chunks" in name:  # full clips: a chunk has the same frames on 1 and on 2 ranks
            batch["valid"][:] = True
            options = [f"train.chunk_frames={64 // ranks}"]
        if "without frames" in name:  # one of rank 0, two of rank 1
            for item, side in ((2, 0), (5, 1), (6, 1)):
                batch["valid"][torch.tensor(mine) == item, side] = False
        if "unlabelled" in name:
            batch["labels"][torch.tensor(mine) >= ITEMS // 2] = -1
        results[name] = gradient(configuration(folder, *options), [batch])
    cfg = configuration(folder)
    results["scl in fp32"] = gradient(cfg, [batch_of(mine)], torch.float32)
    results["second half empty"] = gradient(cfg, [batch_of(mine, empty=True)])
    # 4 parts of 2 items, compared with all 8 at once. Batch norms normalise each part alone, so
    # they are frozen.
    pieces = [range(2 * part, 2 * part + 2) for part in range(4)]
    mine_in = [
        range(p.start + rank * 2 // ranks, p.start + (rank + 1) * 2 // ranks) for p in pieces
    ]
    for reduction in ("mean", "paper"):
        cfg = configuration(folder, f"loss.scl.reduction={reduction}")
        for name, batches in (("in parts", [batch_of(r) for r in mine_in]), ("at once", None)):
            batches = batches or [batch_of(mine)]
            made = gradient(cfg, batches, prepare=batch_norms_at_rest)
            results[f"{reduction}, {name}"] = made
    return results


def batch_norm(dtype: torch.dtype) -> dict:
    """Rows 0..6 and 7..9 on two ranks, or all on one; a large mean, where E[x^2] - E[x]^2 fails."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(1000 + rng.standard_normal((10, 4, 3))).to(dtype)
    upstream = torch.from_numpy(rng.standard_normal((10, 4, 3))).to(dtype)
    results = {}
    for empty in (False, True):
        norm = nn.Sequential(nn.BatchNorm2d(4, dtype=dtype), nn.BatchNorm2d(4, dtype=dtype).eval())
        with torch.no_grad():
            norm[0].weight.copy_(torch.arange(1, 5))
            norm[0].bias.fill_(0.5)
        if distributed.world_size() > 1:
            border = 10 if empty else 7
            rows = slice(0, border) if distributed.rank() == 0 else slice(border, 10)
            sync_batch_norms(norm, torch.device("cpu"))
            assert type(norm[1]) is nn.BatchNorm2d
        else:
            rows = slice(0, 10)
        mine = x[rows][..., None].clone().requires_grad_()
        out = norm(mine)
        out.backward(upstream[rows][..., None])
        weights = torch.stack([norm[0].weight.grad, norm[0].bias.grad])
        results[f"empty={empty}"] = {
            "out": distributed.gather_rows(out.detach()),
            "gradient": distributed.gather_rows(mine.grad),
            "weights": distributed.sum_over_ranks(weights),
            "mean": norm[0].running_mean,
            "var": norm[0].running_var,
            "batches": norm[0].num_batches_tracked,
        }
    return results


def gathered() -> dict:
    """Rank r has r + 2 rows; its loss weights row i of all rows by (r + 1) (i + 1)."""
    rank = distributed.rank()
    rows = (torch.arange(rank + 2.0)[:, None] + 10 * rank).expand(-1, 3).clone().requires_grad_()
    everyone = distributed.gather_rows(rows)
    ((rank + 1) * torch.arange(1.0, len(everyone) + 1) @ everyone).sum().backward()
    masks = distributed.gather_rows(torch.tensor([rank == 0, True]))
    return {"rows": everyone.detach(), "gradient": rows.grad, "masks": masks}


def skipping(folder: Path) -> dict:
    """Only rank 1 has a non-finite loss: no rank steps."""
    cfg = configuration(folder, "train.max_nonfinite=2")
    trainer = trainer_of(cfg, torch.float32)
    share = ITEMS // distributed.world_size()
    batch = batch_of(range(distributed.rank() * share, (distributed.rank() + 1) * share))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    if distributed.rank() == distributed.world_size() - 1:
        batch["steps"] = batch["steps"].double()
        batch["steps"][0, 0, 0] = torch.nan
    trainer.meter.start()
    result = trainer._train_step([batch], 1e-3)
    trainer.meter.stepped(1, result, [batch])
    after = trainer.model.state_dict()
    return {
        "finite": result.finite,
        "same": all(torch.equal(before[k], after[k]) for k in before),
        "nonfinite": trainer.meter.nonfinite,
        "adam": len(trainer.optimizer.state),
    }


def main(folder: Path) -> None:
    distributed.start()
    results = {
        "gradients": gradients(folder),
        "batch_norm": {str(d): batch_norm(d) for d in (torch.float32, torch.float64)},
        "gathered": gathered(),
        "skipping": skipping(folder),
    }
    torch.save(results, folder / f"ranks{distributed.world_size()}_{distributed.rank()}.pt")


def repeated(folder: Path) -> None:
    """The gradients of one step, computed three times with the same weights."""
    distributed.start()
    rank, results = distributed.rank(), {}
    batch, other = (batch_of(range(start + rank, start + rank + 1)) for start in (0, 4))
    for name, batches in (("one batch", [batch]), ("two batches", [batch, other])):
        trainer, steps = trainer_of(configuration(folder), torch.float32), []
        for _ in range(3):
            trainer.gradient_step.gradient(batches)
            gradients = {key: p.grad for key, p in trainer.model.named_parameters()}
            steps.append({key: grad.clone() for key, grad in gradients.items() if grad is not None})
        results[name] = steps
    if distributed.is_main():
        torch.save(results, folder / "repeated.pt")


def evaluate_and_extract() -> int:
    """training.evaluate and training.extract of the run `run` on every rank.

    Writes the ids that this rank embedded. SPOIL=RANK: writing fails there. UNCHECKED: the index is
    used as it is, with videos that have changed since.
    """
    import json
    import os

    from training import evaluate, extract
    from training.data import selection
    from training.evaluation import stored

    rank, write, ids = os.environ["RANK"], stored.StoredFiles.write, []

    def noted(self, record, content, stamp):
        if os.environ.get("SPOIL") == rank:
            raise stored.UserError(f"the disk of rank {rank} is gone")
        ids.append(record.id)
        write(self, record, content, stamp)

    stored.StoredFiles.write = noted
    if "UNCHECKED" in os.environ:
        opened = selection.open_index
        selection.open_index = lambda cfg, folder=None, *, class_set=None, check=True: opened(
            cfg, folder, class_set=class_set, check=False
        )
    status = evaluate.main(["run"])
    Path(f"embedded{rank}.json").write_text(json.dumps(ids))
    return status or extract.main(["run", "--out", "out"])
