"""scl_loss over the ranks of a group: both views of every rank travel around a ring.

A rank computes the statistics and gradients of its own rows only, in both directions, from the
blocks that pass by. No sum over a part of the columns travels, and the result does not depend on
when blocks arrive. Memory is that of two blocks. The backward's blocks have three more numbers for
each frame: its final statistics and its weight.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.scl.options import coefficients, scalars, totals
from fastseq.ops.scl.ring.options import Primitives, RingOptions, Side, Weights
from fastseq.ops.scl.ring.parts import Part, Parts
from fastseq.ops.scl.torch_problem import MASKED


def forward(
    backend: Primitives, z1, z2, tau, var, t1, t2, valid1, valid2, opts: RingOptions, needs
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the statistics (2, N, T1 + T2) of this rank's rows (log of the denominators and of
    the sums of g), and the coefficients (2, N) of the reduction."""
    parts = Parts(z1, z2, tau, var, t1, t2, valid1, valid2, opts, "ring", any(needs))
    dtype, ring, mine = accumulator(z1.dtype), parts.ring, parts.mine
    masks = mine.masks
    counts = torch.stack([m.sum(1) for m in masks]).to(dtype)
    joined = opts.split == "frames"  # each rank has a part of every video
    # Before the ring in any case: NCCL needs one call of all ranks first.
    sums = totals(ring.sum_(counts)) if joined else ring.sum_(totals(counts))
    coef = coefficients(counts, opts.reduction, *sums)
    rows = [_Rows(side, dtype) for side in mine.views]

    def add(part: Part, own: bool) -> None:
        for pair in _pairs(mine, part, own, opts):
            found = backend.statistics(*pair.sides, tau, var, opts.scl, pair.near)
            rows[pair.view].add(*found)

    for rank, part, _ in parts.travel():
        add(part, rank == ring.rank)
        del part  # see Ring.blocks
    loss = sum(c * r.loss(m, opts).sum(1) for c, r, m in zip(coef, rows, masks, strict=True))
    if opts.reduction != "none":
        loss = ring.sum_(loss.sum())
    elif joined:
        loss = ring.sum_(loss)
    stats = torch.cat([torch.stack([r.lse, r.log_g]) for r in rows], 2)
    return loss, stats, coef


