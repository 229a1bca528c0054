"""Blockwise backend: any device, memory O(N T D), and a T x T matrix only in short calls.

Rows are processed in blocks whose similarities fit the cache. One block covers both directions, and
its targets are computed only on the columns within reach of its rows. Cosines over a temperature
that is not tiny need no running maximum (``bounded``): one exp is then enough for both directions.
The forward of a short call keeps the gradient of each score, and its backward is two products.
"""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.common.short import kept_pairs
from fastseq.ops.scl.options import NORM_EPS, SCLOptions, row_coefficients
from fastseq.ops.scl.torch_problem import MASKED, Problem


def forward(z1, z2, tau, var, t1, t2, valid1, valid2, opts: SCLOptions, needs):
    """Loss; statistics (3, N, T1 + T2) = log-denominators, inverse sums of g, inverse norms
    of all rows; coefficients (2, N) of the reduction; and for a short call the gradient of each
    score (N, T1, T2) for an upstream gradient of 1."""
    p = Problem(z1, z2, tau, var, valid1, valid2, opts)
    p.set_times(t1, t2, valid1, valid2)
    stats = z1.new_empty((3, p.n, p.frames1 + p.frames2), dtype=p.dtype)
    lse, inv_sum, inv_norm = stats
    lse.fill_(MASKED)  # kept where the other view has no real frame
    torch.cat([p.rn1, p.rn2], 1, out=inv_norm)
    shape = kept_pairs(z1, z2, needs)
    pairs = None if shape is None else p.z1.new_empty(shape)
    sums, blocks = torch.zeros_like(stats[:2]), []
    for seqs in p.groups():
        part = None if pairs is None else pairs[seqs]
        blocks += _forward_group(p, seqs, lse[seqs], sums[:, seqs], part)
    rows = _row_targets(*sums, opts, inv_sum)
    for z, m, group, out in p.same_side(lse):
        torch.logaddexp(out, _self_lse(p, z, m, group), out=out)
    has_target = inv_sum != 0  # a NaN timestamp keeps its row
    rows = torch.where(has_target, rows + lse, 0)
    # exp(score - 1e30) = 0: rows without a target have no softmax part either.
    lse.masked_fill_(~has_target, -MASKED)
    coef = row_coefficients(p.m1, p.m2, opts.reduction, p.dtype)
    loss = coef[0] * rows[:, : p.frames1].sum(1) + coef[1] * rows[:, p.frames1 :].sum(1)
    loss = loss if opts.reduction == "none" else loss.sum()
    if pairs is not None:
        slopes = _Slopes(p, lse, inv_sum, coef)
        slopes.of_softmax_(pairs, slice(0, p.n), slice(0, p.frames1), exponentiated=p.bounded)
        for seqs, rows, band, g in blocks:
            slopes.less_targets_(pairs[seqs, rows], seqs, rows, band, g)
    return loss, stats, coef, pairs


def backward(
    grad, z1, z2, tau, var, t1, t2, valid1, valid2, stats, coef, pairs, opts: SCLOptions, needs
):
    """Gradients of z1, z2 and the temperature (None where not needed)."""
    *need, need_tau = needs
    need1 = need[0] or (need_tau and not need[1])  # tau's gradient needs one of them
    need2 = need[1]
    lse, inv_sum, inv_norm = stats
    p = Problem(z1, z2, tau, var, valid1, valid2, opts, inv_norm)
    whole = pairs is not None and opts.negatives == "cross"
    slopes = None if whole else _Slopes(p, lse, inv_sum, coef * grad)
    if pairs is not None:
        grad = grad.reshape(-1, 1, 1)  # gradient of the loss, or of each video's loss
        dz1 = torch.bmm(pairs, p.z2).mul_(grad) if need1 else None
        dz2 = torch.bmm(pairs.mT, p.z1).mul_(grad) if need2 else None
    else:
        p.set_times(t1, t2, valid1, valid2)
        dz1 = (torch.empty_like if p.frames2 else torch.zeros_like)(p.z1) if need1 else None
        dz2 = (torch.empty_like if p.frames1 else torch.zeros_like)(p.z2) if need2 else None
        for seqs in p.groups():
            _backward_group(p, seqs, slopes, dz1, dz2)
    slope = None
    if need_tau:
        slope = torch.linalg.vecdot(*((dz1, p.z1) if need1 else (dz2, p.z2))).sum()
    _backward_same_side(p, slopes, dz1, dz2, slope)
    return (
        through_norm(dz1, p.z1, p.rn1, valid1, z1.dtype, opts) if need[0] else None,
        through_norm(dz2, p.z2, p.rn2, valid2, z2.dtype, opts) if need2 else None,
        (-slope / p.temperature).to(tau.dtype) if need_tau else None,
    )


