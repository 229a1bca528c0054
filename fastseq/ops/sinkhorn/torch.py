"""Blockwise backend: any device, memory O(N iterations (T + S) + N T D).

Rows are processed in blocks that fit the cache. One pass over the blocks is one iteration, with one
exp for each cell: with f and g of the iteration before, e = exp(scores + f + g) is a plan whose
column sums are right, and

    f += log(step_a / sum_q e)        the rows are complete at once, so that e becomes the new plan
    g += log(step_b / sum_r e)        from the sums over all blocks

Only the first g and the first f need a log-sum-exp: afterwards no sum is below step_a step_b, since
neither a row nor a column of a plan sums to more than 1. The backward walks back in the same way:
the gradient of f of a block of rows from that of the later g, then the block's part of the gradient
of the g before.

A short pair is one block, whose scores are formed once in each direction; on a CPU its plans are
scaled ones (torch_short.py).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastseq.ops.common import short
from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.sinkhorn import torch_short as scaled
from fastseq.ops.sinkhorn.options import Numbers, SinkhornOptions, counts
from fastseq.ops.sinkhorn.reference import MASKED, log_weights

BLOCK = 1 << 18  # cells of a block or of a group of short pairs: 1 MB in float32
# Cells of a plan below exp(-LOWEST) count as 0: exp is 10 to 50 times slower where it underflows.
LOWEST = {torch.float32: 80.0, torch.float64: 700.0}


def forward(x, y, centres, lengths_x, lengths_y, pairs, opts: SinkhornOptions, needs):
    """Values (N,), all f (N, iterations + 1, T + 1) and all g (N, iterations, S + 1): 0 in the
    padding, and in place 0 without virtual frames."""
    num, rows, columns = len(x), x.shape[1] + 1, y.shape[1] + 1
    value = pairs.new_zeros(num)
    f_all = pairs.new_zeros(num, opts.iterations + 1, rows)
    g_all = pairs.new_zeros(num, opts.iterations, columns)
    inputs = x, y, centres, lengths_x, lengths_y, pairs
    for group in groups(inputs, opts):
        p = Problem(*(None if t is None else t[group] for t in inputs), opts)
        places = p.places(f_all[group]), p.places(g_all[group])
        part = scaled.iterate(p, *places) if p.short and p.on_cpu else None
        value[group] = _iterate(p, *places) if part is None else part
    return value, f_all, g_all


def backward(
    grad, x, y, centres, lengths_x, lengths_y, pairs, f_all, g_all, opts: SinkhornOptions, needs
):
    """Gradients of x and y (None where not needed)."""
    dx, dy = (torch.zeros_like(z) if need else None for z, need in zip((x, y), needs, strict=True))
    inputs = x, y, centres, lengths_x, lengths_y, pairs
    for group in groups(inputs, opts):
        p = Problem(*(None if t is None else t[group] for t in inputs), opts)
        f = p.places(f_all[group]).masked_fill(~p.rows[:, None], MASKED)
        g = p.places(g_all[group]).masked_fill(~p.columns[:, None], MASKED)
        parts = scaled.gradients(p, f, g) if p.short and p.on_cpu else None
        if parts is None:
            parts = _gradients(p, f, g, *_adjoints(p, f, g))
        for total, part, z in zip((dx, dy), parts, (p.x, p.y), strict=True):
            if total is not None:
                part = part * (2 * grad[group, None, None])
                total[group] = part[:, z.shape[1] - total.shape[1] :].to(total.dtype)
    return dx, dy


class Problem:
    """A few pairs in the form that the loops need: masked, centred, the virtual frame in front."""

    def __init__(self, x, y, centres, lengths_x, lengths_y, pairs, opts: SinkhornOptions):
        self.opts, self.virtual = opts, int(opts.virtual)
        self.iterations = opts.iterations or 0
        self.numbers = Numbers(*pairs[:, :, None].unbind(1))  # (n, 1) each
        self.log_a, self.log_b = self.numbers.step_a.log(), self.numbers.step_b.log()
        self.centres = centres
        both = ((counts(x, lengths_x) > 0) & (counts(y, lengths_y) > 0))[:, None]
        dtype = accumulator(x.dtype)
        real_x = valid_mask(lengths_x, *x.shape[:2], x.device) & both
        real_y = valid_mask(lengths_y, *y.shape[:2], y.device) & both
        x = torch.where(real_x[..., None], x, 0).to(dtype)
        y = torch.where(real_y[..., None], y, 0).to(dtype)
        # Distances come from products, whose rounding grows with the norms: the mean of the frames
        # is subtracted from both sides, which changes no distance.
        total = real_x.sum(1, keepdim=True) + real_y.sum(1, keepdim=True)
        mean = (x.sum(1) + y.sum(1)) / total.clamp(min=1)
        front = (self.virtual, 0)
        self.x = torch.nn.functional.pad(x - mean[:, None], (0, 0, *front))
        self.y = torch.nn.functional.pad(y - mean[:, None], (0, 0, *front))
        self.rows = torch.nn.functional.pad(real_x, front, value=True) & both
        self.columns = torch.nn.functional.pad(real_y, front, value=True) & both
        self.xx, self.yy = self.x.square().sum(-1), self.y.square().sum(-1)
        self.size = max(1, BLOCK // max(len(x) * self.y.shape[1], 1))
        # Numbers are read only where reading them does not wait for a GPU.
        self.on_cpu = x.device.type == "cpu"
        self.plain = self.on_cpu and not bool(pairs[:, 3:5].any())
        self.kept: tuple[Tensor, Tensor] | None = None  # scores and costs of the only block
        cells = self.x.shape[1] * self.y.shape[1]
        self.short = cells * self.x.dtype.itemsize <= short.KEPT_BYTES
        if self.short:
            self.size = self.x.shape[1]

    def places(self, kept: Tensor) -> Tensor:
        """The part of f or g of all places, (..., T + 1), that this call uses."""
        return kept[..., 1 - self.virtual :]

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, scores, costs) of each block, (n, rows, columns); nothing may change them."""
        for start in range(0, self.x.shape[1], self.size):
            rows = slice(start, min(start + self.size, self.x.shape[1]))
            scores, cost = self.kept or self._block(rows)
            if rows.stop - rows.start == self.x.shape[1]:
                self.kept = scores, cost
            yield rows, scores, cost

    def _block(self, rows: slice) -> tuple[Tensor, Tensor]:
        cost = torch.baddbmm(self.yy[:, None], self.x[:, rows], self.y.mT, alpha=-2)
        cost.add_(self.xx[:, rows, None]).clamp_(min=0)
        if self.virtual:
            cost[:, :, 0] = self.numbers.virtual_cost
            if rows.start == 0:
                cost[:, 0] = self.numbers.virtual_cost
        scores = cost * -self.numbers.inverse_epsilon[..., None]
        if not self.plain:
            scores += log_weights(rows, self.y.shape[1], self.centres, self.numbers, self.virtual)
        return scores, cost

    def plan(self, scores: Tensor, f: Tensor, g: Tensor) -> Tensor:
        """exp(scores + f + g) of a block: f (n, rows), g (n, columns)."""
        e, lowest = torch.add(scores, f[..., None]).add_(g[:, None]), LOWEST[scores.dtype]
        e.clamp_(min=-lowest - 1).exp_()
        return torch.threshold_(e, math.exp(-lowest), 0)

    def slope_of_cost_(self, slope: Tensor, plan: Tensor, cost: Tensor, rows: slice) -> Tensor:
        """dvalue / dcost = P + (-1 / epsilon) dvalue / dscores of a block, 0 for virtual frames,
        from ``slope``, the part of dvalue / dscores through f and g; in place."""
        inverse = self.numbers.inverse_epsilon[..., None]
        slope.addcmul_(plan, cost).mul_(-inverse).add_(plan)
        if self.virtual:
            slope[:, :, 0] = 0
            if rows.start == 0:
                slope[:, 0] = 0
        return slope


