"""Blockwise backend: any device, memory O(N T D), never a T x T matrix.

Rows are taken in blocks whose similarities fit the cache. One block serves both directions, and
its Gaussian is only formed on the columns within reach of its rows. Cosines over a temperature
that is not tiny need no running maximum (``bounded``): one exp then serves both directions.
"""

import math

import torch
from torch import Tensor

from fastseq.ops.common.lengths import shift_times, valid_mask
from fastseq.ops.scl.options import (
    MAX_EXPONENT,
    NORM_EPS,
    ROWS,
    SCLOptions,
    padded,
    reach,
    row_coefficients,
)

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
    """Loss, statistics = log-denominators, inverse Gaussian sums, inverse norms of all rows, in the
    shape that the kernels need, and the coefficients (2, N) of the reduction."""
    p = _Problem(z1, z2, t1, t2, valid1, valid2, opts)
    stats = z1.new_empty((3, p.n, p.frames1 + p.frames2), dtype=p.dtype)
    lse, inv_sum, inv_norm = stats
    lse.fill_(MASKED)  # stays where the other view has no frame at all
    inv_sum.zero_()
    torch.cat([p.rn1, p.rn2], 1, out=inv_norm)
    rows = torch.zeros_like(lse)
    for seqs in p.groups():
        _forward_group(p, seqs, lse[seqs], inv_sum[seqs], rows[seqs])
    for z, m, group, out in p.same_side(lse):
        torch.logaddexp(out, _self_lse(p, z, m, group), out=out)
    has_target = inv_sum != 0  # NaN of a NaN timestamp stays
    rows = torch.where(has_target, rows + lse, 0)
    # exp(score - 1e30) = 0: rows without target have no softmax part either.
    lse.masked_fill_(~has_target, -MASKED)
    coef = row_coefficients(p.m1, p.m2, opts.reduction, p.dtype)
    loss = coef[0] * rows[:, : p.frames1].sum(1) + coef[1] * rows[:, p.frames1 :].sum(1)
    kept = stats.new_zeros((ROWS, p.n, padded(p.frames1) + padded(p.frames2)))
    kept[:3, :, : stats.shape[2]] = stats
    return loss if opts.reduction == "none" else loss.sum(), kept, coef


def backward(grad, z1, z2, t1, t2, valid1, valid2, stats, coef, opts: SCLOptions, needs):
    """Gradients of z1 and z2 (None where not needed)."""
    need1, need2 = needs
    stats = stats[:3, :, : z1.shape[1] + z2.shape[1]].contiguous()
    p = _Problem(z1, z2, t1, t2, valid1, valid2, opts, inv_norm=stats[2])
    lse, inv_sum, _ = stats
    weight = coef * grad / opts.temperature  # [2, N]
    weight = torch.cat(
        [weight[0, :, None].expand(-1, p.frames1), weight[1, :, None].expand(-1, p.frames2)], 1
    ) * (inv_sum != 0)  # [N, T1 + T2]
    dz1 = (torch.empty_like if p.frames2 else torch.zeros_like)(p.z1) if need1 else None
    dz2 = (torch.empty_like if p.frames1 else torch.zeros_like)(p.z2) if need2 else None
    for seqs in p.groups():
        _backward_group(p, seqs, lse[seqs], inv_sum[seqs], weight[seqs], dz1, dz2)
    _backward_same_side(p, lse, weight, dz1, dz2)
    return (
        _through_norm(dz1, p.z1, p.rn1, valid1, z1.dtype, opts) if need1 else None,
        _through_norm(dz2, p.z2, p.rn2, valid2, z2.dtype, opts) if need2 else None,
    )