class _Slopes:
    """The gradient of each score, given that of the rows, ``coef`` (2, N)."""

    def __init__(self, p: Problem, lse: Tensor, inv_sum: Tensor, coef: Tensor):
        self.p, self.lse = p, lse
        weight = coef / p.temperature  # [2, N]
        rows = [weight[k, :, None].expand(-1, frames) for k, frames in enumerate(p.split)]
        self.weight = torch.cat(rows, 1) * (inv_sum != 0)  # [N, T1 + T2]
        self.target = self.weight * inv_sum

    def sides(self, x: Tensor, seqs, rows) -> tuple[Tensor, Tensor]:
        """Factors of the rows and of the columns of a block, (n, rows, 1) and (n, 1, T2)."""
        x1, x2 = x[seqs].split(self.p.split, 1)
        return x1[:, rows, None], x2[:, None]

    def of_softmax_(self, s, seqs, rows, exponentiated=False, spare=None) -> None:
        """Replace the scores, or their exponentials, by the softmax part, in place."""
        lse, weight = self.sides(self.lse, seqs, rows), self.sides(self.weight, seqs, rows)
        softmax_weights_(s, *lse, *weight, self.p.bounded, exponentiated, spare)

    def less_targets_(self, s, seqs, rows, band, g) -> None:
        """Subtract the targets of the weights g on a band, in place."""
        row, column = self.sides(self.target, seqs, rows)
        s[:, :, band].addcmul_(row + column[:, :, band], g, value=-1)


def _forward_group(p: Problem, seqs, lse, sums, kept=None) -> list:
    """Log-denominators of a few sequences, and sums of g and g (s - e) over rows and columns.

    ``kept`` receives the scores, or where bounded their exponentials. In that case the blocks are
    returned with their weights: (sequences, rows, band, g).
    """
    num, every = seqs.stop - seqs.start, slice(0, p.frames1)
    (g1, g2), (u1, u2) = (x.split(p.split, 1) for x in sums)
    softmax = _SoftmaxSums(p, seqs, lse)
    buffer, blocks = None, []
    if kept is None:
        buffer = p.buffer(num)
    else:
        p.scores_(kept, seqs, every)
    for rows, band in p.blocks(seqs):
        if buffer is None:
            s = kept[:, rows]
        else:
            s = p.in_buffer(buffer, seqs, rows)
            p.scores_(s, seqs, rows)
        g, u = target_sums(p, s, seqs, rows, band)
        g1[:, rows], u1[:, rows] = g.sum(2), u.sum(2)
        g2[:, band] += g.sum(1)
        u2[:, band] += u.sum(1)
        if buffer is None:
            blocks.append((seqs, rows, band, g))
        else:
            softmax.add_(s, rows)
    if buffer is None:
        softmax.add_(kept, every, keep=True)
    softmax.finish()
    return blocks


def target_sums(p: Problem, s, seqs, rows, band) -> tuple[Tensor, Tensor]:
    """g, and g (s - e), or g s for "ce", of a block of scores on its band."""
    g, e = p.targets(seqs, rows, band)
    u = s[:, :, band] - e if p.opts.objective == "kl" else s[:, :, band].clone()
    return g, u.mul_(g)


class _SoftmaxSums:
    """Log-denominators (n, T1 + T2) of a few sequences, from blocks of their scores."""

    def __init__(self, p: Problem, seqs, lse: Tensor):
        self.p, self.seqs = p, seqs
        self.rows, self.columns = lse.split(p.split, 1)
        # Columns: running sums over the row blocks (and a running maximum unless bounded).
        self.sum = torch.zeros_like(self.columns)
        self.top = torch.full_like(self.columns, MASKED)

    def add_(self, s, rows, keep=False) -> None:
        """Add a block. Bounded: scores are overwritten by their exponentials. Otherwise they are
        overwritten unless ``keep``."""
        p = self.p
        real = None if p.real1 is None else p.real1[self.seqs, None, rows]  # [n, 1, rows]
        if p.bounded:
            s.exp_()
            if p.real2 is not None:
                s.mul_(p.real2[self.seqs, None])
            self.rows[:, rows] = s.sum(2)
            self.sum += s.sum(1) if real is None else torch.bmm(real, s)[:, 0]
            return
        self.rows[:, rows] = torch.logsumexp(s, 2)
        if real is not None:
            s.masked_fill_(real.mT == 0, MASKED)
        top = torch.maximum(self.top, s.amax(1))
        shifted = torch.sub(s, top[:, None], out=None if keep else s).exp_()
        self.sum.mul_((self.top - top).exp_()).add_(shifted.sum(1))
        self.top = top

    def finish(self) -> None:
        if self.p.bounded:
            self.rows.log_()
            torch.log(self.sum, out=self.columns)
        else:
            torch.add(self.sum.log_(), self.top, out=self.columns)