def _iterate(p: Problem, f_all: Tensor, g_all: Tensor) -> Tensor:
    """Fill all f and g of a few pairs; return their values."""
    numbers, (n, num_rows, _) = p.numbers, p.x.shape
    f = p.log_a.expand(n, num_rows).masked_fill(~p.rows, MASKED)
    f_all[:, 0] = f.masked_fill(~p.rows, 0)
    lse = f.new_full(p.columns.shape, -torch.inf)
    for rows, scores, _ in p.blocks():
        lse = torch.logaddexp(lse, (scores + f[:, rows, None]).logsumexp(1))
    g = (p.log_b - lse).masked_fill(~p.columns, MASKED)
    for rows, scores, _ in p.blocks():
        part = p.log_a - (scores + g[:, None]).logsumexp(2)
        f[:, rows] = part.masked_fill_(~p.rows[:, rows], MASKED)
    value = f.new_zeros(n)
    for k in range(p.iterations):
        g_all[:, k] = g.masked_fill(~p.columns, 0)
        last = k == p.iterations - 1
        sums = torch.zeros_like(g)
        for rows, scores, cost in p.blocks():
            e = p.plan(scores, f[:, rows], g)
            factor = (numbers.step_a / e.sum(2)).masked_fill_(~p.rows[:, rows], 1)
            f[:, rows] += factor.log()
            if last:
                value += (factor * torch.linalg.vecdot(e, cost)).sum(1)
            else:
                sums += torch.bmm(factor[:, None], e)[:, 0]
        f_all[:, k + 1] = f.masked_fill(~p.rows, 0)
        if not last:
            g = g + (numbers.step_b / sums).log_().masked_fill_(~p.columns, 0)
    return value


