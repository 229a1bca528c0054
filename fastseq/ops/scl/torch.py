"""Blockwise backend: any device, memory O(N T D), never a T x T matrix.

Rows are taken in blocks whose similarities fit the cache. One block serves both directions, and
its Gaussian is only formed on the columns within reach of its rows. Cosines over a temperature
that is not tiny need no running maximum (``bounded``): one exp then serves both directions.
The forward of a short call keeps the gradient by each score, and its backward is two products.
"""

import math

import torch
from torch import Tensor

from fastseq.ops.common.lengths import shift_times, valid_mask
from fastseq.ops.common.short import kept_pairs
from fastseq.ops.scl.options import MAX_EXPONENT, NORM_EPS, SCLOptions, reach, row_coefficients

# Measured on two cores at T = 240 to 4096: short sequences share a block of few rows (a narrow
# Gaussian band, and the block stays in the L2 cache), long ones want rows for the matrix product.
SHORT_ROWS, SHORT_ELEMENTS = 80, 1 << 18
LONG_ROWS, LONG_ELEMENTS = 128, 1 << 20
# Cosines over at least this: exp(+-40), and the sum of 10^20 of them, are normal fp32 numbers.
MIN_BOUNDED_TEMPERATURE = 0.025
# Gaussians carry a factor 2^32, so that every weight within reach is a normal fp32 number.
LOG_SCALE = 32 * math.log(2)
SMALLEST_WEIGHT = math.exp(LOG_SCALE - MAX_EXPONENT)
MASKED = -1e30  # a score that exp turns into exactly 0, without the NaN of 0 * inf
FAR = 1e38  # the time of padded frames, beyond any shifted integer


def forward(z1, z2, t1, t2, valid1, valid2, opts: SCLOptions, needs):
    """Loss, statistics (3, N, T1 + T2) = log-denominators, inverse Gaussian sums, inverse norms
    of all rows, the coefficients (2, N) of the reduction, and of a short call the gradient by each
    score (N, T1, T2) where that of the loss is 1."""
    p = _Problem(z1, z2, valid1, valid2, opts)
    p.set_times(t1, t2, valid1, valid2)
    stats = z1.new_empty((3, p.n, p.frames1 + p.frames2), dtype=p.dtype)
    lse, inv_sum, inv_norm = stats
    lse.fill_(MASKED)  # stays where the other view has no frame at all
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
    has_target = inv_sum != 0  # NaN of a NaN timestamp stays
    rows = torch.where(has_target, rows + lse, 0)
    # exp(score - 1e30) = 0: rows without target have no softmax part either.
    lse.masked_fill_(~has_target, -MASKED)
    coef = row_coefficients(p.m1, p.m2, opts.reduction, p.dtype)
    loss = coef[0] * rows[:, : p.frames1].sum(1) + coef[1] * rows[:, p.frames1 :].sum(1)
    loss = loss if opts.reduction == "none" else loss.sum()
    if pairs is None:
        return loss, stats, coef
    slopes = _Slopes(p, lse, inv_sum, coef)
    slopes.of_softmax_(pairs, slice(0, p.n), slice(0, p.frames1), exponentiated=p.bounded)
    for seqs, rows, band, g in blocks:
        slopes.less_targets_(pairs[seqs, rows], seqs, rows, band, g)
    return loss, stats, coef, pairs