def _row_targets(g_sum, u_sum, opts: SCLOptions, inv_out) -> Tensor:
    """The bracket of KL = lse + [sum_j w_ij (log w_ij - s_ij)]; writes 1 / G to inv_out.

    With G = sum_j g_ij: w = g / G and log w = e - log G, so the bracket is
    - log G - sum_j g (s - e) / G. Without the entropy ("ce") it is - sum_j g s / G.
    """
    none = g_sum == 0
    torch.reciprocal(g_sum, out=inv_out).masked_fill_(none, 0)
    rows = -u_sum * inv_out
    if opts.objective == "kl":
        rows -= g_sum.masked_fill(none, 1).log_()
    return rows


def _backward_group(p: Problem, seqs, slopes: _Slopes, dz1, dz2) -> None:
    num = seqs.stop - seqs.start
    buffer, spare_buffer = p.buffer(num), p.buffer(num)
    for rows, band in p.blocks(seqs):
        s, spare = (p.in_buffer(room, seqs, rows) for room in (buffer, spare_buffer))
        p.scores_(s, seqs, rows)
        g, _ = p.targets(seqs, rows, band)
        slopes.of_softmax_(s, seqs, rows, spare=spare)
        slopes.less_targets_(s, seqs, rows, band, g)
        if dz1 is not None:
            torch.bmm(s, p.z2[seqs], out=dz1[seqs, rows])
        if dz2 is not None:
            dz2[seqs].baddbmm_(s.mT, p.z1[seqs, rows], beta=float(rows.start > 0))


def softmax_weights_(
    s, lse_row, lse_col, c_row, c_col, bounded: bool, exponentiated=False, spare=None
) -> None:
    """In place: scores -> c_row softmax over the row + c_col softmax over the column."""
    if bounded:  # one exp for both directions
        if not exponentiated:
            s.exp_()
        s.mul_(torch.add(c_row * (-lse_row).exp(), c_col * (-lse_col).exp(), out=spare))
        return
    spare = torch.sub(s, lse_col, out=spare).exp_().mul_(c_col)
    s.sub_(lse_row).exp_().mul_(c_row).add_(spare)


def _self_lse(p: Problem, z, m, group) -> Tensor:
    out = z.new_empty(z.shape[:2])
    for b, rows, s in p.self_scores(z, m, group):
        out[b, rows] = torch.logsumexp(s, 1)
    return out


def _backward_same_side(p: Problem, slopes: _Slopes, dz1, dz2, slope) -> None:
    """Softmax gradients through the candidates of the rows' own side (scores are symmetric).

    ``slope``, if not None, accumulates the sum of all scores times their gradients. Both frames of
    a pair include it, hence the factor 1/2.
    """
    if p.opts.negatives == "cross":
        return
    parts = []
    for (z, m, group, lse), (_, _, _, c) in zip(
        p.same_side(slopes.lse), p.same_side(slopes.weight), strict=True
    ):
        dz = torch.zeros_like(z)
        for b, rows, s in p.self_scores(z, m, group):
            sides = [x for y in (lse, c) for x in (y[b, rows, None], y[b])]
            softmax_weights_(s, *sides, p.bounded)
            torch.mm(s, z[b], out=dz[b, rows])
        parts.append(dz)
        if slope is not None:
            slope += torch.linalg.vecdot(dz, z).sum() / 2
    if p.opts.negatives == "batch" and parts:
        dz = parts[0].view(p.n, p.frames1 + p.frames2, p.z1.shape[2])
        parts = [dz[:, : p.frames1], dz[:, p.frames1 :]]
    for total, dz in zip((dz1, dz2), parts, strict=False):
        if total is not None:
            total += dz


def through_norm(dz, z, rn, valid, dtype, opts: SCLOptions) -> Tensor:
    """From the gradient of the normalised embedding to the gradient of the embedding itself."""
    if opts.normalize:
        # Below NORM_EPS the norm is a constant, as in torch.nn.functional.normalize.
        inside = torch.linalg.vecdot(dz, z) * (rn < 1 / NORM_EPS)
        dz.addcmul_(z, inside[..., None], value=-1).mul_(rn[..., None])
    if valid is not None:
        dz.masked_fill_(~valid_mask(valid, *dz.shape[:2], dz.device)[..., None], 0)
    return dz.to(dtype)
