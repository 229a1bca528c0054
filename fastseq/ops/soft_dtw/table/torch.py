"""The table on any device: one anti-diagonal at a time, in both directions."""

import torch
from torch import Tensor

from fastseq.ops.soft_dtw.reference import _onto_simplex
from fastseq.ops.soft_dtw.table.reference import before_in_x, skew, unskew


def forward(cost, opts, needs):
    """R (N, T, S) of costs in float64; nothing is kept."""
    return unskew(_diagonals(cost, opts), cost.shape[2]).contiguous(), None


def backward(grad, cost, kept, opts, needs):
    """E_ij = grad_ij + sum over the successors of a cell of their E times its weight in them."""
    table = _diagonals(cost, opts)
    reached = table != torch.inf
    flow = torch.where(reached, skew(grad, 0), 0)
    for k in range(len(table) - 1, 0, -1):
        before = table[k - 2] if k > 1 else torch.full_like(table[0], torch.inf)
        weights = _softmin(_steps(before, table[k - 1]), opts)[1]
        diagonal, up, left = torch.where(reached[k], weights, 0) * flow[k]
        if k > 1:
            flow[k - 2, :, :-1] += diagonal[:, 1:]
        flow[k - 1, :, :-1] += up[:, 1:]
        flow[k - 1] += left
    return (unskew(flow, cost.shape[2]).contiguous(),)


def _diagonals(cost: Tensor, opts) -> Tensor:
    """R as (T + S - 1, N, T); +inf outside the matrix and where no path leads."""
    table = skew(cost, torch.inf)
    table[0, :, 1:] = torch.inf
    nothing = torch.full_like(table[0], torch.inf)
    for k in range(1, len(table)):
        steps = _steps(table[k - 2] if k > 1 else nothing, table[k - 1])
        reached = (steps != torch.inf).any(0) & (table[k] != torch.inf)
        table[k] = torch.where(reached, table[k] + _softmin(steps, opts)[0], torch.inf)
    return table


def _steps(before: Tensor, last: Tensor) -> Tensor:
    """(3, N, T): R of the diagonal, upper and left neighbour of each cell."""
    inf = float("inf")
    return torch.stack([before_in_x(before, inf), before_in_x(last, inf), last])


def _softmin(r: Tensor, opts) -> tuple[Tensor, Tensor]:
    """Soft minimum of r (3, N, T) along its first dimension, and its gradient (3, N, T).

    NaN where all three are +inf.
    """
    least = r.amin(0)
    a = (least - r) / opts.gamma
    if opts.softmin == "logsumexp":
        return least - opts.gamma * a.exp().sum(0).log(), a.softmax(0)
    q = _onto_simplex(a, 0) if opts.softmin == "sparse" else a.softmax(0)
    a = torch.where(q == 0, 0, a)  # 0 times infinity
    mean = (q * a).sum(0)
    if opts.softmin == "sparse":
        return least - opts.gamma * (mean + (q * (1 - q)).sum(0) / 2), q
    return least - opts.gamma * mean, q * (1 + a - mean)
