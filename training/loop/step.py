"""One optimizer step: forward and backward over parts and ranks, and the update if it is finite."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from training.loop.objectives import Clips, Objective
from training.models import VideoEncoder
from training.models.sync_batch_norm import sync_batch_norms
from training.support.distributed import sum_over_ranks, world_size

if TYPE_CHECKING:
    from training.recipe.schema import Config


@dataclass(frozen=True)
class StepResult:
    """What a step gave: the same on every rank, but for ``embeddings``.

    embeddings: real rows of h of the last part on this rank; losses: of which there are several;
    requests: sums over ranks of what each asked for.
    """

    loss: float
    norm: float  # of the gradient, before clipping
    losses: dict[str, float]
    embeddings: Tensor
    finite: bool
    requests: list[int]


def make_optimizer(cfg: "Config", parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """``optim.name`` on these parameters, weight decay coupled."""
    optim = cfg.optim
    if optim.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
    return torch.optim.Adam(
        parameters, lr=optim.lr, betas=tuple(optim.betas), weight_decay=optim.weight_decay
    )


class _Forward(nn.Module):
    """Frames to h, and z where a loss needs it, in one call: all that DistributedDataParallel sees.

    It expects every trained parameter to get a gradient, so an unused head is left out of it.
    """

    def __init__(self, model: VideoEncoder, needs_projection: bool) -> None:
        super().__init__()
        self.model, self.needs_projection = model, needs_projection

    def forward(self, frames: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h = self.model.encode(frames, rows)
        return h, self.model.project(h, rows) if self.needs_projection else None


class GradientStep:
    """Steps of one model on batches that ranks share and that may come in parts.

    The loss is the mean over the whole batch: each loss has its denominator summed over all ranks
    and parts before the first backward. So the gradient does not depend on how the batch is
    shared out, except through batch norm: in training mode it normalises over all ranks, but one
    part (and, in the backbone, one chunk of frames) at a time.
    """

    def __init__(
        self,
        cfg: "Config",
        model: VideoEncoder,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self.cfg, self.model, self.optimizer = cfg, model, optimizer
        self.device, self.bf16 = device, bf16
        self.objective = Objective(cfg.loss)
        self.names = [name for name, *_ in self.objective.terms]
        self.module: nn.Module = _Forward(model, self.objective.needs_projection)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._find_statistics()

    def distribute(self) -> None:
        """Share gradients and batch-norm statistics with the other ranks, from rank 0's weights."""
        if world_size() == 1:
            return
        sync_batch_norms(self.model, self.device)
        self._find_statistics()
        if not self.objective.needs_projection:
            self.model.projection.requires_grad_(False)
        self._share_gradients()

    def _share_gradients(self) -> None:
        with warnings.catch_warnings():  # torch 2.13 has another name for broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            self.module = DistributedDataParallel(
                self.module,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # the statistics are the same everywhere
            )

    def __call__(
        self, batches: Sequence[dict[str, Any]], rate: float, requests: Callable[[], list[int]]
    ) -> StepResult:
        """The gradient of all parts; then the optimizer's step, unless something is not finite.

        ``requests`` is called at the end, just before the ranks' values are summed.
        """
        statistics = [buffer.clone() for buffer in self.statistics]
        norm, values, embeddings = self.gradient(batches)
        norm_value, *local = torch.stack([norm, *values]).tolist()
        counted = [*local, not math.isfinite(norm_value), *requests()]
        loss, *counted = sum_over_ranks(torch.tensor(counted, dtype=torch.float64)).tolist()
        names = self.names
        losses, (not_finite, *requested) = counted[: len(names)], counted[len(names) :]
        finite = math.isfinite(loss) and not not_finite
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self._stepped()
        else:
            for buffer, before in zip(self.statistics, statistics, strict=True):
                buffer.copy_(before)
        named = {f"loss_{name}": value for name, value in zip(names, losses, strict=True)}
        return StepResult(
            loss,
            norm_value,
            named if len(names) > 1 else {},
            embeddings,
            finite,
            [int(value) for value in requested],
        )

    def _stepped(self) -> None:
        """What follows a step of the optimizer; nothing here."""

    def gradient(self, batches: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """Into ``grad``, clipped: of the mean over all parts and ranks.

        Its norm before clipping, this rank's share of the loss and of each loss, real rows of h.
        """
        self.optimizer.zero_grad(set_to_none=True)
        everything: Tensor | None = None
        for part, (batch, shares) in enumerate(zip(batches, self._shares(batches), strict=True)):
            # Gradients are summed over ranks once, with the last part.
            shared = part == len(batches) - 1 or world_size() == 1
            with nullcontext() if shared else self.module.no_sync():
                loss, losses, embeddings = self._loss(batch, shares)
                # DistributedDataParallel takes the mean over ranks, shares add up to a sum.
                (loss * world_size()).backward()
            values = torch.stack([loss, *losses]).detach()
            everything = values if everything is None else everything + values
        clip = self.cfg.optim.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if clip is None else clip)
        return norm, everything, embeddings

    def _shares(self, batches: Sequence[dict[str, Any]]) -> list[list[float]]:
        """What each loss of each part counts for in the mean over the whole batch."""
        mine = torch.tensor(
            [self.objective.counts(batch["valid"], batch["actions"]) for batch in batches],
            dtype=torch.float64,
        )
        return self.objective.shares(mine, sum_over_ranks(mine)).tolist()

    def _loss(
        self, batch: dict[str, Any], shares: Sequence[float]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        n, clips, t = batch["valid"].shape
        # Most batches have no padding; known on the host, the mask can be left out.
        padded = not bool(batch["valid"].all())
        frames, steps, valid, num_frames = (
            batch[key].to(self.device, non_blocking=True)
            for key in ("frames", "steps", "valid", "num_frames")
        )
        valid = valid if padded else None
        rows = None if valid is None else valid.flatten(0, 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            h, z = self.module(frames.flatten(0, 1), rows)
        z = None if z is None else z.view(n, clips, t, -1)
        loss, losses = self.objective(
            Clips(h.view(n, clips, t, -1), z, steps, valid, num_frames, batch["actions"]), shares
        )
        embeddings = h.flatten(0, 1) if rows is None else h[rows]
        return loss, list(losses.values()), embeddings.detach()

    def _find_statistics(self) -> None:
        """Buffers of trained batch norms: a step that is skipped must leave them as they were."""
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.training]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
