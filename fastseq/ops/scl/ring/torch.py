"""Blockwise backend of the ring: any device."""

import functools

import torch
from torch import Tensor

from fastseq.ops.scl.options import SCLOptions
from fastseq.ops.scl.ring import blocks
from fastseq.ops.scl.ring.options import Primitives, Side, Weights
from fastseq.ops.scl.torch import softmax_weights_, target_sums, through_norm
from fastseq.ops.scl.torch_problem import MASKED, Problem


def statistics(
    rows: Side, columns: Side, tau, var, opts: SCLOptions, near: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    p = _problem(rows, columns, tau, var, opts, near)
    lse = p.z1.new_full((p.n, p.frames1), MASKED)
    sums = p.z1.new_zeros(2, *lse.shape)
    for seqs in p.groups():
        buffer = p.buffer(seqs.stop - seqs.start)
        for some, band in p.blocks(seqs):
            s = p.in_buffer(buffer, seqs, some)
            p.scores_(s, seqs, some)
            if near:
                for total, part in zip(sums, target_sums(p, s, seqs, some, band), strict=True):
                    total[seqs, some] = part.sum(2)
            lse[seqs, some] = _log_sums(p, s, seqs)
    if not near:
        return lse, None, None
    g, u = sums
    return lse, g.log(), torch.where(g == 0, 0, u / g)


def _log_sums(p: Problem, s: Tensor, seqs) -> Tensor:
    if not p.bounded:
        return torch.logsumexp(s, 2)
    s.exp_()
    if p.real2 is not None:
        s.mul_(p.real2[seqs, None])
    return s.sum(2).log_()


def add_gradient(
    total: Tensor,
    rows: Side,
    columns: Side,
    of_rows: Weights,
    of_columns: Weights,
    tau,
    var,
    opts: SCLOptions,
    near: bool,
    along: bool,
) -> Tensor | None:
    p = _problem(rows, columns, tau, var, opts, near)
    lse = of_rows.lse, of_columns.lse
    weight, target = (
        tuple(getattr(w, name) / p.temperature for w in (of_rows, of_columns))
        for name in ("weight", "target")
    )
    slope = total.new_zeros(()) if along else None
    for seqs in p.groups():
        buffer, spare_buffer = (p.buffer(seqs.stop - seqs.start) for _ in range(2))
        for some, band in p.blocks(seqs):
            s, spare = (p.in_buffer(room, seqs, some) for room in (buffer, spare_buffer))

            def sides(x: tuple[Tensor, Tensor], seqs=seqs, some=some) -> tuple[Tensor, Tensor]:
                return x[0][seqs, some, None], x[1][seqs, None]

            p.scores_(s, seqs, some)
            softmax_weights_(s, *sides(lse), *sides(weight), p.bounded, spare=spare)
            if near:
                row, column = sides(target)
                g, _ = p.targets(seqs, some, band)
                s[:, :, band].addcmul_(row + column[:, :, band], g, value=-1)
            part = torch.bmm(s, p.z2[seqs])
            total[seqs, some] += part
            if along:
                slope += torch.linalg.vecdot(part, p.z1[seqs, some]).sum()
    return slope


def finish(total: Tensor, rows: Side, top: Tensor, opts: SCLOptions) -> Tensor:
    p = Problem(rows.z, rows.z[:, :0], None, None, rows.valid, None, opts)
    return through_norm(total * top, p.z1, p.rn1, rows.valid, rows.z.dtype, opts)


def _problem(rows: Side, columns: Side, tau, var, opts: SCLOptions, near: bool) -> Problem:
    p = Problem(rows.z, columns.z, tau, var, rows.valid, columns.valid, opts)
    if near:
        p.set_times(rows.t, columns.t, rows.valid, columns.valid)
    else:
        p.without_targets()
    return p


PRIMITIVES = Primitives(statistics, add_gradient, finish)
forward = functools.partial(blocks.forward, PRIMITIVES)
backward = functools.partial(blocks.backward, PRIMITIVES)
