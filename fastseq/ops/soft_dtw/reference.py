"""The definition of soft_dtw in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.soft_dtw.options import SoftDTWOptions, band_limits


def soft_dtw_reference(
    x: Tensor | None,
    y: Tensor | None,
    cost: Tensor | None,
    bias: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    gammas: Tensor | None,
    bands: Tensor | None,
    opts: SoftDTWOptions,
) -> Tensor:
    """Values (N,) of inputs that op.py has checked: x (N, T, D) and y (N, S, D), or cost (N, T, S).

    bias (N, S) is added to the squared distances of each column.

    gammas and bands (N,) replace those of the options.

    Computed in float64 for all inputs: with R in float32 the gradient would lose its digits.
    """
    if cost is None:
        cost = dense_cost(x, y, lengths_x, lengths_y, bias)
        dtype = x.dtype
    else:
        dtype = cost.dtype
        # Padding may contain NaN, and a gradient of 0 times NaN is NaN.
        mask_x, mask_y = _masks(*cost.shape, lengths_x, lengths_y, cost.device)
        cost = torch.where(mask_x[:, :, None] & mask_y[:, None], cost, 0).double()
        # A path through -inf has no weight.
        cost = torch.where(cost == -torch.inf, torch.nan, cost)
    return _values(cost, lengths_x, lengths_y, gammas, bands, opts).to(dtype)


def dense_cost(
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """(N, T, S) in float64, padded frames set to 0. Needs memory for N T S D numbers."""
    mask_x, mask_y = _masks(*x.shape[:2], y.shape[1], lengths_x, lengths_y, x.device)
    x = torch.where(mask_x[..., None], x, 0).double()
    y = torch.where(mask_y[..., None], y, 0).double()
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    if bias is None:
        return cost
    return cost + torch.where(mask_y, bias, 0).double()[:, None]


def _masks(num, n, m, lengths_x, lengths_y, device) -> tuple[Tensor, Tensor]:
    return valid_mask(lengths_x, num, n, device), valid_mask(lengths_y, num, m, device)


def _values(cost: Tensor, lengths_x, lengths_y, gammas, bands, opts: SoftDTWOptions) -> Tensor:
    """R at the last real cell, or the softmin of R over the last real row where the end is free.

    R_ij = cost_ij + softmin(R_i-1,j-1, R_i-1,j + w, R_i,j-1 + w), w the warp penalty, over the
    cells that exist, lie in the band and have a path to them. The predecessor of the first cell is
    a cell of R = 0; with a free begin so is that of every cell of row 0. A cell of cost +inf has no
    path. If no end has a path the value is +inf, a constant.
    softmin: see `_softmin`.
    """
    num, n, m = cost.shape
    if cost.numel() == 0:
        return cost.flatten(1).sum(1)
    device, penalty = cost.device, opts.warp_penalty
    gamma = opts.gamma if gammas is None else gammas[:, None]
    end_x = cost.new_full((num,), n, dtype=torch.int64) if lengths_x is None else lengths_x
    end_y = cost.new_full((num,), m, dtype=torch.int64) if lengths_y is None else lengths_y
    end_x, end_y = end_x.clamp(0, n), end_y.clamp(0, m)
    limits = band_limits(end_x, end_y, opts.bandwidth if bands is None else bands)
    low, high = (limit[:, None] for limit in limits)

    # One anti-diagonal k = i + j at a time, indexed by i; diagonals[k] is [B, N].
    i = torch.arange(n, device=device)
    allowed = cost != torch.inf
    cost = torch.where(allowed, cost, 0)

    def present(k: int) -> Tensor:
        j = k - i
        inside = (j >= 0) & (j < m) & (low <= j - i) & (j - i <= high)  # [B, N]
        return inside & allowed[:, i, j.clamp(0, m - 1)]

    def down(t: Tensor) -> Tensor:  # the entries of row i - 1, at row i
        return torch.cat([torch.zeros_like(t[:, :1]), t[:, :-1]], 1)

    nowhere = torch.zeros(num, n, dtype=torch.bool, device=device)
    nothing = torch.zeros(num, n, dtype=cost.dtype, device=device)
    diagonals, reached, before, last = [], [], (nothing, nowhere), (nothing, nowhere)
    for k in range(n + m - 1):
        steps = [down(before[0]), down(last[0]) + penalty, last[0] + penalty]
        first = (i == 0) & (opts.begin_free or k == 0)  # comes from the R = 0 that down() put there
        there = [down(before[1]) | first, down(last[1]), last[1]]
        soft = _softmin(torch.stack(steps), torch.stack(there), gamma, 0, opts.softmin)[0]
        here = cost[:, i, (k - i).clamp(0, m - 1)] + soft
        inside = present(k) & (there[0] | there[1] | there[2])
        # A cell that is never read still has to be finite, for the gradient.
        diagonals.append(torch.where(inside, here, 0))
        reached.append(inside)
        before, last = last, (diagonals[-1], inside)
    row = (end_x - 1).clamp(min=0)[:, None]
    j = torch.arange(m, device=device) if opts.end_free else (end_y - 1).clamp(min=0)[:, None]
    at = torch.arange(num, device=device)[:, None], row + j, row
    values, ends = torch.stack(diagonals, 1)[at], torch.stack(reached, 1)[at]
    if opts.end_free:
        ends = ends & (j < end_y[:, None])
        values, ends = _softmin(values, ends, gamma, 1, "logsumexp"), ends.any(1, keepdim=True)
    values = torch.where(ends, values, torch.inf)[:, 0]
    return torch.where((end_x == 0) | (end_y == 0), 0, values)


def _softmin(r: Tensor, there: Tensor, gamma: float | Tensor, dim: int, kind: str) -> Tensor:
    """Soft minimum along ``dim``, which is kept, over the entries ``there``; 0 where none is.

    logsumexp: -gamma log sum_k exp(-r_k / gamma)
    prob:      sum_k p_k r_k, p = softmax(-r / gamma)
    sparse:    min over q >= 0 with sum_k q_k = 1 of sum_k q_k r_k - gamma / 2 sum_k q_k (1 - q_k)
    """
    some = there.any(dim, keepdim=True)
    # Where no entry is there any finite number will do: it never leaves this function.
    scaled = torch.where(some, torch.where(there, -r / gamma, -torch.inf), 0)
    if kind == "logsumexp":
        return torch.where(some, -gamma * torch.logsumexp(scaled, dim, keepdim=True), 0)
    q = torch.softmax(scaled, dim) if kind == "prob" else _onto_simplex(scaled, dim)
    # Entries that are not there may be anything finite, and have q = 0.
    value = (q * torch.where(there, r, 0)).sum(dim, keepdim=True)
    if kind == "sparse":
        value = value - gamma / 2 * (q * (1 - q)).sum(dim, keepdim=True)
    return torch.where(some, value, 0)


def _onto_simplex(a: Tensor, dim: int) -> Tensor:
    """The point of the simplex nearest to a, whose entries may be -inf: max(a - t, 0)."""
    a = a - a.amax(dim, keepdim=True)
    # Entries of at most -1 are no part of the sum, and -2 is one of them.
    ordered = torch.where(a == -torch.inf, -2, a).sort(dim, descending=True).values
    count = torch.arange(1, a.shape[dim] + 1, device=a.device, dtype=a.dtype)
    count = count.view([-1 if d == dim % a.dim() else 1 for d in range(a.dim())])
    used = 1 + count * ordered > ordered.cumsum(dim)
    used_count = used.sum(dim, keepdim=True)
    t = (torch.where(used, ordered, 0).sum(dim, keepdim=True) - 1) / used_count
    return (a - t).clamp(min=0)