def backward(
    backend: Primitives,
    grad: Tensor,
    z1,
    z2,
    tau,
    var,
    t1,
    t2,
    valid1,
    valid2,
    stats: Tensor,
    coef: Tensor,
    opts: RingOptions,
    needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the sum of the ranks' values for this rank's z1 and z2 and its temperature."""
    *need, need_tau = needs
    parts = Parts(z1, z2, tau, var, t1, t2, valid1, valid2, opts, "ring", any(needs))
    ring, mine = parts.ring, parts.mine
    if opts.split == "frames" or opts.reduction != "none":
        grad = ring.sum_(grad.to(coef.dtype, copy=True).contiguous())
    weight, top = _relative_weights(coef * grad, stats, mine, ring)
    lse = stats[0].masked_fill(weight == 0, -MASKED)  # exp(score - 1e30) = 0
    target = torch.where(weight == 0, 0, weight * (-stats[1]).exp())
    split = z1.shape[1], z2.shape[1]
    of_mine = _by_view(torch.stack([lse, weight, target]), split)
    # The temperature's gradient needs the rows of both views.
    total = [
        side.z.new_zeros(side.z.shape, dtype=stats.dtype) if wanted or need_tau else None
        for side, wanted in zip(mine.views, need, strict=True)
    ]
    slope = stats.new_zeros(())

    def add(part: Part, own: bool, of_part: list[list[Tensor]]) -> None:
        for pair in _pairs(mine, part, own, opts):
            if total[pair.view] is None:
                continue
            along = backend.add_gradient(
                pair.flat(total[pair.view]),
                *pair.sides,
                Weights(*map(pair.flat, of_mine[pair.view])),
                Weights(*map(pair.of_columns, of_part[pair.other])),
                *(tau, var, opts.scl, pair.near, need_tau),
            )
            if need_tau:  # a score is in the sums of both its frames
                slope.add_(along.sum() / 2)

    for rank, part, (of_part,) in parts.travel(torch.stack([lse, weight, target])):
        add(part, rank == ring.rank, _by_view(of_part, parts.sizes[rank][1:]))
        del part, of_part  # see Ring.blocks
    grads = [
        backend.finish(t, side, top, opts.scl) if wanted else None
        for t, side, wanted in zip(total, mine.views, need, strict=True)
    ]
    if need_tau:
        slope = (-slope * top / scalars(tau, var, opts.scl, stats.dtype)[0]).to(tau.dtype)
    return *grads, slope if need_tau else None


class _Pair(NamedTuple):
    """Rows of one view of this rank and columns of one view of a block."""

    view: int  # of the rows
    other: int  # view of the columns
    rows: Side
    columns: Side
    near: bool
    shift: int = 0  # columns are those of the videos ``shift`` places further
    one: bool = False  # rows and columns of all videos in one sequence

    @property
    def sides(self) -> tuple[Side, Side]:
        rows, columns = self.rows, self.columns
        if not self.near:
            rows, columns = (Side(s.z, None, s.valid) for s in (rows, columns))
        columns = Side(*(None if x is None else self.of_columns(x) for x in columns))
        return Side(*(None if x is None else self.flat(x) for x in rows)), columns

    def flat(self, x: Tensor) -> Tensor:
        """(N, T, ...) of the rows, as one sequence if ``one``; a view."""
        return x.view(1, -1, *x.shape[2:]) if self.one else x

    def of_columns(self, x: Tensor) -> Tensor:
        if self.one:
            return x.reshape(1, -1, *x.shape[2:])
        return x.roll(-self.shift, 0) if self.shift else x


def _pairs(mine: Part, part: Part, own: bool, opts: RingOptions) -> Iterator[_Pair]:
    """The rows and columns whose scores the softmax and the targets need."""
    every = [(a, b) for a in (0, 1) for b in (0, 1)]
    same_videos = own or opts.split == "frames"
    wanted: list[tuple] = []
    if same_videos:
        wanted += [(0, 1, True), (1, 0, True)]
    if same_videos and opts.negatives == "video":
        wanted += [(0, 0, False), (1, 1, False)]
    if opts.negatives == "batch":
        shifts = range(1, len(mine.views[0].z)) if same_videos else [0]
        wanted += [(a, b, False, k, not same_videos) for k in shifts for a, b in every]
    for view, other, *kind in wanted:
        rows, columns = mine.views[view], part.views[other]
        if rows.z.shape[0] * rows.z.shape[1] and columns.z.shape[0] * columns.z.shape[1]:
            yield _Pair(view, other, rows, columns, *kind)


class _Rows:
    """Statistics of the rows of one view, joined over the blocks so far; each (N, T)."""

    def __init__(self, side: Side, dtype: torch.dtype) -> None:
        self.lse = side.z.new_full(side.z.shape[:2], MASKED, dtype=dtype)
        self.log_g = torch.full_like(self.lse, -torch.inf)
        self.mean = torch.zeros_like(self.lse)

    def add(self, lse: Tensor, log_g: Tensor | None, mean: Tensor | None) -> None:
        self.lse = torch.logaddexp(self.lse, lse.view_as(self.lse))
        if log_g is None:
            return
        both = torch.logaddexp(self.log_g, log_g)
        share = torch.where(both == -torch.inf, 0, (log_g - both).exp())
        self.log_g, self.mean = both, torch.lerp(self.mean, mean, share)

    def loss(self, mask: Tensor, opts: RingOptions) -> Tensor:
        """KL = lse + sum_j w_ij (log w_ij - s_ij) with log w = e - log G; 0 without a target."""
        entropy = self.log_g if opts.objective == "kl" else 0
        has_target = mask & (self.log_g != -torch.inf)  # a NaN time keeps its row
        return torch.where(has_target, self.lse - entropy - self.mean, 0)


def _relative_weights(weight: Tensor, stats: Tensor, mine: Part, ring) -> tuple[Tensor, Tensor]:
    """Weights (N, T1 + T2) of the rows over the largest of all ranks, and the largest: a weight of
    1 / frames times a probability would underflow in float16."""
    largest = weight.abs().max() if weight.numel() else weight.new_zeros(())
    top = ring.max_(largest.clone())
    relative = torch.where(top == 0, 0, weight / top)
    frames = [w[:, None] * m for w, m in zip(relative, mine.masks, strict=True)]
    return torch.cat(frames, 1) * (stats[1] != -torch.inf), top


def _by_view(x: Tensor, split) -> list[list[Tensor]]:
    """(3, N, T1 + T2) as lse, weight and target of each view, contiguous."""
    return [[y.contiguous() for y in part] for part in x.split(list(split), 2)]
