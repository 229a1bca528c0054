"""The definition of sinkhorn_alignment in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.sinkhorn.options import Numbers, SinkhornOptions, counts

MASKED = -1e30  # a logarithm that exp turns into exactly 0, without the NaN of inf - inf


def sinkhorn_reference(
    x: Tensor,
    y: Tensor,
    centres: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    pairs: Tensor,
    opts: SinkhornOptions,
) -> Tensor:
    """Values (N,) of inputs that op.py has checked: sum_rq P_rq D_rq."""
    plan, cost = plan_and_cost(x, y, centres, lengths_x, lengths_y, pairs, opts)
    return (plan * cost).sum((1, 2))


def plan_and_cost(
    x: Tensor,
    y: Tensor,
    centres: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    pairs: Tensor,
    opts: SinkhornOptions,
) -> tuple[Tensor, Tensor]:
    """The plan P and the costs D, each (N, R, Q): R = T + 1 and Q = S + 1 with virtual frames,
    otherwise T and S. Both are 0 in the padding. Needs memory for N T S D numbers."""
    virtual, dtype = int(opts.virtual), accumulator(x.dtype)
    real_x = valid_mask(lengths_x, *x.shape[:2], x.device)
    real_y = valid_mask(lengths_y, *y.shape[:2], y.device)
    x = torch.where(real_x[..., None], x, 0).to(dtype)  # padding may contain NaN
    y = torch.where(real_y[..., None], y, 0).to(dtype)
    numbers = Numbers(*pairs.to(dtype)[:, :, None].unbind(1))  # (N, 1) each

    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    if opts.virtual:
        cost = torch.nn.functional.pad(cost, (1, 0, 1, 0))
        cells = torch.zeros_like(cost, dtype=torch.bool)
        cells[:, 0], cells[:, :, 0] = True, True
        cost = torch.where(cells, numbers.virtual_cost[..., None], cost)

    both = (counts(x, lengths_x) > 0) & (counts(y, lengths_y) > 0)  # else the pair has value 0
    rows = torch.nn.functional.pad(real_x, (virtual, 0), value=True) & both[:, None]
    columns = torch.nn.functional.pad(real_y, (virtual, 0), value=True) & both[:, None]
    cells = rows[:, :, None] & columns[:, None]
    weights = log_weights(slice(0, cost.shape[1]), cost.shape[2], centres, numbers, virtual)
    scores = torch.where(cells, weights - cost * numbers.inverse_epsilon[..., None], MASKED)

    log_a, log_b = numbers.step_a.log(), numbers.step_b.log()
    f = torch.where(rows, log_a, MASKED)
    g = torch.zeros_like(columns, dtype=dtype)
    if cells.numel():
        for _ in range(opts.iterations):
            g = torch.where(columns, log_b - (scores + f[:, :, None]).logsumexp(1), MASKED)
            f = torch.where(rows, log_a - (scores + g[:, None]).logsumexp(2), MASKED)
    # MASKED three times is -3e30: no cell of the padding reaches 0 again.
    plan = torch.where(cells, (scores + f[:, :, None] + g[:, None]).exp(), 0)
    return plan, torch.where(cells, cost, 0)


def log_weights(
    rows: slice, num_columns: int, centres: Tensor | None, numbers: Numbers, virtual: int
) -> Tensor:
    """Log weights L (N, rows, columns) of the prior and of the structure term, for some rows."""
    dtype, device = numbers.step_a.dtype, numbers.step_a.device
    a = torch.arange(rows.start + 1, rows.stop + 1, dtype=dtype, device=device) * numbers.step_a
    b = torch.arange(1, num_columns + 1, dtype=dtype, device=device) * numbers.step_b
    rate, kappa, phi = (n[..., None] for n in (numbers.rate, numbers.kappa, numbers.phi))
    gap = (a[:, :, None] - b[:, None]).square_()
    if centres is None:
        weights = (gap + 1).reciprocal_().mul_(kappa).addcmul_(rate, gap, value=-1)
    else:
        c = centres.to(dtype)
        if virtual:
            c = torch.cat([numbers.step_b.expand(len(c), 1), c], 1)
        other = (c[:, rows, None] - b[:, None]).square_()
        weights = torch.logaddexp(phi.log() - rate * gap, (1 - phi).log() - rate * other)
        weights.addcdiv_(kappa * phi, gap.add_(1)).addcdiv_(kappa * (1 - phi), other.add_(1))
    if virtual:
        first = slice(int(rows.start == 0), None)  # the cell of both virtual frames is no exception
        weights[:, first, 0] = numbers.log_virtual
        if rows.start == 0:
            weights[:, 0, 1:] = numbers.log_virtual
    return weights
