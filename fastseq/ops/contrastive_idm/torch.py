"""Blockwise backend: any device, memory O(N T D), never a T x T matrix.

Rows are taken in blocks against the frames from the block's first one on: the rest follows by
symmetry. Embeddings are taken relative to the block's first frame, which keeps the digits of
distances that are small beside the norms.
"""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.contrastive_idm.options import CIDMOptions, coefficients, pair_times

# Short sequences share a block of few rows (it stays in the L2 cache, and less of the square on the
# diagonal is formed twice), long ones want rows for the matrix product.
SHORT_ROWS, SHORT_ELEMENTS = 80, 1 << 18
LONG_ROWS, LONG_ELEMENTS = 128, 1 << 19
# Rounding of a distance, relative to the norms that it was formed from: more than it ever is.
ROUNDINGS = 16 * torch.finfo(torch.float32).eps
DOUBTFUL_AT_ONCE = 4096


def forward(z, t, lengths, windows, opts: CIDMOptions, needs) -> tuple[Tensor, Tensor]:
    """Loss, and the coefficients (N,) of the reduction."""
    p = _Problem(z, t, lengths, windows, opts)
    sums = p.z.new_zeros(p.num)
    for seqs, rows in p.blocks():
        _, _, distance = p.distances(seqs, rows)
        pairs = p.losses_(distance, seqs, rows)
        square = rows.stop - rows.start
        per_row = 2 * pairs.sum(2) - pairs[:, :, :square].sum(2)
        sums[seqs] += per_row.sum(1)
    coef = coefficients(p.real, p.times, opts.reduction, p.z.dtype)
    loss = coef * sums
    return loss if opts.reduction == "none" else loss.sum(), coef


def backward(grad, z, t, lengths, windows, coef, opts: CIDMOptions, needs) -> tuple[Tensor]:
    p = _Problem(z, t, lengths, windows, opts)
    dz = torch.zeros_like(p.z)
    for seqs, rows in p.blocks():
        z_row, z_col, distance = p.distances(seqs, rows)
        c = p.slopes(distance, seqs, rows)
        # sum_j c_ij (z_i - z_j) for the rows, and for the columns that are not rows here.
        dz[seqs, rows] += torch.baddbmm(z_row * c.sum(2)[..., None], c, z_col, alpha=-1)
        square = rows.stop - rows.start
        c, z_col = c[:, :, square:], z_col[:, square:]
        dz[seqs, rows.stop :] += torch.baddbmm(z_col * c.sum(1)[..., None], c.mT, z_row, alpha=-1)
    # Each pair counts twice, and the derivative of a square is another factor 2.
    scale = coef * grad * (4 if opts.distance == "sqeuclidean" else 2)
    dz *= scale[:, None, None]
    if lengths is not None:
        dz.masked_fill_(~p.real[..., None], 0)
    return (dz.to(z.dtype),)


