"""A small recipe of DPC on videos that need no files; also run as the ranks of test_dpc.py."""

from pathlib import Path
from types import SimpleNamespace

import torch
from omegaconf import OmegaConf
from torch.nn.modules.batchnorm import _BatchNorm
from vclr_cases import TupleEngine

from fastseq.video import ClipLoader, ConsecutiveBlocks
from training.loop.trainer import Trainer
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.support import distributed

RECIPE = """
data:
  {clips: blocks, folder: videos, batch_size: 4, segments: 5, tuple_frames: 4, tuple_stride: 2,
   workers: 0, engine: pyav}
augmentation: {size: 16}
model: {encoder: dpc, backbone: small_cnn3d, train_from: all}
loss: {dpc: {weight: 1, predict: 2}}
optim: {name: adam, lr: 0.01, grad_clip: null}
train: {chunk_frames: 0, steps: 12, log_every: 4, checkpoint_every: 5, device: cpu}
"""


def blocks(cfg, *_, videos: int = 5, **__) -> ClipLoader:
    """Replaces training.train.training_loader: each rank gets its part of the batches."""
    records = [
        SimpleNamespace(
            id=f"video{i}", path=str(i), frames=45, fps=25.0, width=24, height=16, action="all"
        )
        for i in range(videos)
    ]
    data, ranks = cfg.data, distributed.world_size()
    items = ConsecutiveBlocks(
        records,
        OmegaConf.to_object(cfg.augmentation),
        blocks=data.segments,
        block_frames=data.tuple_frames,
        stride=data.tuple_stride,
    )
    return ClipLoader(
        items,
        data.batch_size // ranks,
        engine=TupleEngine(16, workers=data.workers),
        seed=cfg.train.seed,
        rank=distributed.rank(),
        world_size=ranks,
    )


def main(folder: Path) -> None:
    """Two steps in float64 without dropout and with frozen batch norms."""
    distributed.start()
    recipe = folder / f"recipe{distributed.rank()}.yaml"
    recipe.write_text(RECIPE)
    cfg = load_config(recipe, ["loss.dpc.dropout=0", "optim.name=sgd"])
    trainer = Trainer(cfg, initial_model(cfg).double(), blocks(cfg), folder)
    for module in trainer.model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    trainer.gradient_step.distribute()
    results = [trainer._train_step([batch], 0.01) for batch in trainer.loader.stream(2)]
    found = {
        "loss": [result.loss for result in results],
        "losses": [result.losses for result in results],
        "state": trainer.model.state_dict(),
    }
    torch.save(found, folder / f"ranks{distributed.world_size()}_{distributed.rank()}.pt")
    distributed.leave(0)