def backward(
    grad, z1, z2, t1, t2, valid1, valid2, stats, coef, pairs=None, *, opts: SCLOptions, needs
):
    """Gradients of z1 and z2 (None where not needed)."""
    need1, need2 = needs
    lse, inv_sum, inv_norm = stats
    p = _Problem(z1, z2, valid1, valid2, opts, inv_norm)
    slopes = None
    if pairs is None or opts.negatives != "cross":
        slopes = _Slopes(p, lse, inv_sum, coef * grad)
    if pairs is not None:
        dz1 = torch.bmm(pairs, p.z2) if need1 else None
        dz2 = torch.bmm(pairs.mT, p.z1) if need2 else None
        scale = grad.reshape(-1, 1)  # of the loss, or of each video's
    else:
        p.set_times(t1, t2, valid1, valid2)
        dz1 = (torch.empty_like if p.frames2 else torch.zeros_like)(p.z1) if need1 else None
        dz2 = (torch.empty_like if p.frames1 else torch.zeros_like)(p.z2) if need2 else None
        for seqs in p.groups():
            _backward_group(p, seqs, slopes, dz1, dz2)
        scale = None
    if opts.negatives != "cross":
        if scale is not None:
            for dz in (dz1, dz2):
                if dz is not None:
                    dz *= scale[..., None]
            scale = None
        _backward_same_side(p, slopes, dz1, dz2)
    return (
        _through_norm(dz1, p.z1, p.rn1, scale, valid1, z1.dtype, opts) if need1 else None,
        _through_norm(dz2, p.z2, p.rn2, scale, valid2, z2.dtype, opts) if need2 else None,
    )


