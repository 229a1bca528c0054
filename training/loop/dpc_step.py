"""DPC's optimizer step: predicted maps of blocks against those of all blocks of the batch."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.loop.precision import autocast
from training.loop.random_batch import random_segments
from training.loop.step import GradientStep, ItemFrames, doubling
from training.models.dpc import DPCModel
from training.support.distributed import gather_rows, rank

if TYPE_CHECKING:
    from training.recipe.schema import Config


def dense_nce(predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """DPC's dense contrastive loss (https://arxiv.org/abs/1909.04656), and the share of hits.

    i and j number the places of all predicted blocks of the batch, p_i are predicted vectors and
    a_i the actual ones, not normalised::

        loss = mean_i -log( exp(<p_i, a_i>) / sum_j exp(<p_i, a_j>) )

    j = i is the positive. Negatives are the other places of the block (spatial), the other blocks
    of the video (temporal), and other videos (easy). j goes over the videos of all ranks, and each
    rank has the same number of them. The matrix of products is stored: N P h w rows, and as many
    columns as all ranks together have rows.

    Args:
        predicted, actual: (N, P, C, h, w); both are differentiated.

    Returns:
        The loss of this rank's rows, and the share of rows whose largest product is the positive.
    """
    wide = torch.promote_types(predicted.dtype, torch.float32)
    rows = predicted.to(wide).movedim(2, -1).flatten(0, 3)
    candidates = gather_rows(actual.to(wide).movedim(2, -1).flatten(0, 3))
    scores = rows @ candidates.t()
    target = rank() * len(rows) + torch.arange(len(rows), device=rows.device)
    hits = (scores.detach().argmax(1) == target).to(wide).mean()
    return F.cross_entropy(scores, target), hits


class _Predict(nn.Module):
    """Blocks to maps and predictions: the module that DistributedDataParallel wraps."""

    def __init__(self, model: DPCModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and actual maps of the last P blocks, and the features of all blocks."""
        maps, features = self.model.block_maps(blocks)
        known, actual = maps.tensor_split([-self.model.predict], 1)
        return self.model.predictions(known), actual, features


class DPCStep(GradientStep):
    """Steps of a `DPCModel` on batches of `ConsecutiveBlocks`; the loss is `dense_nce`.

    Negatives come from one part of the batch, and from all ranks. Batch norms normalise the blocks
    of one rank.
    """

    section = "loss.dpc"

    def __init__(
        self,
        cfg: "Config",
        model: DPCModel,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        super().__init__(
            cfg,
            model,
            optimizer,
            device,
            precision,
            module=_Predict(model),
            names=["dpc", "accuracy"],
            losses=1,
        )
        self.weight = cfg.loss.dpc.weight

    @staticmethod
    def check(cfg: "Config", device: torch.device, dtype: torch.dtype) -> None:
        """All options are checked when the recipe is read."""

    @staticmethod
    def describe(cfg: "Config") -> ItemFrames:
        blocks, length = cfg.data.segments, cfg.data.tuple_frames
        frames = blocks * length
        return ItemFrames(frames, frames, f"{blocks} consecutive blocks of {length} frames")

    def examples(self, items: int) -> Iterator[dict[str, Any]]:
        return (random_segments(self.cfg, number) for number in doubling(items))

    def _loss(
        self, batch: dict[str, Any], shares: Sequence[float]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        blocks = batch["frames"].to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            predicted, actual, features = self.module(blocks)
        loss, hits = dense_nce(predicted, actual)
        loss, hits = loss * shares[0], hits * shares[1]
        return self.weight * loss, [loss, hits], features.flatten(0, 1)