class _Problem:
    """The inputs in the form that the loops want."""

    def __init__(self, z, t, lengths, windows, opts: CIDMOptions):
        self.num, self.frames, _ = z.shape
        self.opts = opts
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        self.real = valid_mask(lengths, self.num, self.frames, z.device)
        self.z = z.to(dtype)
        self.mask = None
        if lengths is not None:
            self.z = torch.where(self.real[..., None], self.z, 0)
            self.mask = self.real.to(dtype)
        self.times = pair_times(t, self.real, dtype)
        # One row of times, one set of weights, where all sequences have the same.
        if t is not None and lengths is None and t.stride(0) == 0:
            self.times = self.times[:1]
        self.window = opts.window
        if windows is not None:
            self.window = windows.to(self.times.dtype)[:, None, None]
        self._find_order()

    def _find_order(self):
        """Sorted times have the pairs within the window in a band beside the diagonal. Looking
        costs a host read, so only on the CPU."""
        self.keys = None
        if self.times.device.type == "cpu" and self.opts.kind != "idm":
            real = self.real[: len(self.times)]
            times = self.times
            if len(times) > 1 or self.num == 1:  # else padding is masked, whatever its time
                times = torch.where(real, times, torch.inf)
            if bool((times.diff(dim=1) >= 0).logical_or(times[:, 1:] == torch.inf).all()):
                self.keys = times

    def blocks(self):
        """(sequences, rows) that are worked on together."""
        frames = self.frames
        together = max(1, SHORT_ELEMENTS // max(1, SHORT_ROWS * frames))
        size = max(1, min(LONG_ROWS, LONG_ELEMENTS // max(frames, 1)))
        for seqs in _slices(self.num, together):
            alone = seqs.stop - seqs.start == 1
            for rows in _slices(frames, size if alone else SHORT_ROWS):
                yield seqs, rows

    def distances(self, seqs, rows) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns relative to the first row, and their distances (n, R, C)."""
        first = self.z[seqs, rows.start, None]
        z_row, z_col = self.z[seqs, rows] - first, self.z[seqs, rows.start :] - first
        if self.opts.distance == "euclidean":
            # A root and its slope want every digit of a small distance.
            mode = "donot_use_mm_for_euclid_dist"
            return z_row, z_col, torch.cdist(z_row, z_col, compute_mode=mode)
        norms = z_col.square().sum(2)
        d = torch.baddbmm(norms[:, None], z_row, z_col.mT, alpha=-2)
        d += norms[:, : d.shape[1], None]
        d.diagonal(dim1=1, dim2=2).zero_()
        return z_row, z_col, d

    def norms(self, seqs, rows) -> Tensor:
        """Squared norms of the columns, relative to the first row."""
        return (self.z[seqs, rows.start :] - self.z[seqs, rows.start, None]).square().sum(2)

    def gaps(self, seqs, rows) -> tuple[Tensor, Tensor]:
        """|t_i - t_j| (n or 1, R, C), and its square plus 1 in the embeddings' dtype."""
        lead = seqs if len(self.times) == self.num else slice(0, 1)
        gap = (self.times[lead, rows, None] - self.times[lead, None, rows.start :]).abs_()
        return gap, gap.to(self.z.dtype).square().add_(1)

    def near_columns(self, seqs, rows) -> int:
        """Columns, from the block's first row on, up to the last that may lie in the window."""
        if self.keys is None:
            return self.frames - rows.start
        keys = self.keys[seqs if len(self.keys) == self.num else slice(0, 1)]
        last = torch.where(keys[:, rows] < torch.inf, keys[:, rows], -torch.inf).amax(1)
        window = self.window if isinstance(self.window, float) else self.window[seqs].amax()
        # A little further than the sum, which is rounded.
        high = last + window + 1e-6 * (last.abs() + window)
        stop = torch.searchsorted(keys, high[:, None], right=True).amax()
        return max(int(stop), rows.stop) - rows.start

    def is_far(self, gap: Tensor, seqs) -> Tensor:
        return gap > (self.window if isinstance(self.window, float) else self.window[seqs])

    def masked_(self, pairs: Tensor, seqs, rows) -> Tensor:
        if self.mask is not None:
            pairs *= self.mask[seqs, None, rows.start :]
            pairs *= self.mask[seqs, rows, None]
        return pairs

    def losses_(self, d: Tensor, seqs, rows) -> Tensor:
        """Each pair's term of the loss; overwrites the distances."""
        gap, weight = self.gaps(seqs, rows)
        opts = self.opts
        if opts.kind == "idm":
            return self.masked_(d.mul_(weight).neg_(), seqs, rows)
        near = self.near_columns(seqs, rows)
        attract = d[:, :, :near]
        if opts.kind == "contrastive" and opts.weights == "paper":
            attract = attract / weight[:, :, :near]
        far = self.is_far(gap[:, :, :near], seqs)
        repel = (opts.margin - d).clamp_(min=0)
        if opts.kind == "contrastive":
            repel *= weight
        repel[:, :, :near] = torch.where(far, repel[:, :, :near], attract)
        return self.masked_(repel, seqs, rows)

    def slopes(self, d: Tensor, seqs, rows) -> Tensor:
        """Each pair's derivative by its distance; by its square, halved, for "euclidean"."""
        gap, weight = self.gaps(seqs, rows)
        opts = self.opts
        if opts.kind == "idm":
            c = weight.neg().expand_as(d)
        else:
            c = self.inside_margin(d, seqs, rows).to(d.dtype).neg_()
            if opts.kind == "contrastive":
                c *= weight
            near = self.near_columns(seqs, rows)
            far = self.is_far(gap[:, :, :near], seqs)
            paper = opts.kind == "contrastive" and opts.weights == "paper"
            attract = 1 / weight[:, :, :near] if paper else torch.ones_like(gap[:, :, :near])
            c[:, :, :near] = torch.where(far, c[:, :, :near], attract.to(d.dtype))
        if opts.distance == "euclidean":
            c = torch.where(d == 0, 0, c / d)
        elif opts.kind == "idm":
            c = c.clone()
        return self.masked_(c, seqs, rows)

    def inside_margin(self, d: Tensor, seqs, rows) -> Tensor:
        """d < margin. The slope jumps there, so distances that rounding may have moved across are
        computed again in float64 (a host read, so only on the CPU)."""
        inside, margin = d < self.opts.margin, self.opts.margin
        if d.dtype == torch.float64 or d.device.type != "cpu":
            return inside
        euclidean = self.opts.distance == "euclidean"
        spread = 0 if euclidean else 2 * self.norms(seqs, rows).amax()
        doubtful = ((d - margin).abs_() <= ROUNDINGS * (margin + spread)).nonzero()
        z = self.z[seqs]
        for n, i, j in (part.unbind(1) for part in doubtful.split(DOUBTFUL_AT_ONCE)):
            gap = z[n, rows.start + i].double() - z[n, rows.start + j].double()
            exact = gap.square().sum(1)
            inside[n, i, j] = (exact.sqrt() if euclidean else exact) < margin
        return inside


def _slices(total: int, size: int):
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
