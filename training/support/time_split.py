"""The frames of a clip that one rank has when ``data.split_time`` ranks share every clip."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class TimeSplit:
    """Of every clip of T frames, this rank has frames ``part`` T / ``parts`` to ``(part + 1)`` T /
    ``parts``; the ranks of ``group``, in their order, have the other parts.

    T is the padded length of a clip, a multiple of ``parts``. Its real frames come first, so that
    a rank may have only padding.
    """

    parts: int
    part: int
    group: dist.ProcessGroup


def join_time(x: Tensor, split: TimeSplit) -> Tensor:
    """This rank's frames (N, T / R, ...) to those of the whole clips (N, T, ...), on every rank.

    Every rank of the group must call it, with the same shape and dtype. The differentiated quantity
    is the sum of what the ranks compute from the result: backward sums the ranks' gradients, in
    fp32 at least, and returns those of this rank's frames. It keeps no tensor for backward.
    """
    return _Join.apply(x, split)


def sum_time(x: Tensor, split: TimeSplit) -> Tensor:
    """The sum of the ranks' x (any shape, the same on each), on every rank.

    Backward sums the ranks' gradients, as in `join_time`.
    """
    return _Sum.apply(x, split)


def join_valid(valid: Tensor | None, frames: Tensor, split: TimeSplit) -> Tensor | None:
    """The ranks' masks (N, T / R) of ``frames`` (N, T / R, ...) as bool (N, T); None: all are real.

    Whether a rank has a mask may differ between ranks; whether the result is None does not.
    """
    if valid is None:
        valid = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    whole = join_time(valid.to(torch.uint8), split).bool()  # some collectives do not support bool
    return None if bool(whole.all()) else whole


# torch 2.13 renames both. With lists of tensors NCCL would copy the result once more.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, split: TimeSplit) -> Tensor:
        ctx.split = split
        parts = x.new_empty(split.parts, *x.shape)
        _all_gather(parts.flatten(0, 1), x.contiguous(), group=split.group)
        return parts.movedim(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        parts = wide.unflatten(1, (ctx.split.parts, -1)).movedim(1, 0)
        own = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        _reduce_scatter(own, parts.flatten(0, 1).contiguous(), group=ctx.split.group)
        return own.to(grad.dtype), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, split: TimeSplit) -> Tensor:
        ctx.split = split
        return _summed(x, split).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad, ctx.split).to(grad.dtype), None


def _summed(x: Tensor, split: TimeSplit) -> Tensor:
    """Sum over the group, in fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=split.group)
    return total
