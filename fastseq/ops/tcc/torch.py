"""Blockwise backend: any device, memory O(N T D), never a T x T matrix.

A cycle starts and ends in u, so each block of rows of u is processed in one go: to its soft nearest
neighbours in v, back to u, to its loss, and from the softmaxes at hand to its gradients. The
forward computes the gradients too, if the upstream gradient can only be one factor per pair.
"""

import torch
from torch import Tensor

from fastseq.ops.common.validate import positive_or_nan
from fastseq.ops.tcc.options import (
    Gradients,
    Side,
    TCCOptions,
    centred_sides,
    num_cycles,
    temperature_gradient,
)

# Measured on two cores: anything from 2^17 to 2^20 works, as products take most of the time. A GPU
# needs few, large launches.
ROWS = 128
ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}
MASKED = -1e30  # a score that exp turns into exactly 0, without the NaN of 0 * inf


def forward(
    x, y, temperature, tx, ty, valid_x, valid_y, duration_x, duration_y, opts: TCCOptions, needs
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and, if a gradient is needed, its gradients of x and y in the loss's dtype."""
    sides = centred_sides(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, opts)
    a, b, root = _scaled(*sides, temperature)
    share, sums = _share(a, b, opts), a.z.new_zeros(len(x))
    # Without y each sequence contributes to the losses of all others.
    keep = any(needs) and (b is not None or opts.reduction != "none")
    weight = share.expand(len(x)) if keep else None
    da, db = _run(a, b, root, opts, sums, weight)
    return sums if opts.reduction == "none" else sums.sum() * share, da, db


def backward(
    grad,
    x,
    y,
    temperature,
    tx,
    ty,
    valid_x,
    valid_y,
    duration_x,
    duration_y,
    da,
    db,
    opts: TCCOptions,
    needs,
) -> Gradients:
    """Gradients of x, y and the temperature, from kept gradients or computed from the start."""
    if da is None:
        sides = centred_sides(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, opts)
        a, b, root = _scaled(*sides, temperature)
        weight = grad.to(a.z.dtype) * _share(a, b, opts)
        da, db = _run(a, b, root, opts, a.z.new_zeros(len(x)), weight.expand(len(x)))
    else:
        da, db = (None if d is None else d * grad.view(-1, 1, 1) for d in (da, db))
    dt = None
    if needs[2]:
        dt = temperature_gradient(x, y, temperature, valid_x, valid_y, da, db, opts)
    return da.to(x.dtype), None if y is None else db.to(y.dtype), dt


def _share(a: Side, b: Side | None, opts: TCCOptions) -> Tensor:
    """Weight of each sequence's sum of cycle losses in the result."""
    if opts.reduction != "mean":
        return a.z.new_ones(())
    count = num_cycles(a.real, None if b is None else b.real)
    return 1 / count.clamp(min=1).to(a.z.dtype)


def _run(
    a: Side,
    b: Side | None,
    root: Tensor | None,
    opts: TCCOptions,
    sums: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Add each sequence's losses to sums, and the gradients of sum_n weight_n sums_n by the sides
    before their division by root."""
    da, db = (None if weight is None or s is None else torch.zeros_like(s.z) for s in (a, b))
    if b is None:
        _run_all_pairs(a, opts, sums, weight, da)
    else:
        _Hop(a, b, opts).run(sums, weight, da, db)
        _Hop(b, a, opts).run(sums, weight, db, da)
    for d, s in ((da, a), (db, b)):
        if d is not None:
            if root is not None:
                d /= root
            d.masked_fill_(~s.real[..., None], 0)
    return da, db


def _run_all_pairs(a: Side, opts: TCCOptions, sums, weight: Tensor | None, da: Tensor | None):
    """Cycles of sequence n over n + shift, for all shifts; several at once for short sequences."""
    num = len(a.z)
    at_once = max(1, _elements(a.z) // max(a.z.numel(), 1))
    for some in _slices(num - 1, at_once):
        shifts = range(some.start + 1, some.stop + 1)
        u, v = a.rolled([0] * len(shifts)), a.rolled(shifts)
        part = sums.new_zeros(len(shifts) * num)
        if weight is None:
            _Hop(u, v, opts).run(part)
        else:
            du, dv = torch.zeros_like(u.z), torch.zeros_like(v.z)
            _Hop(u, v, opts).run(part, weight.repeat(len(shifts)), du, dv)
            da += du.view(len(shifts), *da.shape).sum(0)
            for shift, d in zip(shifts, dv.view(len(shifts), *da.shape), strict=True):
                da += d.roll(shift, 0)
        sums += part.view(len(shifts), num).sum(0)


def _scaled(
    a: Side, b: Side | None, temperature: Tensor | None
) -> tuple[Side, Side | None, Tensor | None]:
    """The sides divided by the square root of a temperature in a tensor, and that root: every score
    then includes it, and no product needs it as a number, which would be read from the GPU."""
    if temperature is None:
        return a, b, None
    root = positive_or_nan(temperature, 1.0, a.z.dtype).sqrt()
    a, b = (None if s is None else s._replace(z=s.z / root) for s in (a, b))
    return a, b, root


def _elements(z: Tensor) -> int:
    return ELEMENTS.get(z.device.type, ELEMENTS["cuda"])


class _Hop:
    """The cycles u -> v -> u of N pairs of sequences, in blocks of rows of u."""

    def __init__(self, u: Side, v: Side, opts: TCCOptions):
        self.opts = opts
        some = v.real.any(1, keepdim=True)
        self.real = u.real & some
        self.u, self.v = torch.where(some[..., None], u.z, 0), v.z
        self.t, self.scale, self.floor = u.t, u.scale[:, None], u.floor[:, None]
        self.distances = opts.similarity == "l2"
        unit = 1 / (u.z.shape[2] * opts.temperature)
        self.alpha = 2 * unit if self.distances else unit
        # |a|^2 of -|a - b|^2 = 2 <a, b> - |b|^2 - |a|^2 is constant within a softmax.
        self.bias_u, self.bias_v = (
            (z.square().sum(2) * (-unit if self.distances else 0)).masked_fill_(~real, MASKED)
            for z, real in ((self.u, self.real), (self.v, v.real))
        )
        self.columns = max(self.u.shape[1], self.v.shape[1])
        self.elements = _elements(u.z)

    def blocks(self):
        """(sequences, rows, scratch): scratch has four buffers for the scores of a block."""
        num, frames = self.u.shape[:2]
        if not (num and frames and self.v.shape[1]):
            return
        height = max(1, min(ROWS, self.elements // self.columns, frames))
        group = max(1, min(self.elements // (height * self.columns), num))
        scratch = self.u.new_empty((4, group * height * self.columns))
        for seqs in _slices(num, group):
            for rows in _slices(frames, height):
                yield seqs, rows, scratch

    def run(
        self,
        sums: Tensor,
        weight: Tensor | None = None,
        du: Tensor | None = None,
        dv: Tensor | None = None,
    ) -> None:
        """Add the losses of sequence n to sums_n, and the gradients of sum_n weight_n losses_n."""
        # Sums over rows of the scores' gradients: the gradient of each column's |b|^2.
        columns_u, columns_v = torch.zeros_like(self.bias_u), torch.zeros_like(self.bias_v)
        for seqs, rows, scratch in self.blocks():
            block, real = _Block(self, seqs, rows, scratch), self.real[seqs, rows]
            losses, d_logits = block.solve(None if weight is None else weight[seqs, None] * real)
            sums[seqs] += torch.where(real, losses, 0).sum(1)
            if weight is None:
                continue
            d_nearest = self.alpha * torch.bmm(d_logits, self.u[seqs])
            du[seqs].baddbmm_(d_logits.mT, block.nearest, alpha=self.alpha)
            dv[seqs].baddbmm_(block.p_v.mT, d_nearest)
            d_scores = block.d_scores(d_nearest)
            du[seqs, rows].baddbmm_(d_scores, self.v[seqs], alpha=self.alpha)
            dv[seqs].baddbmm_(d_scores.mT, block.u, alpha=self.alpha)
            if self.distances:
                columns_u[seqs] += d_logits.sum(1)
                columns_v[seqs] += d_scores.sum(1)
        if self.distances and weight is not None:
            du.addcmul_(self.u, columns_u[..., None], value=-self.alpha)
            dv.addcmul_(self.v, columns_v[..., None], value=-self.alpha)


class _Block:
    """Rows of u on their cycle over v back to u; both softmaxes are in scratch memory."""

    def __init__(self, hop: _Hop, seqs: slice, rows: slice, scratch: Tensor):
        self.hop, self.seqs, self.rows, self.scratch = hop, seqs, rows, scratch
        self.u = hop.u[seqs, rows]
        scores = self._scores(self.u, hop.v, hop.bias_v)
        self.p_v = torch.softmax(scores, 2, out=self._buffer(1, scores))
        self.nearest = torch.bmm(self.p_v, hop.v[seqs])  # [n, rows, D]
        self.logits = self._scores(self.nearest, hop.u, hop.bias_u)

    def _scores(self, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        like = (*a.shape[:2], b.shape[1])
        out = self._buffer(0, like)
        return torch.baddbmm(
            bias[self.seqs, None], a, b[self.seqs].mT, alpha=self.hop.alpha, out=out
        )

    def _buffer(self, index: int, like: Tensor | tuple[int, int, int]) -> Tensor:
        shape = like.shape if isinstance(like, Tensor) else torch.Size(like)
        return self.scratch[index, : shape.numel()].view(shape)

    def solve(self, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Losses (n, rows), and the gradient of sum_i weight_i loss_i by the logits."""
        if self.hop.opts.loss_type == "classification":
            return self._classify(weight)
        error, variance, deviation, beta = self._moments()
        losses, slope, curve = self._regress(error, variance)
        if weight is None:
            return losses, None
        scale, out = self.hop.scale[self.seqs], self._buffer(3, beta)
        slope = weight * slope * scale
        if curve is None:
            torch.mul(deviation, slope[..., None], out=out)
        else:
            # beta (slope c + curve (c^2 - variance)), c the deviation from the predicted time
            curve = weight * curve
            torch.mul(deviation, (curve * scale.square())[..., None], out=out)
            out.add_(slope[..., None]).mul_(deviation).sub_((curve * variance)[..., None])
        return losses, out.mul_(beta)

    def _classify(self, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        hop, smoothing, out = self.hop, self.hop.opts.label_smoothing, self._buffer(3, self.logits)
        real = hop.real[self.seqs, None].to(self.u.dtype)  # [n, 1, T]
        count = real.sum(2).clamp(min=1)
        mean = torch.mul(self.logits, real, out=out).sum(2) / count
        losses = torch.logsumexp(self.logits, 2) - smoothing * mean
        losses -= (1 - smoothing) * self._own(self.logits)
        if weight is None:
            return losses, None
        torch.softmax(self.logits, 2, out=out)
        out.addcmul_((smoothing / count)[..., None], real, value=-1)
        self._own(out).sub_(1 - smoothing)
        return losses, out.mul_(weight[..., None])

    def d_scores(self, d_nearest: Tensor) -> Tensor:
        """Gradient of the scores against v, from that of the nearest neighbours."""
        out = self._buffer(0, self.p_v)
        torch.bmm(d_nearest, self.hop.v[self.seqs].mT, out=out)
        return out.sub_((d_nearest * self.nearest).sum(2, keepdim=True)).mul_(self.p_v)

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predicted minus true time and the variance of the prediction (n, rows), in the units
        of the loss; deviations from the prediction, in the caller's units; the softmax."""
        hop, t = self.hop, self.hop.t[self.seqs]
        beta = torch.softmax(self.logits, 2, out=self._buffer(2, self.logits))
        product = self._buffer(3, beta)
        # Differences of times first: those of whole frames are exact, so a prediction accurate to
        # a fraction of a frame keeps its digits in a video of any length.
        deviation = torch.sub(t[:, None], t[:, self.rows, None], out=self._buffer(0, beta))
        error = torch.mul(beta, deviation, out=product).sum(2)
        deviation.sub_(error[..., None])
        variance = torch.mul(deviation, deviation, out=product).mul_(beta).sum(2)
        scale = hop.scale[self.seqs]
        return error * scale, variance * scale.square(), deviation, beta

    def _regress(self, error: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses of rows, and their derivatives with respect to error and variance."""
        opts, floor = self.hop.opts, self.hop.floor[self.seqs]
        if opts.loss_type == "regression_mse":
            return error.square(), 2 * error, None
        if opts.loss_type == "regression_huber":
            slope = error.clamp(-opts.huber_delta, opts.huber_delta)
            return slope * (error - slope / 2), slope, None
        floored = torch.maximum(variance, floor)
        ratio = error.square() / floored
        curve = ((opts.variance_lambda - ratio) / floored).masked_fill(variance < floor, 0)
        return ratio + opts.variance_lambda * floored.log(), 2 * error / floored, curve

    def _own(self, scores: Tensor) -> Tensor:
        """The entries of a block of u against u where a frame meets itself: (n, rows)."""
        return scores[:, :, self.rows].diagonal(dim1=1, dim2=2)


def _slices(total: int, size: int):
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