class _Problem:
    """The inputs in the form that the loops want: masked, normalised, times shifted."""

    def __init__(self, z1, z2, t1, t2, valid1, valid2, opts, inv_norm=None):
        (self.n, self.frames1, _), self.frames2 = z1.shape, z2.shape[1]
        self.opts, self.device = opts, z1.device
        self.dtype = torch.float64 if z1.dtype == torch.float64 else torch.float32
        self.m1 = valid_mask(valid1, self.n, self.frames1, z1.device)
        self.m2 = valid_mask(valid2, self.n, self.frames2, z2.device)
        rn1, rn2 = (
            (None, None) if inv_norm is None else inv_norm.split([self.frames1, self.frames2], 1)
        )
        self.z1, self.rn1 = self._embed(z1, None if valid1 is None else self.m1, rn1)
        self.z2, self.rn2 = self._embed(z2, None if valid2 is None else self.m2, rn2)
        self.bounded = opts.normalize and opts.temperature >= MIN_BOUNDED_TEMPERATURE
        self.log_scale = torch.full((), LOG_SCALE, dtype=self.dtype, device=self.device)
        # Padded columns, [N, T2]: bounded scores are masked after exp, which is slow far below 0.
        self.bias = self.real2 = None
        if valid2 is not None and self.bounded:
            self.real2 = self.m2.to(self.dtype)
        elif valid2 is not None:
            self.bias = _bias(self.m2, self.dtype)
        if t1 is None:
            t1 = torch.arange(self.frames1, device=z1.device, dtype=self.dtype).expand_as(self.m1)
            t2 = torch.arange(self.frames2, device=z1.device, dtype=self.dtype).expand_as(self.m2)
        # One row of times, one Gaussian, where all sequences have the same.
        no_padding = valid1 is None and valid2 is None
        self.shared_times = no_padding and t1.stride(0) == t2.stride(0) == 0
        lead = slice(0, 1) if self.shared_times else slice(None)
        m1, m2 = self.m1[lead], self.m2[lead]
        t1, t2 = shift_times(t1[lead], t2[lead], m1, m2, self.dtype)
        self.t1 = torch.where(m1, t1, FAR)
        self.t2 = torch.where(m2, t2, -FAR)
        self._find_bands(t2, m2)

    def _embed(self, z, mask, rn):
        z = z.to(self.dtype)
        if mask is not None:
            z = torch.where(mask[..., None], z, 0)
        if rn is None:
            rn = z.new_ones(z.shape[:2])
            if self.opts.normalize:
                rn = 1 / torch.linalg.vector_norm(z, dim=-1).clamp(min=NORM_EPS)
        return (z * rn[..., None] if self.opts.normalize else z), rn

    def _find_bands(self, t2, m2):
        """Sorted times allow column bands. Looking costs a host read, so only on the CPU."""
        self.keys = None
        if self.device.type == "cpu" and self.frames2:
            keys = torch.where(m2, t2, -FAR).cummax(1).values
            if bool(((keys == t2) | ~m2).all()):
                self.keys = keys

    def groups(self):
        """Slices of sequences whose blocks are worked on together."""
        if self.frames1 and self.frames2:
            yield from _blocks(self.n, max(1, SHORT_ELEMENTS // (SHORT_ROWS * self.frames2)))

    def rows_per_block(self, num: int) -> int:
        if num > 1:
            return SHORT_ROWS
        return max(1, min(LONG_ROWS, LONG_ELEMENTS // max(self.frames2, 1)))

    def row_blocks(self, num: int):
        return _blocks(self.frames1, self.rows_per_block(num))

    def buffer(self, num: int) -> Tensor:
        """Room for the scores of the largest row block of ``num`` sequences."""
        return self.z1.new_empty((num, min(self.frames1, self.rows_per_block(num)), self.frames2))

    def band(self, seqs, rows) -> slice:
        """Columns that some row of the block can reach."""
        if self.keys is None:
            return slice(0, self.frames2)
        lead = self._lead(seqs)
        t, far = self.t1[lead, rows], reach(self.opts.variance)
        low = t.amin(1, keepdim=True) - far
        high = torch.where(t < FAR, t, -FAR).amax(1, keepdim=True) + far
        start = torch.searchsorted(self.keys[lead], low).amin()
        stop = torch.searchsorted(self.keys[lead], high, right=True).amax()
        return slice(int(start), int(stop))

    def _lead(self, seqs) -> slice:
        return slice(0, 1) if self.shared_times else seqs

    def scores(self, seqs, rows, out):
        """Scores of a block: (n, rows, T2). Padded columns: MASKED, or 0 where bounded."""
        shape = (out.shape[0], rows.stop - rows.start, self.frames2)
        s = out.view(-1)[: math.prod(shape)].view(shape)
        scale = 1 / self.opts.temperature
        s.baddbmm_(self.z1[seqs, rows], self.z2[seqs].mT, beta=0, alpha=scale)
        return s if self.bias is None else s.add_(self.bias[seqs, None])

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


def _forward_group(p: _Problem, seqs, lse, inv_sum, rows_out) -> None:
    """Row and column statistics of a few sequences; rows_out gets the loss less the lse."""
    num = seqs.stop - seqs.start
    split = [p.frames1, p.frames2]
    (lse1, lse2), (inv1, inv2) = lse.split(split, 1), inv_sum.split(split, 1)
    out1, out2 = rows_out.split(split, 1)
    # Columns: running sums over the row blocks (and a running maximum unless bounded).
    col_sum, col_g, col_u = p.z1.new_zeros((3, num, p.frames2))
    col_max = p.z1.new_full((num, p.frames2), MASKED)
    buffer = p.buffer(num)
    for rows in p.row_blocks(num):
        s = p.scores(seqs, rows, buffer)
        band = p.band(seqs, rows)
        g, e = p.gaussian(seqs, rows, band)
        u = s[:, :, band] - e if p.opts.objective == "kl" else s[:, :, band].clone()
        u.mul_(g)
        _row_targets(g.sum(2), u.sum(2), p.opts, inv1[:, rows], out1[:, rows])
        col_g[:, band] += g.sum(1)
        col_u[:, band] += u.sum(1)
        real = p.m1[seqs, rows].to(p.dtype)[:, None, :]  # [n, 1, rows]
        if p.bounded:
            s.exp_()
            if p.real2 is not None:
                s.mul_(p.real2[seqs, None])
            torch.log(s.sum(2), out=lse1[:, rows])
            col_sum[:, None].baddbmm_(real, s)
        else:
            lse1[:, rows] = torch.logsumexp(s, 2)
            s.masked_fill_(real.mT == 0, MASKED)
            top = torch.maximum(col_max, s.amax(1))
            col_sum.mul_((col_max - top).exp_()).add_(s.sub_(top[:, None]).exp_().sum(1))
            col_max = top
    lse2[:] = col_sum.log() + (0 if p.bounded else col_max)
    _row_targets(col_g, col_u, p.opts, inv2, out2)


def _row_targets(g_sum, u_sum, opts: SCLOptions, inv_out, rows_out) -> None:
    """KL = lse + [sum_j w_ij (log w_ij - s_ij)], of which this is the bracket.

    With G = sum_j g_ij: w = g / G and log w = e - log G, so the bracket is
    - log G - sum_j g (s - e) / G. Without the entropy ("ce") it is - sum_j g s / G.
    """
    inv_out[:] = torch.where(g_sum == 0, 0, 1 / g_sum)
    rows_out[:] = -u_sum * inv_out
    if opts.objective == "kl":
        rows_out -= torch.where(g_sum == 0, 1, g_sum).log()


def _backward_group(p: _Problem, seqs, lse, inv_sum, weight, dz1, dz2) -> None:
    num = seqs.stop - seqs.start
    split = [p.frames1, p.frames2]
    (lse1, lse2), (c1, c2) = lse.split(split, 1), weight.split(split, 1)
    e1, e2 = (weight * inv_sum).split(split, 1)
    buffer, spare_buffer = p.buffer(num), p.buffer(num)
    for rows in p.row_blocks(num):
        s = p.scores(seqs, rows, buffer)
        spare = spare_buffer.view(-1)[: s.numel()].view(s.shape)
        _softmax_weights_(s, spare, lse1[:, rows], lse2, c1[:, rows], c2, p.bounded)
        band = p.band(seqs, rows)
        g, _ = p.gaussian(seqs, rows, band)
        s[:, :, band].addcmul_(e1[:, rows, None] + e2[:, None, band], g, value=-1)
        if dz1 is not None:
            torch.bmm(s, p.z2[seqs], out=dz1[seqs, rows])
        if dz2 is not None:
            dz2[seqs].baddbmm_(s.mT, p.z1[seqs, rows], beta=float(rows.start > 0))


def _softmax_weights_(s, spare, lse_row, lse_col, c_row, c_col, bounded: bool) -> None:
    """In place: scores -> c_row softmax over the row + c_col softmax over the column."""
    if bounded:  # one exp serves both
        torch.add(
            (c_row * (-lse_row).exp())[..., None], (c_col * (-lse_col).exp())[:, None], out=spare
        )
        s.exp_().mul_(spare)
        return
    torch.sub(s, lse_col[:, None], out=spare).exp_().mul_(c_col[:, None])
    s.sub_(lse_row[..., None]).exp_().mul_(c_row[..., None]).add_(spare)


def _self_lse(p: _Problem, z, m, group) -> Tensor:
    out = z.new_empty(z.shape[:2])
    for b, rows, s in p.self_scores(z, m, group):
        out[b, rows] = torch.logsumexp(s, 1)
    return out


def _backward_same_side(p: _Problem, lse, weight, dz1, dz2) -> None:
    """Softmax gradients through the candidates of the rows' own side (scores are symmetric)."""
    parts = []
    for (z, m, group, lse_rows), (_, _, _, c) in zip(
        p.same_side(lse), p.same_side(weight), strict=True
    ):
        dz = torch.zeros_like(z)
        for b, rows, s in p.self_scores(z, m, group):
            pair = slice(b, b + 1)
            s = s[None]
            _softmax_weights_(
                s,
                torch.empty_like(s),
                lse_rows[pair, rows],
                lse_rows[pair],
                c[pair, rows],
                c[pair],
                p.bounded,
            )
            torch.mm(s[0], z[b], out=dz[b, rows])
        parts.append(dz)
    if p.opts.negatives == "batch" and parts:
        dz = parts[0].view(p.n, p.frames1 + p.frames2, p.z1.shape[2])
        parts = [dz[:, : p.frames1], dz[:, p.frames1 :]]
    for total, dz in zip((dz1, dz2), parts, strict=False):
        if total is not None:
            total += dz


def _through_norm(dz, z, rn, valid, dtype, opts: SCLOptions) -> Tensor:
    """From the gradient of the normalised embedding to that of the embedding itself."""
    if opts.normalize:
        # Below NORM_EPS the norm is a constant, as in torch.nn.functional.normalize.
        inside = (dz * z).sum(-1) * (rn < 1 / NORM_EPS)
        dz.addcmul_(z, inside[..., None], value=-1).mul_(rn[..., None])
    if valid is not None:
        dz.masked_fill_(~valid_mask(valid, *dz.shape[:2], dz.device)[..., None], 0)
    return dz.to(dtype)
