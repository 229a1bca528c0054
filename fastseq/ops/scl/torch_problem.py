"""Blockwise backend: the inputs in the form its loops need, and the blocks of these loops."""

import math

import torch
from torch import Tensor

from fastseq.ops.common.lengths import shift_times, valid_mask
from fastseq.ops.scl.options import MAX_EXPONENT, NORM_EPS, log_target, reach, scalars

# Measured on two cores at T = 240 to 4096: short sequences share a block of few rows (a narrow
# Gaussian band, and the block stays in the L2 cache); long ones need more rows per matrix product.
SHORT_ROWS, SHORT_ELEMENTS = 80, 1 << 18
LONG_ROWS, LONG_ELEMENTS = 128, 1 << 20
# From this temperature on, scores stay within +-40, so exp and sums of up to 1e20 terms are normal
# fp32 numbers.
MIN_BOUNDED_TEMPERATURE = 0.025
# Gaussians carry a factor 2^32, so that every weight within reach is a normal fp32 number.
LOG_SCALE = 32 * math.log(2)
SMALLEST_WEIGHT = math.exp(LOG_SCALE - MAX_EXPONENT)
MASKED = -1e30  # a score that exp turns into exactly 0, without the NaN of 0 * inf
FAR = 1e38  # the time of padded frames, beyond any shifted integer


class Problem:
    """The inputs in the form that the loops need: masked, normalised, times shifted."""

    def __init__(self, z1, z2, tau, var, valid1, valid2, opts, inv_norm=None):
        (self.n, self.frames1, _), self.frames2 = z1.shape, z2.shape[1]
        self.opts, self.device, self.split = opts, z1.device, (self.frames1, self.frames2)
        self.dtype = torch.float64 if z1.dtype == torch.float64 else torch.float32
        self.m1 = valid_mask(valid1, self.n, self.frames1, z1.device)
        self.m2 = valid_mask(valid2, self.n, self.frames2, z2.device)
        rn1, rn2 = (None, None) if inv_norm is None else inv_norm.split(self.split, 1)
        self.z1, self.rn1 = self._embed(z1, None if valid1 is None else self.m1, rn1)
        self.z2, self.rn2 = self._embed(z2, None if valid2 is None else self.m2, rn2)
        self.temperature, self.variance = map(_known, scalars(tau, var, opts, self.dtype))
        known = not isinstance(self.temperature, Tensor)
        self.bounded = opts.normalize and known and self.temperature >= MIN_BOUNDED_TEMPERATURE
        # Padded columns, [N, T2]: bounded scores are masked after exp, which is slow far below 0.
        self.bias = self.real2 = None
        if valid2 is not None and self.bounded:
            self.real2 = self.m2.to(self.dtype)
        elif valid2 is not None:
            self.bias = _bias(self.m2, self.dtype)
        self.real1 = None if valid1 is None else self.m1.to(self.dtype)

    def set_times(self, t1, t2, valid1, valid2):
        """Prepare the times for ``blocks`` and ``targets``."""
        if t1 is None:
            t1 = torch.arange(self.frames1, device=self.device, dtype=self.dtype)
            t2 = torch.arange(self.frames2, device=self.device, dtype=self.dtype)
            t1, t2 = t1.expand_as(self.m1), t2.expand_as(self.m2)
        # One row of times and one target if all sequences have the same times.
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

    def without_targets(self):
        """In place of `set_times`: ``blocks`` then have empty bands."""
        self.keys, self.t1 = None, None

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
        """Sorted times allow column bands. Checking costs a host read, so only on the CPU."""
        self.keys = None
        if self.device.type == "cpu" and self.frames2:
            keys = self.t2 if mask is None else torch.where(mask, self.t2, -FAR)
            keys = keys.cummax(1).values
            same = keys == self.t2  # False where a time is NaN
            if bool((same if mask is None else same | ~mask).all()):
                self.keys = keys

    def groups(self):
        """Slices of sequences whose blocks are processed together."""
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
        if self.t1 is None:
            return [(r, slice(0, 0)) for r in rows]
        if self.keys is None:
            return [(r, slice(0, self.frames2)) for r in rows]
        lead, far = self._lead(seqs), reach(self.variance, self.opts.target)
        if self.opts.target != "gauss":
            far = far * (1 + 1e-5)  # their last targets count, however differences are rounded
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
        """Memory for the scores of the largest row block of ``num`` sequences."""
        rows = min(self.frames1, self.rows_per_block(num))
        return self.z1.new_empty(num * rows * self.frames2)

    def in_buffer(self, buffer, seqs, rows) -> Tensor:
        """The part of a buffer that one block uses, (n, rows, T2)."""
        shape = (seqs.stop - seqs.start, rows.stop - rows.start, self.frames2)
        return buffer[: math.prod(shape)].view(shape)

    def _lead(self, seqs) -> slice:
        return slice(0, 1) if self.shared_times else seqs

    def scores_(self, s, seqs, rows):
        """Write the scores of a block. Padded columns: MASKED, or 0 where bounded."""
        z, scale = self._scaled(self.z1[seqs, rows])
        s.baddbmm_(z, self.z2[seqs].mT, beta=0, alpha=scale)
        if self.bias is not None:
            s.add_(self.bias[seqs, None])

    def _scaled(self, z):
        """Embeddings and a factor; products with other embeddings times it are scores."""
        scale = 1 / self.temperature
        return (z * scale, 1) if isinstance(scale, Tensor) else (z, scale)

    def targets(self, seqs, rows, band):
        """Weights g = exp(e) on a block's band, and e, bounded below; beyond reach g is exactly 0.
        The first dimension is 1 where times are shared."""
        lead = self._lead(seqs)
        gap = self.t1[lead, rows, None] - self.t2[lead, None, band]
        if self.opts.target == "gauss":
            return self._gaussian(gap)
        far = reach(self.variance, self.opts.target)
        outside = gap.abs_() > far
        e = log_target(gap.clamp_(max=far), self.variance, self.opts.target)
        return e.exp().masked_fill_(outside, 0), e

    def _gaussian(self, gap):
        """g and e = 32 log 2 - d^2 / (2 variance)."""
        rate = -0.5 / self.variance
        if isinstance(rate, Tensor):
            e = torch.addcmul(self.log_scale, gap * rate, gap)
        else:
            e = torch.addcmul(self.log_scale, gap, gap, value=rate)
        # exp is 10 to 30 times slower on numbers that underflow.
        e.clamp_(min=LOG_SCALE - MAX_EXPONENT - 0.5)
        return torch.threshold_(e.exp(), SMALLEST_WEIGHT, 0), e

    def same_side(self, lse):
        """Additional softmax terms of negatives="video" and "batch": embeddings to compare among
        themselves, their mask, groups to leave out, and the rows' lse."""
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
                some, scale = self._scaled(z[b, rows])
                s = torch.addmm(bias[b], some, z[b].mT, alpha=scale)
                if group is not None:
                    s.masked_fill_(group[b, rows, None] == group[b], MASKED)
                yield b, rows, s


def _known(x: Tensor | float) -> Tensor | float:
    """The number itself where reading it does not wait for a GPU."""
    return x.item() if isinstance(x, Tensor) and x.device.type == "cpu" else x


def _blocks(total: int, size: int):
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, MASKED)
