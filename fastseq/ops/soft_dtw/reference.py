"""The definition of soft_dtw in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.soft_dtw.options import SoftDTWOptions, band_limits


def soft_dtw_reference(
    x: Tensor | None,
    y: Tensor | None,
    cost: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    opts: SoftDTWOptions,
) -> Tensor:
    """Values (N,) of inputs that op.py has checked: x (N, T, D) and y (N, S, D), or cost (N, T, S).

    In float64 whatever the inputs are: R in float32 would cost the gradient its digits.
    """
    if cost is None:
        cost = dense_cost(x, y, lengths_x, lengths_y)
        dtype = x.dtype
    else:
        dtype = cost.dtype
        # Padding may hold NaN, and a gradient of 0 times NaN is NaN.
        mask_x, mask_y = _masks(*cost.shape, lengths_x, lengths_y, cost.device)
        cost = torch.where(mask_x[:, :, None] & mask_y[:, None], cost, 0).double()
        # Of a path through -inf no weight can be formed.
        cost = torch.where(cost == -torch.inf, torch.nan, cost)
    return _last_cells(cost, lengths_x, lengths_y, opts).to(dtype)


def dense_cost(x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None) -> Tensor:
    """(N, T, S) in float64, padded frames taken as 0. Needs memory for N T S D numbers."""
    mask_x, mask_y = _masks(*x.shape[:2], y.shape[1], lengths_x, lengths_y, x.device)
    x = torch.where(mask_x[..., None], x, 0).double()
    y = torch.where(mask_y[..., None], y, 0).double()
    return (x[:, :, None] - y[:, None]).square().sum(-1)


def _masks(num, n, m, lengths_x, lengths_y, device) -> tuple[Tensor, Tensor]:
    return valid_mask(lengths_x, num, n, device), valid_mask(lengths_y, num, m, device)


def _last_cells(cost: Tensor, lengths_x, lengths_y, opts: SoftDTWOptions) -> Tensor:
    """R at the last real cell, where R_ij = cost_ij + softmin(R_i-1,j-1, R_i-1,j, R_i,j-1).

    softmin(a, b, c) = -gamma log(exp(-a / gamma) + exp(-b / gamma) + exp(-c / gamma)) over the
    cells that exist, lie in the band and have a path to them, 0 at the first cell. A cell of cost
    +inf has none. Where the last cell has none R is +inf, a constant.
    """
    num, n, m = cost.shape
    if cost.numel() == 0:
        return cost.flatten(1).sum(1)
    device = cost.device
    end_x = cost.new_full((num,), n, dtype=torch.int64) if lengths_x is None else lengths_x
    end_y = cost.new_full((num,), m, dtype=torch.int64) if lengths_y is None else lengths_y
    end_x, end_y = end_x.clamp(0, n), end_y.clamp(0, m)
    low, high = (limit[:, None] for limit in band_limits(end_x, end_y, opts.bandwidth))

    # One anti-diagonal k = i + j at a time, indexed by i; diagonals[k] is [B, N].
    i = torch.arange(n, device=device)
    allowed = cost != torch.inf
    cost = torch.where(allowed, cost, 0)

    def present(k: int) -> Tensor:
        j = k - i
        inside = (j >= 0) & (j < m) & (low <= j - i) & (j - i <= high)  # [B, N]
        return inside & allowed[:, i, j.clamp(0, m - 1)]

    def down(t: Tensor) -> Tensor:  # what row i - 1 holds, at row i
        return torch.cat([torch.zeros_like(t[:, :1]), t[:, :-1]], 1)

    nowhere = torch.zeros(num, n, dtype=torch.bool, device=device)
    nothing = torch.zeros(num, n, dtype=cost.dtype, device=device)
    diagonals, reached, before, last = [], [], (nothing, nowhere), (nothing, nowhere)
    for k in range(n + m - 1):
        steps = [down(before[0]), down(last[0]), last[0]]
        there = [down(before[1]), down(last[1]), last[1]]
        here = cost[:, i, (k - i).clamp(0, m - 1)] + _softmin(steps, there, opts.gamma)
        inside = present(k)
        if k > 0:
            inside = inside & (there[0] | there[1] | there[2])
        # A cell that nobody may read still has to be finite, for the sake of the gradient.
        diagonals.append(torch.where(inside, here, 0))
        reached.append(inside)
        before, last = last, (diagonals[-1], inside)
    empty = (end_x == 0) | (end_y == 0)
    row = (end_x - 1).clamp(min=0)
    k = (row + end_y - 1).clamp(min=0)
    at = torch.arange(num, device=device), k, row
    values = torch.where(torch.stack(reached, 1)[at], torch.stack(diagonals, 1)[at], torch.inf)
    return torch.where(empty, 0, values)


def _softmin(steps: list[Tensor], there: list[Tensor], gamma: float) -> Tensor:
    """Soft minimum of the entries that are there; 0 where none is."""
    some = there[0] | there[1] | there[2]
    scaled = [torch.where(t, -r / gamma, -torch.inf) for r, t in zip(steps, there, strict=True)]
    # Any finite number will do where none is there: it never leaves this function.
    scaled[0] = torch.where(some, scaled[0], 0)
    return torch.where(some, -gamma * torch.logsumexp(torch.stack(scaled), 0), 0)
