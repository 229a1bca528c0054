"""The options of one call, and what the backends share of the definition."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.lengths import shift_times, valid_mask
from fastseq.ops.common.validate import (
    REDUCTIONS,
    check_bool,
    check_choice,
    check_nonnegative,
    check_positive,
)

LOSS_TYPES = ("regression_mse_var", "regression_mse", "regression_huber", "classification")
SIMILARITIES = ("l2", "cosine")

# The least variance of a predicted time, in squared durations. A softmax that has collapsed to one
# frame has variance 0, whose logarithm and inverse are not finite. A standard deviation of a
# millionth of the video is far below any frame and still 16 times what float32 resolves.
VARIANCE_FLOOR = 1e-12


class TCCOptions(NamedTuple):
    loss_type: str
    similarity: str
    temperature: float
    variance_lambda: float
    label_smoothing: float
    huber_delta: float
    normalize_indices: bool
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        loss_type: str,
        similarity: str,
        temperature: float,
        variance_lambda: float,
        label_smoothing: float,
        huber_delta: float,
        normalize_indices: bool,
        reduction: str,
    ) -> "TCCOptions":
        check_choice(op, "loss_type", loss_type, LOSS_TYPES)
        check_choice(op, "similarity", similarity, SIMILARITIES)
        check_bool(op, "normalize_indices", normalize_indices)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        return cls(
            loss_type,
            similarity,
            check_positive(op, "temperature", temperature),
            check_nonnegative(op, "variance_lambda", variance_lambda),
            check_nonnegative(op, "label_smoothing", label_smoothing, below=1),
            check_positive(op, "huber_delta", huber_delta),
            normalize_indices,
            reduction,
        )


class Side(NamedTuple):
    """Sequences of one side of the cycles: N sequences of T frames."""

    z: Tensor  # [N, T, D], padded frames 0
    real: Tensor  # [N, T] bool
    t: Tensor  # [N, T] times in the caller's units, padded frames 0
    scale: Tensor  # [N] from the caller's units of time to those of the loss
    floor: Tensor  # [N] least variance, in squared units of the loss

    def rolled(self, shifts: Sequence[int]) -> "Side":
        """For each shift in turn, all sequences, beginning with number ``shift``, cyclically."""
        return Side(*(torch.cat([part.roll(-shift, 0) for shift in shifts]) for part in self))


def side(
    z: Tensor,
    t: Tensor | None,
    valid: Tensor | None,
    duration: Tensor | None,
    opts: TCCOptions,
) -> Side:
    num, frames = z.shape[:2]
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    real = valid_mask(valid, num, frames, z.device)
    # Padding may hold NaN.
    z = z.to(dtype) if valid is None else torch.where(real[..., None], z, 0).to(dtype)
    if t is None:
        t = torch.arange(frames, device=z.device, dtype=dtype).expand(num, frames)
    else:
        t, _ = shift_times(t, t[:, :0], real, real[:, :0], dtype)
    if duration is None:
        duration = real.sum(1).clamp(min=1)
    duration = duration.to(dtype)
    scale = 1 / duration if opts.normalize_indices else torch.ones_like(duration)
    return Side(z, real, t, scale, VARIANCE_FLOOR * (duration * scale).square())


def num_cycles(real_x: Tensor, real_y: Tensor | None) -> Tensor:
    """How many frames start a cycle: those of either sequence of a pair that has both."""
    x = real_x.sum(1)
    if real_y is None:
        return x.sum() * ((x > 0).sum() - 1).clamp(min=0)
    y = real_y.sum(1)
    return torch.where((x > 0) & (y > 0), x + y, 0).sum()
