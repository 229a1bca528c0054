"""Blockwise backend: any device, memory O(N T D), and a T x T matrix only in short calls.

Rows are processed in blocks, against the frames from the block's first one on; the rest follows by
symmetry. Embeddings are taken relative to the block's first frame, which keeps the digits of
distances that are small beside the norms. The forward of a short call keeps the slopes of all
pairs, and its backward computes no distance.

A pair's term of the loss is ``slope * value``, and ``-slope`` is its derivative by the distance.
The value is margin - D for far pairs and -D for near ones.
"""

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.common.short import kept_pairs
from fastseq.ops.contrastive_idm.options import CIDMOptions, coefficients, pair_times

# Short sequences share a block of few rows (it stays in the L2 cache, and less of the square on the
# diagonal is computed twice); long ones need more rows per matrix product.
SHORT_ROWS, SHORT_ELEMENTS = 120, 1 << 18
LONG_ROWS, LONG_ELEMENTS = 128, 1 << 19
# Rounding error of a distance, relative to the norms that it was computed from; an upper bound.
ROUNDINGS = 16 * torch.finfo(torch.float32).eps
DOUBTFUL_AT_ONCE = 4096


def forward(
    z, t, lengths, windows, opts: CIDMOptions, needs
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss; the coefficients (N,) of the reduction; and for a short call the slopes (N, T, T), with
    minus the sums of the rows on the diagonal."""
    p = _Problem(z, t, lengths, windows, opts)
    shape = kept_pairs(z, z, needs)
    kept = None if shape is None else p.z.new_empty(shape)
    sums = p.z.new_empty(p.z.shape[:2])
    for seqs, rows, near in p.blocks():
        out = None if kept is None else kept[seqs, rows, rows.start :]
        block = _Block(p, seqs, rows)
        slope, value = block.terms(near, out, exact=kept is not None)
        terms = value.mul_(slope)
        twice = 2 * terms.sum(2)
        torch.sub(twice, terms[:, :, : block.square].sum(2), out=sums[seqs, rows])
        if kept is not None:
            block.by_square_(slope)
            if rows.stop < p.frames:
                kept[seqs, rows.stop :, rows] = slope[:, :, block.square :].mT
    coef = coefficients(p.real, p.times, opts.reduction, p.z.dtype)
    loss = coef * sums.sum(1)
    loss = loss if opts.reduction == "none" else loss.sum()
    if kept is not None:
        diagonal = kept.diagonal(dim1=1, dim2=2)
        diagonal -= kept.sum(2)
    return loss, coef, kept


def backward(grad, z, t, lengths, windows, coef, kept, opts: CIDMOptions, needs) -> tuple[Tensor]:
    p = _Problem(z, t, lengths, windows, opts, times=kept is None)
    if kept is not None:
        dz = torch.bmm(kept, p.z - p.z[:, :1])
    else:
        dz = torch.zeros_like(p.z)
        for seqs, rows, near in p.blocks():
            block = _Block(p, seqs, rows)
            slope, _ = block.terms(near, None, exact=True)
            block.by_square_(slope)
            # For the rows, and for the columns that are not rows of this block.
            _add_pull(dz[seqs, rows], slope, block.z_row, block.z_col)
            slope, z_col = slope[:, :, block.square :], block.z_col[:, block.square :]
            _add_pull(dz[seqs, rows.stop :], slope.mT, z_col, block.z_row)
    # Each pair counts twice, and the derivative of a square is another factor 2.
    scale = coef * grad * (4 if opts.distance == "sqeuclidean" else 2)
    dz *= scale[:, None, None]
    if lengths is not None:
        dz.masked_fill_(~p.real[..., None], 0)
    return (dz.to(z.dtype),)


def _add_pull(out, slope, z, others) -> None:
    """Add sum_j slope_ij (others_j - z_i), in place."""
    pull = torch.bmm(slope, others)
    out += pull.addcmul_(z, slope.sum(2)[..., None], value=-1)


class _Problem:
    """The inputs in the form that the loops need."""

    def __init__(self, z, t, lengths, windows, opts: CIDMOptions, times: bool = True):
        self.num, self.frames, _ = z.shape
        self.opts = opts
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        self.real = valid_mask(lengths, self.num, self.frames, z.device)
        self.z = z.to(dtype)
        self.mask = None
        if lengths is not None:
            self.z = torch.where(self.real[..., None], self.z, 0)
            self.mask = self.real.to(dtype)
        self.window = opts.window
        self.keys = None
        if not times:
            return
        if lengths is None and t is not None and t.dtype in (dtype, torch.float32):
            self.times = t  # not converted; a NaN is in the coefficients
        else:
            self.times = pair_times(t, self.real, dtype)
        # One row of times and one set of weights if all sequences have the same times.
        if t is not None and lengths is None and t.stride(0) == 0:
            self.times = self.times[:1]
        if windows is not None:
            self.window = windows.to(self.times.dtype)[:, None, None]
        self.one = self.z.new_ones(())
        self._find_order()

    def _find_order(self):
        """With sorted times, pairs within the window form a band beside the diagonal. Checking
        costs a host read, so only on the CPU."""
        if self.times.device.type == "cpu" and self.opts.kind != "idm":
            times = self.times
            if self.mask is None:
                ordered = times[:, 1:] >= times[:, :-1]
            else:
                if len(times) > 1 or self.num == 1:  # otherwise padding is masked, at any time
                    times = torch.where(self.real[: len(times)], times, torch.inf)
                ordered = (times.diff(dim=1) >= 0).logical_or(times[:, 1:] == torch.inf)
            if bool(ordered.all()):
                self.keys = times.contiguous()

    def blocks(self):
        """(sequences, rows, near) to process together: pairs within the window can only lie in the
        first ``near`` of the columns, which start with the block's first row."""
        frames = self.frames
        together = max(1, SHORT_ELEMENTS // max(1, SHORT_ROWS * frames))
        size = max(1, min(LONG_ROWS, LONG_ELEMENTS // max(frames, 1)))
        for seqs in _slices(self.num, together):
            alone = seqs.stop - seqs.start == 1
            rows = list(_slices(frames, size if alone else SHORT_ROWS))
            for block, stop in zip(rows, self._near_until(seqs, rows), strict=True):
                yield seqs, block, max(stop, block.stop) - block.start

    def _near_until(self, seqs, rows: list[slice]) -> list[int]:
        """For each block of rows, 1 + the last frame that may be within a window."""
        if self.keys is None or not rows:
            return [self.frames] * len(rows)
        keys = self.keys[seqs if len(self.keys) == self.num else slice(0, 1)]
        last = keys
        if self.mask is not None:  # padding is at the end and has the time inf
            last = keys.masked_fill(keys == torch.inf, -torch.inf).cummax(1).values
        last = last[:, [block.stop - 1 for block in rows]]
        window = self.window if isinstance(self.window, float) else self.window[seqs].amax()
        # A little further than the sum, which is rounded.
        high = last + window + 1e-6 * (last.abs() + window)
        return torch.searchsorted(keys, high, right=True).amax(0).tolist()


class _Block:
    """The pairs of some rows of some sequences with the columns from the first row on."""

    def __init__(self, p: _Problem, seqs, rows):
        self.p, self.seqs, self.rows = p, seqs, rows
        self.square = square = rows.stop - rows.start
        self.z_col = p.z[seqs, rows.start :] - p.z[seqs, rows.start, None]
        self.z_row = self.z_col[:, :square]
        self.norms = self.inverse = None
        if p.opts.distance == "euclidean":
            # A square root and its slope need every digit of a small distance.
            mode = "donot_use_mm_for_euclid_dist"
            d = torch.cdist(self.z_row, self.z_col, compute_mode=mode)
            self.inverse = d.reciprocal().masked_fill_(d == 0, 0)
            self.negated = d.neg_()
            return
        self.norms = torch.linalg.vecdot(self.z_col, self.z_col)
        d = self.norms.new_empty(len(self.norms), square, self.norms.shape[1])
        d.baddbmm_(self.z_row, self.z_col.mT, beta=0, alpha=2)
        d -= self.norms[:, None]
        d -= self.norms[:, :square, None]
        d.diagonal(dim1=1, dim2=2).zero_()
        self.negated = d

    def terms(self, near: int, out: Tensor | None, exact: bool) -> tuple[Tensor, Tensor]:
        """Slopes (in ``out`` if passed) and values. Call it once: it changes the block.

        ``exact``: slopes jump at the margin, and each pair's side of it is decided exactly.
        """
        p, opts, value = self.p, self.p.opts, self.negated
        lead = self.seqs if len(p.times) == p.num else slice(0, 1)
        times = p.times[lead]
        gap = times[:, self.rows, None] - times[:, None, self.rows.start :]
        slope = torch.empty_like(value) if out is None else out
        wide = gap.to(value.dtype)
        weight = torch.addcmul(p.one, wide, wide)
        if opts.kind == "idm":
            slope.copy_(weight)
        else:
            # PyTorch compares into the operands' own dtype several times as fast as into bool.
            torch.gt(value, -opts.margin, out=slope)
            if opts.kind == "contrastive":
                slope *= weight
            attract = value[:, :, :near]
            far = gap[:, :, :near].abs_()
            if isinstance(p.window, float):
                far = far.gt_(p.window).to(value.dtype)
            else:
                far = (far > p.window[self.seqs]).to(value.dtype)
            attract = torch.add(attract, far, alpha=opts.margin)
            value.add_(opts.margin)
            if exact:
                self.look_again_(slope, value, weight if opts.kind == "contrastive" else None)
            value[:, :, :near] = attract
            pull, slope_near = 1 - far, slope[:, :, :near].mul_(far)
            if opts.kind == "contrastive" and opts.weights == "paper":
                slope_near.addcdiv_(pull, weight[:, :, :near], value=-1)
            else:
                slope_near -= pull
        if p.mask is not None:
            slope *= p.mask[self.seqs, None, self.rows.start :]
            slope *= p.mask[self.seqs, self.rows, None]
        return slope, value

    def by_square_(self, slope: Tensor) -> None:
        """Turn derivatives by a root distance into derivatives by its square, times 2, in place."""
        if self.inverse is not None:
            slope *= self.inverse

    def look_again_(self, slope: Tensor, room: Tensor, weight: Tensor | None) -> None:
        """Set the slope to the weight where room = margin - distance is positive, otherwise to 0.
        Distances that rounding may have moved across the margin are recomputed in float64 (a host
        read, so only on the CPU)."""
        if room.dtype == torch.float64 or room.device.type != "cpu" or room.numel() == 0:
            return
        margin = self.p.opts.margin
        euclidean = self.inverse is not None
        spread = 0 if euclidean else 2 * self.norms.amax().item()
        # NumPy finds the few doubtful pairs several times as fast as PyTorch.
        doubtful = np.abs(room.numpy()) <= ROUNDINGS * (margin + spread)
        found = np.flatnonzero(doubtful)
        z, slope = self.p.z[self.seqs, self.rows.start :].detach().numpy(), slope.numpy()
        for k in range(0, len(found), DOUBTFUL_AT_ONCE):
            n, i, j = np.unravel_index(found[k : k + DOUBTFUL_AT_ONCE], doubtful.shape)
            exact = np.square(z[n, i].astype(np.float64) - z[n, j]).sum(1)
            inside = (np.sqrt(exact) if euclidean else exact) < margin
            if weight is not None:
                inside = inside * weight.expand_as(room).numpy()[n, i, j]
            slope[n, i, j] = inside


def _slices(total: int, size: int):
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
