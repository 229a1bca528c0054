"""One optimizer step: forward and backward over parts and ranks, then the update if finite."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from training.loop.averaging import WeightAverage
from training.loop.optimizer import group_rates
from training.loop.precision import make_scaler
from training.support.command import counted
from training.support.distributed import sum_over_ranks, world_size

if TYPE_CHECKING:
    from training.recipe.schema import Config


@dataclass(frozen=True)
class StepResult:
    """The result of a step, the same on every rank except for ``embeddings``.

    losses: "loss_NAME" -> value of each loss if there are several, and the accuracies of losses
    with a head, all by their names in log.jsonl. embeddings: real rows of h of the last part on
    this rank. requests: the ranks' requests, summed over ranks.
    """

    loss: float
    norm: float  # gradient norm before clipping
    losses: dict[str, float]
    embeddings: Tensor
    finite: bool
    requests: list[int]
    # Not finite only because the gradient overflowed at a loss scale above 1, which has been
    # halved: with fp16 the first steps may do so.
    overflow: bool = False


@dataclass(frozen=True)
class ItemFrames:
    """Frames of one item: how many are read, how many are kept for backward, and a description."""

    read: int
    kept: int
    words: str


def words_of_clips(number: int, length: int) -> str:
    """So many single frames, or clips of ``length`` frames, for `ItemFrames`."""
    if length == 1:
        return counted(number, "single frame")
    return f"{counted(number, 'clip')} of {length} frames"


def doubling(most: int) -> Iterator[int]:
    """1, 2, 4, ... below ``most``, then ``most``."""
    number = 1
    while number < most:
        yield number
        number *= 2
    yield most


class _SumOfParameters(nn.Module):
    """Adds up the trained parameters; backward reaches the last one first, as a model's does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.trained = [p for p in module.parameters() if p.requires_grad]

    def forward(self, total: Tensor) -> Tensor:
        for parameter in self.trained:
            total = total + parameter.sum()
        return total


class GradientStep:
    """Steps of one model on batches that are shared between ranks and may consist of parts.

    Subclasses determine the model, the losses and the batches: they set ``module``, which
    DistributedDataParallel wraps, and the names of the values that `_loss` returns: first
    ``losses`` losses (default: all), then accuracies. They define `_loss`, `check`, `describe` and
    `examples`, and `_shares` if the shares of the parts are not equal.

    Attributes:
        scaler: the scaler of the loss, which is enabled with fp16 only.
        average: the moving average of the weights, or None without ``optim.ema``.
    """

    section: str  # the recipe's section with the options that `check` tests

    def __init__(
        self,
        cfg: "Config",
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: torch.dtype,
        *,
        module: nn.Module,
        names: list[str],
        losses: int | None = None,
    ) -> None:
        self.cfg, self.model, self.optimizer = cfg, model, optimizer
        self.device, self.precision = device, precision
        self.scaler = make_scaler(device, precision)
        decay = cfg.optim.ema
        self.average = None if decay is None else WeightAverage(model, decay)
        self.module, self.names = module, names
        self.losses = len(names) if losses is None else losses
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._find_statistics()

    @staticmethod
    def check(cfg: "Config", device: torch.device, dtype: torch.dtype) -> None:
        """Call the losses on zeros; ValueError or RuntimeError for options that they reject."""
        raise NotImplementedError

    @staticmethod
    def describe(cfg: "Config") -> ItemFrames:
        """The frames of one item of a batch."""
        raise NotImplementedError

    def examples(self, items: int) -> Iterator[dict[str, Any]]:
        """Random batches in the loader's format, from few frames to a whole batch of ``items``."""
        raise NotImplementedError

    def distribute(self) -> None:
        """Start from rank 0's weights and share gradients with the other ranks."""
        if world_size() > 1:
            self._share_gradients()

    def _share_gradients(self) -> None:
        with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            self.module = DistributedDataParallel(
                self.module,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # statistics are the same on all ranks
            )
        self._order_gradients()

    def _order_gradients(self) -> None:
        """Fix the order in which gradients are sent, and with it the order of each sum over ranks.

        DistributedDataParallel groups gradients anew after its first backward, in the order in
        which that one computed them. Without this, the first step after a resume would sum in
        another order than the same step of an uninterrupted run.
        """
        shared, module = self.module, self.module.module
        shared.module = _SumOfParameters(module)
        shared(torch.zeros((), device=self.device)).backward()
        shared.module = module
        module.zero_grad(set_to_none=True)

    def __call__(
        self, batches: Sequence[dict[str, Any]], rate: float, requests: Callable[[], list[int]]
    ) -> StepResult:
        """Compute the gradient of all parts and take the optimizer's step if all is finite.

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
            rates = group_rates(self.cfg.optim, rate).values()
            for group, own in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = own
            self.optimizer.step()  # not the scaler's: all ranks have taken the decision above
            self._stepped()
            if self.average is not None:
                self.average.update()
        else:
            for buffer, before in zip(self.statistics, statistics, strict=True):
                buffer.copy_(before)
        scale_fell = self._adapt_scale()
        named = dict(zip(names, losses, strict=True))
        accuracies = {name: named.pop(name) for name in names[self.losses :]}
        several = {f"loss_{name}": value for name, value in named.items() if len(named) > 1}
        return StepResult(
            loss,
            norm_value,
            several | accuracies,
            embeddings,
            finite,
            [int(value) for value in requested],
            overflow=scale_fell and math.isfinite(loss),
        )

    def log_values(self, rate: float) -> dict[str, float]:
        """The learning rates for the log, and with fp16 the scale of the loss."""
        scale = {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}
        return group_rates(self.cfg.optim, rate) | scale

    def _adapt_scale(self) -> bool:
        """Adapt the scale to this step's gradient; True if it fell from a value above 1.

        The gradient is the same on all ranks, and so is the scale.
        """
        if not self.scaler.is_enabled():
            return False
        before = self.scaler.get_scale()
        self.scaler.update()
        return before > 1 and self.scaler.get_scale() < before

    def _stepped(self) -> None:
        """Hook after a step of the optimizer; does nothing here."""

    def gradient(self, batches: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradient of the mean over all parts and ranks, and clip it.

        Returns its norm before clipping, this rank's share of the total and of each loss, and the
        real rows of h.
        """
        self.optimizer.zero_grad(set_to_none=True)
        everything: Tensor | None = None
        for part, (batch, shares) in enumerate(zip(batches, self._shares(batches), strict=True)):
            # Gradients are summed over ranks once, with the last part.
            shared = part == len(batches) - 1 or world_size() == 1
            with nullcontext() if shared else self.module.no_sync():
                loss, losses, embeddings = self._loss(batch, shares)
                # DistributedDataParallel averages over ranks, but the shares add up to a sum.
                self.scaler.scale(loss * world_size()).backward()
            values = torch.stack([loss, *losses]).detach()
            everything = values if everything is None else everything + values
        self.scaler.unscale_(self.optimizer)
        clip = self.cfg.optim.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if clip is None else clip)
        return norm, everything, embeddings

    def _shares(self, batches: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Factor of each loss of each part in the mean over the whole batch.

        Here they are equal: all parts have the same number of items on every rank.
        """
        return [[1 / (len(batches) * world_size())] * len(self.names)] * len(batches)

    def _loss(
        self, batch: dict[str, Any], shares: Sequence[float]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The weighted sum of a part's losses, the values of ``names``, and real rows of h."""
        raise NotImplementedError

    def _find_statistics(self) -> None:
        """Collect the buffers of trained batch norms, which a skipped step must restore."""
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.training]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
