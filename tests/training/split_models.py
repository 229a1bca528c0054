"""Computations of test_models_split.py for 1, 2 and 4 ranks, run in child processes."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peak import kept
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.models import CarlModel, ContextEncoder, SmallCNN
from training.models.sync_batch_norm import sync_batch_norms
from training.support import distributed
from training.support.time_split import TimeSplit

T, SIZE, CONTEXT = 8, 16, 2
FULL = (T, T, T)
LONG = 512

# name -> lengths of the clips, and options of `encoder`
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "padded": ((8, 5, 1), {}),
    "not padded": (FULL, {}),
    "one mask": ((8, 8, 7), {}),  # only the last rank has padding
    "ranks without frames": ((4, 3, 2), {}),  # only the first half of the ranks has any
    "a clip without frames": ((8, 0, 3), {}),
    "nothing recomputed": ((8, 5, 1), {"checkpointing": False}),
    "released, rescaled": ((8, 5, 1), {"positions": "released", "num_frames": 11}),
    "without positions": ((8, 5, 1), {"positions": "none"}),
    "without layers": ((8, 5, 1), {"layers": 0}),
    # Without a clip of one frame, whose features are 0 up to rounding, where ReLU has its kink.
    "centred": ((8, 5, 2), {"centre": True}),
    "centred, not padded": (FULL, {"centre": True, "train_from": "none"}),
    "centred, ranks without frames": ((4, 3, 0), {"centre": True}),
    "chunks": (FULL, {"chunks": 2}),
    "different numbers of chunks": ((8, 3, 1), {"chunk_frames": 2, "at_rest": True}),
    "stored": ((8, 5, 2), {"stored": True, "train_from": "none", "centre": True}),
    "stored, not padded": (FULL, {"stored": True, "train_from": "none"}),
    "context": ((8, 5, 1), {"conv3d": True}),
    "a single frame of context": ((8, 5, 1), {"conv3d": True, "num_context": 1}),
    "context, ranks without frames": ((4, 3, 0), {"conv3d": True, "checkpointing": False}),
}


def split_of_all() -> TimeSplit | None:
    ranks = distributed.world_size()
    if ranks == 1:
        return None
    return TimeSplit(ranks, distributed.rank(), dist.new_group())


def encoder(
    *,
    conv3d: bool = False,
    train_from: str = "all",
    chunks: int = 1,
    chunk_frames: int = 0,
    at_rest: bool = False,
    stored: bool = False,
    **options: Any,
) -> nn.Module:
    """A narrow encoder in float64 without dropout, and with the batch norms of all ranks."""
    torch.manual_seed(3)
    backbone = SmallCNN(SIZE, train_from)
    shared = {"fc_size": 12, "fc_dropout": 0.0, "embedding_size": 8}
    shared |= {"projection_hidden": 6, "projection_size": 5}
    if chunks > 1:  # the same frames in each, however many ranks there are
        chunk_frames = len(FULL) * T // distributed.world_size() // chunks
    shared["chunk_frames"] = chunk_frames
    if conv3d:
        model: Any = ContextEncoder(
            backbone, conv_layers=1, conv_size=8, **({"num_context": CONTEXT} | shared | options)
        )
    else:
        widths = {"hidden_size": 16, "heads": 2, "ff_size": 24, "layers": 2, "dropout": 0.0}
        model = CarlModel(backbone, **({"num_frames": T} | widths | shared | options))
    model = model.double().train()
    if at_rest:
        for module in model.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    if distributed.world_size() > 1:
        sync_batch_norms(model, torch.device("cpu"))
    return model


def inputs(
    lengths: tuple[int, ...], features: int | None, *, context: int = 1
) -> dict[str, Tensor]:
    """Frames, the mask and the loss's coefficients of whole clips."""
    random = torch.Generator().manual_seed(5)
    n = len(lengths)
    one = (context, 3, SIZE, SIZE) if context > 1 else (3, SIZE, SIZE)
    frames = torch.randint(0, 256, (n, T, *one), generator=random).to(torch.uint8)
    if features is not None:
        frames = torch.randn(n, T, features, generator=random, dtype=torch.float64)
    return {
        "frames": frames,
        "valid": torch.arange(T) < torch.tensor(lengths)[:, None],
        "of_h": torch.randn(n, T, 8, generator=random, dtype=torch.float64),
        "of_z": torch.randn(n, T, 5, generator=random, dtype=torch.float64),
    }


def compute(lengths: tuple[int, ...], options: dict[str, Any], split: TimeSplit | None) -> dict:
    """Embeddings of this rank, gradients summed over ranks, and running statistics."""
    model = encoder(**options)
    model.time_split = split
    stored = {"stored": True} if options.get("stored") else {}
    features = model.backbone.out_features if stored else None
    context = options.get("num_context", CONTEXT) if options.get("conv3d") else 1
    whole = inputs(lengths, features, context=context)
    if split is not None:
        whole = {name: x.chunk(split.parts, 1)[split.part] for name, x in whole.items()}
    valid = None if bool(whole["valid"].all()) else whole["valid"]  # as in a training step
    h = model.encode(whole["frames"], valid, **stored)
    z = model.project(h, valid)
    ((h.square() + h) * whole["of_h"]).sum().add((z * whole["of_z"]).sum()).backward()
    gradients = {
        name: distributed.sum_over_ranks(p.grad)
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return {"h": h.detach(), "z": z.detach(), "gradient": gradients} | {
        "statistics": dict(model.named_buffers())
    }


def evaluated(split: TimeSplit | None) -> Tensor:
    """A whole video's embeddings in the middle of training, computed by rank 0 alone."""
    model = encoder().eval()
    model.time_split = split
    with torch.no_grad():
        frames = inputs((T,), None)["frames"]
        return model.encode(frames) if distributed.is_main() else torch.empty(0)


def kept_bytes(split: TimeSplit | None) -> int:
    """Bytes that an encoder keeps for backward from a clip of LONG frames."""
    model = encoder(chunk_frames=32, num_frames=LONG).float()
    model.time_split = split
    part = LONG // distributed.world_size()
    frames = torch.zeros(1, part, 3, SIZE, SIZE, dtype=torch.uint8)
    return kept(lambda: model.encode(frames).sum())


def main(folder: Path) -> None:
    distributed.start()
    split = split_of_all()
    results: dict[str, Any] = {
        name: compute(lengths, options, split) for name, (lengths, options) in CASES.items()
    }
    results |= {"evaluated": evaluated(split), "kept": kept_bytes(split)}
    torch.save(results, folder / f"split{distributed.world_size()}_{distributed.rank()}.pt")
    distributed.leave(0)
