"""The definition of drop_dtw in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.drop_dtw.options import DropDTWOptions
from fastseq.ops.soft_dtw.reference import _softmin


def drop_dtw_reference(
    cost: Tensor,
    drop_cost: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    opts: DropDTWOptions,
) -> Tensor:
    """Values (N,) of inputs that op.py has checked: cost (N, K, S) and drop_cost (N, S).

    With rows i and columns j counted from 1, D_00 = 0 and D_i0 = +inf::

        P_ij = cost_ij + softmin(D_i-1,j-1, L_i,j-1, P_i-1,j)   frame j matched to step i
        M_ij = drop_cost_j + D_i,j-1                            frame j dropped
        D_ij = softmin(P_ij, M_ij)                              row 0 has no P

    L is P where opts.contiguous, otherwise D. P_i-1,j counts only in the columns of opts.up.
    The value is D of the last real cell; a cell without a path counts as +inf.
    Computed in float64 for all inputs.
    """
    num, k, m = cost.shape
    dtype, device = cost.dtype, cost.device
    if cost.numel() == 0:
        return cost.flatten(1).sum(1) + drop_cost[:, :0].sum(1)  # 0, also for NaN
    real_x = valid_mask(lengths_x, num, k, device)
    real_y = valid_mask(lengths_y, num, m, device)
    end_x, end_y = real_x.sum(1), real_y.sum(1)
    cost, may_match = _finite(cost, real_x[:, :, None] & real_y[:, None])
    drop_cost, may_drop = _finite(drop_cost, real_y)

    # One anti-diagonal s = i + j at a time, indexed by i.
    i = torch.arange(k + 1, device=device)
    nowhere = torch.zeros(num, k + 1, dtype=torch.bool, device=device)
    nothing = torch.zeros(num, k + 1, dtype=cost.dtype, device=device)
    state, matched, before = (nothing, nowhere | (i == 0)), (nothing, nowhere), (nothing, nowhere)
    values, reached = [state[0]], [state[1]]
    for s in range(1, k + m + 1):
        column = (s - i - 1).clamp(0, m - 1)  # counted from 0
        inside = (s > i) & (s - i <= m)
        left = matched if opts.contiguous else state
        steps = [_down(before), left]
        if opts.up != "never":
            up, there = _down(matched)
            if opts.up == "ends":
                there = there & ((column == 0) | (column == end_y[:, None] - 1))
            steps.append((up, there))
        match = _least(steps, opts)
        row = (i - 1).clamp(min=0)
        allowed = match[1] & inside & (i > 0) & may_match[:, row, column]
        match = torch.where(allowed, cost[:, row, column] + match[0], 0), allowed
        allowed = state[1] & inside & may_drop[:, column]
        drop = torch.where(allowed, drop_cost[:, column] + state[0], 0), allowed
        state, matched, before = _least([match, drop], opts), match, state
        values.append(state[0])
        reached.append(state[1])
    at = torch.arange(num, device=device), end_x + end_y, end_x
    value = torch.where(torch.stack(reached, 1)[at], torch.stack(values, 1)[at], torch.inf)
    return torch.where((end_x == 0) | (end_y == 0), 0, value).to(dtype)


def _finite(cost: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Costs in float64, 0 in padding and where they are +inf; and where they are not +inf."""
    # Padding may contain NaN, and a gradient of 0 times NaN is NaN.
    cost = torch.where(real, cost, 0).double()
    allowed = cost != torch.inf
    cost = torch.where(allowed, cost, 0)
    # A path through -inf has no weight.
    return torch.where(cost == -torch.inf, torch.nan, cost), allowed


def _down(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The entries of row i - 1, at row i."""
    values, there = (torch.cat([torch.zeros_like(t[:, :1]), t[:, :-1]], 1) for t in state)
    return values, there


def _least(terms: list[tuple[Tensor, Tensor]], opts: DropDTWOptions) -> tuple[Tensor, Tensor]:
    values, there = (torch.stack(parts) for parts in zip(*terms, strict=True))
    return _softmin(values, there, opts.gamma, 0, opts.softmin)[0], there.any(0)