class _Problem:
    """The inputs in the form that the loops want: masked, normalised, times shifted."""

    def __init__(self, z1, z2, valid1, valid2, opts, inv_norm=None):
        (self.n, self.frames1, _), self.frames2 = z1.shape, z2.shape[1]
        self.opts, self.device, self.split = opts, z1.device, (self.frames1, self.frames2)
        self.dtype = torch.float64 if z1.dtype == torch.float64 else torch.float32
        self.m1 = valid_mask(valid1, self.n, self.frames1, z1.device)
        self.m2 = valid_mask(valid2, self.n, self.frames2, z2.device)
        rn1, rn2 = (None, None) if inv_norm is None else inv_norm.split(self.split, 1)
        self.z1, self.rn1 = self._embed(z1, None if valid1 is None else self.m1, rn1)
        self.z2, self.rn2 = self._embed(z2, None if valid2 is None else self.m2, rn2)
        self.bounded = opts.normalize and opts.temperature >= MIN_BOUNDED_TEMPERATURE
        # Padded columns, [N, T2]: bounded scores are masked after exp, which is slow far below 0.
        self.bias = self.real2 = None
        if valid2 is not None and self.bounded:
            self.real2 = self.m2.to(self.dtype)
        elif valid2 is not None:
            self.bias = _bias(self.m2, self.dtype)
        self.real1 = None if valid1 is None else self.m1.to(self.dtype)

    def set_times(self, t1, t2, valid1, valid2):
        """What ``bands`` and ``gaussian`` need."""
        if t1 is None:
            t1 = torch.arange(self.frames1, device=self.device, dtype=self.dtype)
            t2 = torch.arange(self.frames2, device=self.device, dtype=self.dtype)
            t1, t2 = t1.expand_as(self.m1), t2.expand_as(self.m2)
        # One row of times, one Gaussian, where all sequences have the same.
        no_padding = valid1 is None and valid2 is None
        self.shared_times = no_padding and t1.stride(0) == t2.stride(0) == 0
        lead = slice(0, 1) if self.shared_times else slice(None)
        m1, m2 = self.m1[lead], self.m2[lead]
        self.t1, self.t2 = shift_times(t1[lead], t2[lead], m1, m2, self.dtype)
        self._find_keys(None if no_padding else m2)
        if not no_padding:
            self.t1 = torch.where(m1, self.t1, FAR)
            self.t2 = torch.where(m2, self.t2, -FAR)
        self.log_scale = torch.full((), LOG_SCALE, dtype=self.dtype, device=self.device)

    def _embed(self, z, mask, rn):
        z = z.to(self.dtype)
        if mask is not None:
            z = torch.where(mask[..., None], z, 0)
        if rn is None and self.opts.normalize:
            rn = 1 / torch.linalg.vector_norm(z, dim=-1).clamp(min=NORM_EPS)
        elif rn is None:
            rn = z.new_ones(z.shape[:2])
        return (z * rn[..., None] if self.opts.normalize else z), rn

    def _find_keys(self, mask):
        """Sorted times allow column bands. Looking costs a host read, so only on the CPU."""
        self.keys = None
        if self.device.type == "cpu" and self.frames2:
            keys = self.t2 if mask is None else torch.where(mask, self.t2, -FAR)
            keys = keys.cummax(1).values
            same = keys == self.t2  # not where a time is NaN
            if bool((same if mask is None else same | ~mask).all()):
                self.keys = keys

    def groups(self):
        """Slices of sequences whose blocks are worked on together."""
        if self.frames1 and self.frames2:
            yield from _blocks(self.n, max(1, SHORT_ELEMENTS // (SHORT_ROWS * self.frames2)))

    def rows_per_block(self, num: int) -> int:
        if num > 1:
            return SHORT_ROWS
        return max(1, min(LONG_ROWS, LONG_ELEMENTS // max(self.frames2, 1)))

    def blocks(self, seqs):
        """(rows, columns that some of the rows can reach) of each block of a group."""
        size = self.rows_per_block(seqs.stop - seqs.start)
        rows = list(_blocks(self.frames1, size))
        if self.keys is None:
            return [(r, slice(0, self.frames2)) for r in rows]
        lead, far = self._lead(seqs), reach(self.opts.variance)
        t = self.t1[lead]
        padded = -self.frames1 % size
        if padded:
            t = torch.nn.functional.pad(t, (0, padded), value=FAR)
        t = t.view(len(t), -1, size)
        low, high = t.amin(2) - far, t.masked_fill(t == FAR, -FAR).amax(2) + far
        start = torch.searchsorted(self.keys[lead], low).amin(0)
        stop = torch.searchsorted(self.keys[lead], high, right=True).amax(0)
        bands = map(slice, start.tolist(), stop.tolist())
        return list(zip(rows, bands, strict=True))

    def buffer(self, num: int) -> Tensor:
        """Room for the scores of the largest row block of ``num`` sequences."""
        rows = min(self.frames1, self.rows_per_block(num))
        return self.z1.new_empty(num * rows * self.frames2)

    def in_buffer(self, buffer, seqs, rows) -> Tensor:
        """The part of a buffer that one block takes, (n, rows, T2)."""
        shape = (seqs.stop - seqs.start, rows.stop - rows.start, self.frames2)
        return buffer[: math.prod(shape)].view(shape)

    def _lead(self, seqs) -> slice:
        return slice(0, 1) if self.shared_times else seqs

    def scores_(self, s, seqs, rows):
        """Writes the scores of a block. Padded columns: MASKED, or 0 where bounded."""
        scale = 1 / self.opts.temperature
        s.baddbmm_(self.z1[seqs, rows], self.z2[seqs].mT, beta=0, alpha=scale)
        if self.bias is not None:
            s.add_(self.bias[seqs, None])

    def gaussian(self, seqs, rows, band):
        """Weights g = exp(e) on a block's band, and e = 32 log 2 - d^2 / (2 variance), bounded
        below; beyond reach g is exactly 0. The first dimension is 1 where times are shared."""
        lead = self._lead(seqs)
        gap = self.t1[lead, rows, None] - self.t2[lead, None, band]
        e = torch.addcmul(self.log_scale, gap, gap, value=-0.5 / self.opts.variance)
        # exp of a number that underflows takes 10 to 30 times as long as of one that does not.
        e.clamp_(min=LOG_SCALE - MAX_EXPONENT - 0.5)
        return torch.threshold_(e.exp(), SMALLEST_WEIGHT, 0), e

    def same_side(self, lse):
        """What negatives="video" and "batch" add to the softmax of each row: embeddings to
        compare among themselves, their mask, groups to leave out, and the rows' lse."""
        if self.n == 0 or self.opts.negatives == "cross":
            return
        if self.opts.negatives == "video":
            yield self.z1, self.m1, None, lse[:, : self.frames1]
            yield self.z2, self.m2, None, lse[:, self.frames1 :]
            return
        video = torch.arange(self.n, device=self.device)[:, None].expand_as(lse)
        z = torch.cat([self.z1, self.z2], 1).flatten(0, 1)[None]
        mask = torch.cat([self.m1, self.m2], 1).flatten()[None]
        yield z, mask, video.flatten()[None], lse.view(1, -1)

    def self_scores(self, z, m, group):
        """Blocks of scores of embeddings (B, T, D) among themselves: (b, rows, (1, rows, T))."""
        frames = z.shape[1]
        size = max(1, min(LONG_ROWS, LONG_ELEMENTS // max(frames, 1)))
        bias = _bias(m, self.dtype)
        for b in range(len(z)):
            for rows in _blocks(frames, size):
                s = torch.addmm(bias[b], z[b, rows], z[b].mT, alpha=1 / self.opts.temperature)
                if group is not None:
                    s.masked_fill_(group[b, rows, None] == group[b], MASKED)
                yield b, rows, s


def _blocks(total: int, size: int):
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, MASKED)


class _Slopes:
    """The gradient by each score, where that of the rows is ``coef`` (2, N)."""

    def __init__(self, p: "_Problem", lse: Tensor, inv_sum: Tensor, coef: Tensor):
        self.p, self.lse = p, lse
        weight = coef / p.opts.temperature  # [2, N]
        rows = [weight[k, :, None].expand(-1, frames) for k, frames in enumerate(p.split)]
        self.weight = torch.cat(rows, 1) * (inv_sum != 0)  # [N, T1 + T2]
        self.target = self.weight * inv_sum

    def sides(self, x: Tensor, seqs, rows) -> tuple[Tensor, Tensor]:
        """Of the rows and of the columns of a block, (n, rows, 1) and (n, 1, T2)."""
        x1, x2 = x[seqs].split(self.p.split, 1)
        return x1[:, rows, None], x2[:, None]

    def of_softmax_(self, s, seqs, rows, exponentiated=False, spare=None) -> None:
        """In place of the scores, or of their exponentials."""
        lse, weight = self.sides(self.lse, seqs, rows), self.sides(self.weight, seqs, rows)
        _softmax_weights_(s, *lse, *weight, self.p.bounded, exponentiated, spare)

    def less_targets_(self, s, seqs, rows, band, g) -> None:
        """Takes off what the Gaussian g of a band targets."""
        row, column = self.sides(self.target, seqs, rows)
        s[:, :, band].addcmul_(row + column[:, :, band], g, value=-1)


def _forward_group(p: _Problem, seqs, lse, sums, kept=None) -> list:
    """Log-denominators of a few sequences, and sums over g and g (s - e) of rows and columns.

    ``kept`` gets the scores, or where bounded their exponentials. The blocks are returned then,
    with their Gaussians: (sequences, rows, band, g).
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
        g, e = p.gaussian(seqs, rows, band)
        u = s[:, :, band] - e if p.opts.objective == "kl" else s[:, :, band].clone()
        u.mul_(g)
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


class _SoftmaxSums:
    """Log-denominators (n, T1 + T2) of a few sequences, from blocks of their scores."""

    def __init__(self, p: _Problem, seqs, lse: Tensor):
        self.p, self.seqs = p, seqs
        self.rows, self.columns = lse.split(p.split, 1)
        # Columns: running sums over the row blocks (and a running maximum unless bounded).
        self.sum = torch.zeros_like(self.columns)
        self.top = torch.full_like(self.columns, MASKED)

    def add_(self, s, rows, keep=False) -> None:
        """Overwrites the scores: by their exponentials where bounded; ``keep``: else not at all."""
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
    """KL = lse + [sum_j w_ij (log w_ij - s_ij)], of which this is the bracket; inv_out gets 1 / G.

    With G = sum_j g_ij: w = g / G and log w = e - log G, so the bracket is
    - log G - sum_j g (s - e) / G. Without the entropy ("ce") it is - sum_j g s / G.
    """
    none = g_sum == 0
    torch.reciprocal(g_sum, out=inv_out).masked_fill_(none, 0)
    rows = -u_sum * inv_out
    if opts.objective == "kl":
        rows -= g_sum.masked_fill(none, 1).log_()
    return rows


def _backward_group(p: _Problem, seqs, slopes: _Slopes, dz1, dz2) -> None:
    num = seqs.stop - seqs.start
    buffer, spare_buffer = p.buffer(num), p.buffer(num)
    for rows, band in p.blocks(seqs):
        s, spare = (p.in_buffer(room, seqs, rows) for room in (buffer, spare_buffer))
        p.scores_(s, seqs, rows)
        g, _ = p.gaussian(seqs, rows, band)
        slopes.of_softmax_(s, seqs, rows, spare=spare)
        slopes.less_targets_(s, seqs, rows, band, g)
        if dz1 is not None:
            torch.bmm(s, p.z2[seqs], out=dz1[seqs, rows])
        if dz2 is not None:
            dz2[seqs].baddbmm_(s.mT, p.z1[seqs, rows], beta=float(rows.start > 0))


def _softmax_weights_(
    s, lse_row, lse_col, c_row, c_col, bounded: bool, exponentiated=False, spare=None
) -> None:
    """In place: scores -> c_row softmax over the row + c_col softmax over the column."""
    if bounded:  # one exp serves both
        if not exponentiated:
            s.exp_()
        s.mul_(torch.add(c_row * (-lse_row).exp(), c_col * (-lse_col).exp(), out=spare))
        return
    spare = torch.sub(s, lse_col, out=spare).exp_().mul_(c_col)
    s.sub_(lse_row).exp_().mul_(c_row).add_(spare)


def _self_lse(p: _Problem, z, m, group) -> Tensor:
    out = z.new_empty(z.shape[:2])
    for b, rows, s in p.self_scores(z, m, group):
        out[b, rows] = torch.logsumexp(s, 1)
    return out


def _backward_same_side(p: _Problem, slopes: _Slopes, dz1, dz2) -> None:
    """Softmax gradients through the candidates of the rows' own side (scores are symmetric)."""
    parts = []
    for (z, m, group, lse), (_, _, _, c) in zip(
        p.same_side(slopes.lse), p.same_side(slopes.weight), strict=True
    ):
        dz = torch.zeros_like(z)
        for b, rows, s in p.self_scores(z, m, group):
            sides = [x for y in (lse, c) for x in (y[b, rows, None], y[b])]
            _softmax_weights_(s, *sides, p.bounded)
            torch.mm(s, z[b], out=dz[b, rows])
        parts.append(dz)
    if p.opts.negatives == "batch" and parts:
        dz = parts[0].view(p.n, p.frames1 + p.frames2, p.z1.shape[2])
        parts = [dz[:, : p.frames1], dz[:, p.frames1 :]]
    for total, dz in zip((dz1, dz2), parts, strict=False):
        if total is not None:
            total += dz


def _through_norm(dz, z, rn, scale, valid, dtype, opts: SCLOptions) -> Tensor:
    """From the gradient of the normalised embedding to ``scale`` times that of the embedding."""
    if opts.normalize:
        # Below NORM_EPS the norm is a constant, as in torch.nn.functional.normalize.
        inside = torch.linalg.vecdot(dz, z) * (rn < 1 / NORM_EPS)
        dz.addcmul_(z, inside[..., None], value=-1)
        scale = rn if scale is None else rn * scale
    if scale is not None:
        dz.mul_(scale[..., None])
    if valid is not None:
        dz.masked_fill_(~valid_mask(valid, *dz.shape[:2], dz.device)[..., None], 0)
    return dz.to(dtype)
