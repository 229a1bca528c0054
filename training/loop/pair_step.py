"""The optimizer step on items of two clips: the losses of `Objective` on their embeddings."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training.loop.clips import Clips
from training.loop.objectives import Objective
from training.loop.precision import autocast
from training.loop.random_batch import random_batch
from training.loop.step import GradientStep, ItemFrames
from training.models import VideoEncoder
from training.models.heads import build_heads
from training.models.sync_batch_norm import sync_batch_norms
from training.support.distributed import data_share, sum_over_ranks, time_split, world_size

if TYPE_CHECKING:
    from training.recipe.schema import Config


class _Forward(nn.Module):
    """Frames to h, and to z if a loss needs it: the one module that DistributedDataParallel wraps.

    DistributedDataParallel needs a gradient for every trained parameter, so an unused head is not
    part of this module.
    """

    def __init__(self, model: VideoEncoder, needs_projection: bool, stored: bool) -> None:
        super().__init__()
        self.model, self.needs_projection = model, needs_projection
        self.options = {"stored": True} if stored else {}

    def forward(self, frames: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h = self.model.encode(frames, rows, **self.options)
        return h, self.model.project(h, rows) if self.needs_projection else None


class PairStep(GradientStep):
    """Steps of a `VideoEncoder` on two views of each video, or on two videos of one action.

    The loss is the mean over the whole batch: the denominator of each loss is summed over all ranks
    and parts before the first backward. So the gradient does not depend on how the batch is
    divided, except through batch norm: in training mode batch norm uses all ranks, but only one
    part (and, in the backbone, one chunk of frames) at a time.

    With ``data.split_time`` a batch has this rank's part of every clip. The measures of collapse
    are of this part's embeddings.

    With ``data.cache=features`` the ``frames`` of a batch are stored features (N, 2, T, F). If a
    loss needs classes, a batch has ``labels``, see `training.loop.labels.LabelledLoader`.

    Attributes:
        features: F, or None if a batch has frames.
        split: the part of every clip that this rank has; None: whole clips.
    """

    section = "loss"

    def __init__(
        self,
        cfg: "Config",
        model: VideoEncoder,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.split = time_split(cfg.data.split_time)
        self.objective = Objective(cfg.loss, model.heads, self.split)
        stored = cfg.data.cache == "features"
        self.features = model.backbone.out_features if stored else None
        super().__init__(
            cfg,
            model,
            optimizer,
            device,
            precision,
            module=_Forward(model, self.objective.needs_projection, stored),
            names=self.objective.names,
            losses=len(self.objective.terms),
        )

    @staticmethod
    def check(cfg: "Config", device: torch.device, dtype: torch.dtype) -> None:
        def zeros(size: int) -> Tensor:
            return torch.zeros(1, 2, 2, size, device=device, dtype=dtype)

        steps = torch.arange(2, device=device).expand(1, 2, 2)
        num_frames = torch.full((1, 2), 2, device=device)
        h, z = zeros(cfg.model.embedding_size), zeros(cfg.model.projection_size)
        labels = torch.zeros_like(steps)
        heads = build_heads(cfg, classes=1).to(device)
        split = time_split(cfg.data.split_time)
        Objective(cfg.loss, heads, split)(Clips(h, z, steps, None, num_frames, labels=labels))

    @staticmethod
    def describe(cfg: "Config") -> ItemFrames:
        length, context = cfg.data.num_frames, cfg.data.num_context
        words = f"2 {cfg.data.clips} x {length} frames"
        if context > 1:
            words += f" x {context} with context"
        return ItemFrames(2 * length * context, 2 * length * context, words)

    def examples(self, items: int) -> Iterator[dict[str, Any]]:
        frames, number = 2, 1
        length = self.cfg.data.num_frames // self.cfg.data.split_time
        while True:
            yield random_batch(self.cfg, frames, number, features=self.features, padded=False)
            if frames < length:
                frames = min(2 * frames, length)
            elif number < items:
                number = min(2 * number, items)
            else:
                break

    def distribute(self) -> None:
        """Share batch-norm statistics and gradients with the other ranks."""
        if world_size() > 1:
            sync_batch_norms(self.model, self.device)
            self._find_statistics()
            if not self.objective.needs_projection:
                self.model.projection.requires_grad_(False)
        super().distribute()

    def _shares(self, batches: Sequence[dict[str, Any]]) -> list[list[float]]:
        mine = torch.tensor(
            [self.objective.counts(batch) for batch in batches], dtype=torch.float64
        )
        share, number = data_share(self.split)
        by_share = mine.new_zeros(number, *mine.shape)
        by_share[share] = mine
        by_share = sum_over_ranks(by_share)
        return self.objective.shares(mine, by_share.sum(0), by_share[share]).tolist()

    def gradient(self, batches: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        # Not always: the same model embeds whole videos, on one rank.
        self.model.time_split = self.split
        try:
            return super().gradient(batches)
        finally:
            self.model.time_split = None

    def _loss(
        self, batch: dict[str, Any], shares: Sequence[float]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        n, clips, t = batch["valid"].shape
        # Most batches have no padding; the mask is on the host, so checking it causes no wait.
        padded = not bool(batch["valid"].all())
        frames, steps, valid, num_frames = (
            batch[key].to(self.device, non_blocking=True)
            for key in ("frames", "steps", "valid", "num_frames")
        )
        valid = valid if padded else None
        rows = None if valid is None else valid.flatten(0, 1)
        with autocast(self.device, self.precision):
            h, z = self.module(frames.flatten(0, 1), rows)
        z = None if z is None else z.view(n, clips, t, -1)
        labels = None
        if self.objective.needs_labels:
            labels = batch["labels"].to(self.device, non_blocking=True)
        loss, values = self.objective(
            Clips(h.view(n, clips, t, -1), z, steps, valid, num_frames, batch["actions"], labels),
            shares,
        )
        embeddings = h.flatten(0, 1) if rows is None else h[rows]
        return loss, list(values.values()), embeddings.detach()