def _adjoints(p: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the gradients of the value in all f and g, divided by step_a and step_b: u, v with

        dvalue / dscores = P D + sum_k P_k u_k + sum_k Q_k v_k
        P_k = exp(scores + f_k + g_k)        Q_k = exp(scores + f_k-1 + g_k)

    u (n, iterations + 1, R) has index 0 unused, v (n, iterations, Q) begins with that of g_1.

    Rows of P_k sum to step_a and columns of Q_k to step_b only up to the rounding of f and g,
    which grows with their size. u and v include the factors that make the sums exact: without them
    errors of all iterations add up (3 times the error of the gradient at epsilon = 0.02).
    """
    u, v = torch.zeros_like(f), torch.zeros_like(g)
    for k in range(p.iterations, 0, -1):
        sums = torch.zeros_like(p.yy)
        before = (f[:, k - 1] - f[:, k]).exp_()  # Q_k = P_k times this
        for rows, scores, cost in p.blocks():
            e = p.plan(scores, f[:, k, rows], g[:, k - 1])
            if k == p.iterations:
                e_cost = e * cost
                slope = e_cost.sum(2)
                v[:, k - 1] += e_cost.sum(1)
            else:
                slope = torch.bmm(e, _of_next(g, v, k)[..., None])[..., 0]
            # The sum is 0 in the padding only.
            u[:, k, rows] = -slope / e.sum(2).clamp_(min=1e-30)
            both = torch.bmm(torch.stack([u[:, k, rows], before[:, rows]], 1), e)
            v[:, k - 1] += both[:, 0]
            sums += both[:, 1]
        v[:, k - 1] /= -sums.clamp_(min=1e-30)
    return u, v


def _of_next(g: Tensor, v: Tensor, k: int) -> Tensor:
    """w (n, columns) with Q_k+1 v_k+1 = P_k w."""
    return v[:, k] * (g[:, k] - g[:, k - 1]).exp_()


def _gradients(p: Problem, f: Tensor, g: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the gradients of the frames p.x and p.y."""
    dx, dy, total = torch.zeros_like(p.x), torch.zeros_like(p.y), torch.zeros_like(p.yy)
    factors = scaled.factors(f, g, u, v) if p.on_cpu else None
    for rows, scores, cost in p.blocks():
        e = p.plan(scores, f[:, -1, rows], g[:, -1])
        if factors is None:
            slope = _sum_of_plans(p, scores, rows, f, g, u, v)
        else:
            slope = torch.bmm(factors[0][:, rows], factors[1]).mul_(e)
        slope = p.slope_of_cost_(slope, e, cost, rows)
        dx[:, rows] = slope.sum(2)[..., None] * p.x[:, rows] - torch.bmm(slope, p.y)
        dy.baddbmm_(slope.mT, p.x[:, rows], alpha=-1)
        total += slope.sum(1)
    return dx, dy.addcmul_(total[..., None], p.y)


def _sum_of_plans(p: Problem, scores: Tensor, rows: slice, f, g, u, v) -> Tensor:
    """sum_k P_k u_k + sum_k Q_k v_k of a block."""
    total = p.plan(scores, f[:, 0, rows], g[:, 0]).mul_(v[:, 0, None])
    for k in range(1, p.iterations + 1):
        weights = u[:, k, rows, None]
        if k < p.iterations:
            weights = weights + _of_next(g, v, k)[:, None]
        total.addcmul_(p.plan(scores, f[:, k, rows], g[:, k - 1]), weights)
    return total


def groups(inputs, opts: SinkhornOptions) -> Iterator[slice]:
    """Slices of pairs that are processed together. None if a side has no frames at all."""
    x, y, *_ = inputs
    cells = (x.shape[1] + opts.virtual) * (y.shape[1] + opts.virtual)
    size = max(1, BLOCK // max(cells, 1))
    if x.shape[1] and y.shape[1]:
        for start in range(0, len(x), size):
            yield slice(start, min(start + size, len(x)))
