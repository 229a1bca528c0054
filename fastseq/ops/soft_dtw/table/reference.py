"""The definition of the table in plain PyTorch: differentiable twice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.soft_dtw.reference import _softmin


def table_reference(cost: Tensor, opts) -> Tensor:
    """R (N, T, S) of costs (N, T, S) in float64; T and S at least 1."""
    frames_y = cost.shape[2]
    allowed = skew(cost != torch.inf, False)
    costs = skew(torch.where(cost == torch.inf, 0, cost), 0)
    nowhere, nothing = torch.zeros_like(allowed[0]), torch.zeros_like(costs[0])
    diagonals, reached, before, last = [], [], (nothing, nowhere), (nothing, nowhere)
    for k, (here, present) in enumerate(zip(costs, allowed, strict=True)):
        steps = [before_in_x(before[0], 0), before_in_x(last[0], 0), last[0]]
        there = [before_in_x(before[1], k == 0), before_in_x(last[1], False), last[1]]
        soft = _softmin(torch.stack(steps), torch.stack(there), opts.gamma, 0, opts.softmin)[0]
        inside = present & (there[0] | there[1] | there[2])
        # A cell that is never read still has to be finite, for the gradient.
        diagonals.append(torch.where(inside, here + soft, 0))
        reached.append(inside)
        before, last = last, (diagonals[-1], inside)
    table, ends = unskew(torch.stack(diagonals), frames_y), unskew(torch.stack(reached), frames_y)
    return torch.where(ends, table, torch.inf)


def skew(t: Tensor, outside: float) -> Tensor:
    """(T + S - 1, N, T) of t (N, T, S): anti-diagonal i + j = k at place [k, :, i]."""
    num, n, m = t.shape
    padded = F.pad(t, (0, n), value=outside).flatten(1)[:, : n * (n + m - 1)]
    return padded.view(num, n, n + m - 1).movedim(2, 0).contiguous()


def unskew(t: Tensor, frames_y: int) -> Tensor:
    """(N, T, S), the inverse of `skew`."""
    _, num, n = t.shape
    flat = F.pad(t.movedim(0, 2).flatten(1), (0, n))
    return flat.view(num, n, n + frames_y)[:, :, :frames_y]


def before_in_x(t: Tensor, first: float) -> Tensor:
    """The entries (N, T) of row i - 1, at row i; ``first`` at row 0."""
    return F.pad(t[:, :-1], (1, 0), value=first)
