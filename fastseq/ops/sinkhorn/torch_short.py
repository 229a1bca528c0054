"""Short pairs on a CPU: the plans of all iterations are one matrix with scaled rows and columns.

With e = exp(scores + f + g) for one f and one g, that of others is e_rq exp(f'_r - f_r)
exp(g'_q - g_q). So an iteration is two products of a matrix with a vector, the sums of all plans
are products with the matrices of all scales, and nothing needs another exp. This is accurate while
f and g differ by less than `FAR` in total: then no cell that counts is 0 in e. Otherwise these
functions return None, and torch.py's passes compute the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastseq.ops.sinkhorn.reference import MASKED

if TYPE_CHECKING:
    from fastseq.ops.sinkhorn.torch import Problem

FAR = 40.0


def iterate(p: Problem, f_all: Tensor, g_all: Tensor) -> Tensor | None:
    """Fill all f and g of a few pairs; return their values."""
    (_, scores, cost), *_ = p.blocks()
    n, num_rows, _ = scores.shape
    start = p.log_a.expand(n, num_rows).masked_fill(~p.rows, MASKED)
    g = p.log_b - (scores + start[..., None]).logsumexp(1)
    g.masked_fill_(~p.columns, MASKED)
    f = p.log_a - (scores + g[:, None]).logsumexp(2)
    f.masked_fill_(~p.rows, MASKED)
    e = p.plan(scores, f, g)
    # A scale is a weight over a sum; it is 1 in the padding, whose sums are 0.
    over_a, over_b = 1 / p.numbers.step_a, 1 / p.numbers.step_b
    no_row, no_column = (~p.rows).to(e.dtype), (~p.columns).to(e.dtype)
    rows, columns = [torch.ones_like(f)], [torch.ones_like(g)]
    for _ in range(p.iterations - 1):
        sums = torch.bmm(rows[-1][:, None], e)[:, 0]
        columns.append(torch.addcmul(no_column, sums, over_b).reciprocal_())
        sums = torch.bmm(e, columns[-1][..., None])[..., 0]
        rows.append(torch.addcmul(no_row, sums, over_a).reciprocal_())
    by_row, by_column = torch.stack(rows, 1), torch.stack(columns, 1)
    shift_f, shift_g = by_row.log(), by_column.log()
    if not _near(shift_f, shift_g):
        return None
    f_all[:, 0] = start
    torch.add(f[:, None], shift_f, out=f_all[:, 1:])
    torch.add(g[:, None], shift_g, out=g_all)
    f_all.masked_fill_(~p.rows[:, None], 0)
    g_all.masked_fill_(~p.columns[:, None], 0)
    plan_cost = torch.bmm(e * cost, by_column[:, -1, :, None])[..., 0]
    return (plan_cost * by_row[:, -1]).sum(1)


def gradients(p: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """Half of the gradients of the frames p.x and p.y. u and v as in torch.py's ``_adjoints``."""
    by_row, by_column = f - f[:, -1:], g - g[:, -1:]
    if not _near(by_row, by_column):
        return None
    (every, scores, cost), *_ = p.blocks()
    e = p.plan(scores, f[:, -1], g[:, -1])
    by_row, by_column = by_row.exp_(), by_column.exp_()
    # The sums that make rows of P_k and columns of Q_k exact; 0 in the padding only.
    row_sums = torch.bmm(by_column, e.mT).clamp_(min=1e-30)
    column_sums = torch.bmm(by_row[:, :-1], e).clamp_(min=1e-30)
    u, v = torch.zeros_like(f), torch.zeros_like(g)
    e_cost = e * cost
    for k in range(p.iterations, 0, -1):
        if k == p.iterations:
            slope, own = e_cost.sum(2), e_cost.sum(1)
        else:
            slope = torch.bmm(e, (by_column[:, k] * v[:, k])[..., None])[..., 0]
        torch.div(slope, row_sums[:, k - 1], out=u[:, k]).neg_()
        sums = torch.bmm((by_row[:, k] * u[:, k])[:, None], e)[:, 0]
        if k == p.iterations:
            sums += own
        torch.div(sums, column_sums[:, k - 1], out=v[:, k - 1]).neg_()
    slope = torch.bmm(*_factors(by_row, by_column, u, v)).mul_(e)
    slope = p.slope_of_cost_(slope, e, cost, every)
    dx = torch.addcmul(-torch.bmm(slope, p.y), slope.sum(2)[..., None], p.x)
    dy = torch.addcmul(-torch.bmm(slope.mT, p.x), slope.sum(1)[..., None], p.y)
    return dx, dy


def factors(f: Tensor, g: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Matrices (n, R, 2 iterations) and (n, 2 iterations, Q) whose product times the last plan is
    sum_k P_k u_k + sum_k Q_k v_k, of any number of rows."""
    by_row, by_column = f - f[:, -1:], g - g[:, -1:]
    if not _near(by_row, by_column):
        return None
    return _factors(by_row.exp_(), by_column.exp_(), u, v)


def _factors(by_row: Tensor, by_column: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    left = torch.cat([by_row[:, 1:] * u[:, 1:], by_row[:, :-1]], 1)
    return left.mT, torch.cat([by_column, by_column * v], 1)


def _near(shift_f: Tensor, shift_g: Tensor) -> bool:
    if not shift_f.numel():
        return True
    return float(shift_f.abs().max() + shift_g.abs().max()) < FAR
