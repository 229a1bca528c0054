"""The optimizer step of classifiers of actions: cross-entropy of the scores of whole videos."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.loop.precision import autocast
from training.loop.random_batch import random_segments
from training.loop.step import GradientStep, ItemFrames, doubling, words_of_clips
from training.models.sync_batch_norm import sync_batch_norms
from training.models.tsn import TSNModel
from training.support.distributed import sum_over_ranks, world_size

if TYPE_CHECKING:
    from training.recipe.schema import Config


class _Classify(nn.Module):
    """Clips to scores and features: the module that DistributedDataParallel wraps."""

    def __init__(self, model: TSNModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.classify(clips)


class ActionStep(GradientStep):
    """Steps of a `TSNModel` on batches of `SegmentClips` with ``labels`` (N,), the classes.

    The loss is the mean over the videos of the whole batch, over all ranks and parts, of the
    cross-entropy of a video's scores. Batch norms in training mode compute statistics over all
    ranks, but only over one part (and one chunk of frames) at a time.
    """

    section = "loss.action"

    def __init__(
        self,
        cfg: "Config",
        model: TSNModel,
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
            module=_Classify(model),
            names=["action", "accuracy"],
            losses=1,
        )
        self.weight = cfg.loss.action.weight
        self.smoothing = cfg.loss.action.label_smoothing

    @staticmethod
    def check(cfg: "Config", device: torch.device, dtype: torch.dtype) -> None:
        """All options are checked when the recipe is read."""

    @staticmethod
    def describe(cfg: "Config") -> ItemFrames:
        segments, length = cfg.data.segments, cfg.data.tuple_frames
        frames = segments * length
        return ItemFrames(frames, frames, words_of_clips(segments, length))

    def examples(self, items: int) -> Iterator[dict[str, Any]]:
        for number in doubling(items):
            labels = torch.zeros(number, dtype=torch.int64)
            yield random_segments(self.cfg, number) | {"labels": labels}

    def distribute(self) -> None:
        """Share batch-norm statistics and gradients with the other ranks."""
        if world_size() > 1:
            sync_batch_norms(self.model, self.device)
            self._find_statistics()
        super().distribute()

    def _shares(self, batches: Sequence[dict[str, Any]]) -> list[list[float]]:
        mine = torch.tensor([len(batch["labels"]) for batch in batches], dtype=torch.float64)
        shares = mine / sum_over_ranks(mine).sum()
        return [[share] * len(self.names) for share in shares.tolist()]

    def _loss(
        self, batch: dict[str, Any], shares: Sequence[float]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        segments = batch["frames"].to(self.device, non_blocking=True)
        labels = batch["labels"].to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            scores, features = self.module(self.model.clips_of(segments))
        scores = scores.float() if scores.dtype.itemsize < 4 else scores
        loss = F.cross_entropy(scores, labels, label_smoothing=self.smoothing) * shares[0]
        right = (scores.detach().argmax(1) == labels).to(loss.dtype).mean() * shares[1]
        return self.weight * loss, [loss, right], features.detach().flatten(0, 1)
