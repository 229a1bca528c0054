"""The definition of tcc_loss in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.common.validate import positive_or_nan
from fastseq.ops.tcc.options import Side, TCCOptions, num_cycles, side


def tcc_reference(
    x: Tensor,
    y: Tensor | None,
    temperature: Tensor | None,
    tx: Tensor | None,
    ty: Tensor | None,
    valid_x: Tensor | None,
    valid_y: Tensor | None,
    duration_x: Tensor | None,
    duration_y: Tensor | None,
    opts: TCCOptions,
) -> Tensor:
    """Dense tcc_loss of inputs that op.py has checked."""
    a = side(x, tx, valid_x, duration_x, opts)
    tau = positive_or_nan(temperature, opts.temperature, a.z.dtype)
    if y is None:
        sums = a.z.new_zeros(len(x)) + 0 * (a.z.sum() + tau)  # keeps a graph if there is no pair
        for shift in range(1, len(x)):
            sums = sums + _cycles(a, a.rolled([shift]), tau, opts)
        count = num_cycles(a.real, None)
    else:
        b = side(y, ty, valid_y, duration_y, opts)
        sums = _cycles(a, b, tau, opts) + _cycles(b, a, tau, opts)
        count = num_cycles(a.real, b.real)
    if opts.reduction == "none":
        return sums
    return sums.sum() / count.clamp(min=1) if opts.reduction == "mean" else sums.sum()


def _cycles(u: Side, v: Side, tau: Tensor | float, opts: TCCOptions) -> Tensor:
    """(N,) losses summed over the cycles u -> v -> u that start at the real frames of u."""
    real = u.real & v.real.any(1, keepdim=True)  # [N, Tu]
    alpha = torch.softmax(_similarity(u.z, v.z, v.real, tau, opts), -1)  # [N, Tu, Tv]
    nearest = alpha @ v.z  # [N, Tu, D]
    logits = _similarity(nearest, u.z, real, tau, opts)  # [N, Tu, Tu]
    rows = (_classification if opts.loss_type == "classification" else _regression)(
        logits, real, u, opts
    )
    return torch.where(real, rows, 0).sum(1)


def _similarity(
    a: Tensor, b: Tensor, real_b: Tensor, tau: Tensor | float, opts: TCCOptions
) -> Tensor:
    """Divided by the number of channels and the temperature; -inf for padded frames of b."""
    s = a @ b.mT
    if opts.similarity == "l2":
        s = 2 * s - a.square().sum(-1)[..., None] - b.square().sum(-1)[:, None]
    s = s / a.shape[-1] / tau
    some = real_b.any(1)[:, None, None]  # without real frames any finite number will do
    return s.masked_fill(some & ~real_b[:, None], -torch.inf)


def _classification(logits: Tensor, real: Tensor, u: Side, opts: TCCOptions) -> Tensor:
    log_beta = F.log_softmax(logits, -1).masked_fill(~real[:, None], 0)
    smooth = log_beta.sum(-1) / real.sum(1, keepdim=True).clamp(min=1)
    own = log_beta.diagonal(dim1=1, dim2=2)
    return -(1 - opts.label_smoothing) * own - opts.label_smoothing * smooth


def _regression(logits: Tensor, real: Tensor, u: Side, opts: TCCOptions) -> Tensor:
    beta = torch.softmax(logits, -1)
    gap = (u.t[:, None] - u.t[:, :, None]) * u.scale[:, None, None]
    error = (beta * gap).sum(-1)  # predicted minus true time
    if opts.loss_type == "regression_mse":
        return error.square()
    if opts.loss_type == "regression_huber":
        zero = torch.zeros_like(error)
        return F.huber_loss(error, zero, reduction="none", delta=opts.huber_delta)
    variance = (beta * (gap - error[..., None]).square()).sum(-1)
    variance = torch.maximum(variance, u.floor[:, None])
    return error.square() / variance + opts.variance_lambda * variance.log()
