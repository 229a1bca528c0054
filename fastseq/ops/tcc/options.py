"""The options of one call, and the parts of the definition that the backends share."""

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
    positive_or_nan,
)

LOSS_TYPES = ("regression_mse_var", "regression_mse", "regression_huber", "classification")
SIMILARITIES = ("l2", "cosine")
# Differentiable inputs: x, y and the temperature.
Gradients = tuple[Tensor, Tensor | None, Tensor | None]

# The least variance of a predicted time, in squared durations. A softmax that has collapsed to one
# frame has variance 0, whose logarithm and inverse are not finite. A standard deviation of 1e-6 of
# the video is far below any frame and still 16 times float32's resolution.
VARIANCE_FLOOR = 1e-12


class TCCOptions(NamedTuple):
    """The checked options. ``temperature`` is 1 where the call has it as a tensor."""

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
    scale: Tensor  # [N] factor from the caller's units of time to those of the loss
    floor: Tensor  # [N] least variance, in squared units of the loss

    def rolled(self, shifts: Sequence[int]) -> "Side":
        """For each shift in turn, all sequences in cyclic order, from number ``shift`` on."""
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
    # Padding may contain NaN.
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


def centred_sides(
    x: Tensor,
    y: Tensor | None,
    tx: Tensor | None,
    ty: Tensor | None,
    valid_x: Tensor | None,
    valid_y: Tensor | None,
    duration_x: Tensor | None,
    duration_y: Tensor | None,
    opts: TCCOptions,
) -> tuple[Side, Side | None]:
    """The sides of x and y; for distances, minus the mean embedding of the pair or the batch."""
    a = side(x, tx, valid_x, duration_x, opts)
    b = None if y is None else side(y, ty, valid_y, duration_y, opts)
    if opts.similarity != "l2":
        return a, b
    # A common offset does not change distances, but it does change the products behind them.
    every = (a,) if b is None else (a, b)
    total = torch.stack([s.z.sum(1) for s in every]).sum(0)  # [N, D]
    count = torch.stack([s.real.sum(1) for s in every]).sum(0)  # [N]
    if b is None:
        total, count = total.sum(0, keepdim=True), count.sum(0, keepdim=True)
    centre = total / count.clamp(min=1)[:, None]
    return _without(a, centre), None if b is None else _without(b, centre)


def _without(s: Side, centre: Tensor) -> Side:
    return s._replace(z=torch.where(s.real[..., None], s.z - centre[:, None], 0))


def temperature_gradient(
    x: Tensor,
    y: Tensor | None,
    temperature: Tensor,
    valid_x: Tensor | None,
    valid_y: Tensor | None,
    dx: Tensor,
    dy: Tensor | None,
    opts: TCCOptions,
) -> Tensor:
    """The gradient of the temperature, from those of x and y in the loss's dtype.

    Both similarities are of degree 2, so the loss depends only on x / sqrt(temperature) and
    y / sqrt(temperature). Gradients of distances sum to 0 except for rounding, which a common
    offset would magnify: therefore the sides are centred.
    """
    a, b = centred_sides(x, y, None, None, valid_x, valid_y, None, None, opts)
    total = (a.z * dx).sum()
    if b is not None and dy is not None:
        total = total + (b.z * dy).sum()
    tau = positive_or_nan(temperature, 1.0, total.dtype)
    return (total / (-2 * tau)).to(temperature.dtype)


def num_cycles(real_x: Tensor, real_y: Tensor | None) -> Tensor:
    """Number of frames that start a cycle: all of a pair's frames unless one side is empty."""
    x = real_x.sum(1)
    if real_y is None:
        return x.sum() * ((x > 0).sum() - 1).clamp(min=0)
    y = real_y.sum(1)
    return torch.where((x > 0) & (y > 0), x + y, 0).sum()
