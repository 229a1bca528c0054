"""Blockwise backend: any device, memory O(N T D), never a T x T matrix.

A cycle starts and ends in u, so a block of rows of u goes all the way at once: to its soft nearest
neighbours in v, back to u, to its loss. Nothing is kept for the backward but the inputs; it takes
each block the same way again.
"""

import torch
from torch import Tensor

from fastseq.ops.tcc.options import Side, TCCOptions, num_cycles, side

# Measured on two cores, where anything from 2^17 to 2^20 does: the products take most of the time.
# A GPU wants few, large launches.
ROWS = 128
ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}
MASKED = -1e30  # a score that exp turns into exactly 0, without the NaN of 0 * inf


def forward(
    x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, opts: TCCOptions
) -> tuple[Tensor, Tensor]:
    """The loss, and the number that the sum over cycles was divided by."""
    a, b = _sides(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, opts)
    sums = a.z.new_zeros(len(x))
    for u, v, _ in _hops(a, b):
        _Hop(u, v, opts).add_losses(sums)
    count = sums.new_ones(())
    if opts.reduction == "mean":
        count = num_cycles(a.real, None if b is None else b.real).clamp(min=1).to(sums.dtype)
    return sums if opts.reduction == "none" else sums.sum() / count, count


def backward(
    grad, x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, count, opts: TCCOptions
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and y."""
    a, b = _sides(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, opts)
    weight = (grad.to(a.z.dtype) / count).expand(len(x))
    da = torch.zeros_like(a.z)
    db = da if b is None else torch.zeros_like(b.z)
    for u, v, shift in _hops(a, b):
        du, dv = (da, db) if u is a else (db, da)
        if b is None:
            dv = torch.zeros_like(da)
        _Hop(u, v, opts).add_gradients(weight, du, dv)
        if b is None:
            da += dv.roll(shift, 0)
    out = [
        None if z is None else d.masked_fill_(~s.real[..., None], 0).to(z.dtype)
        for z, d, s in ((x, da, a), (y, db, b))
    ]
    return out[0], out[1]


def _sides(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, opts: TCCOptions):
    a = side(x, tx, valid_x, duration_x, opts)
    b = None if y is None else side(y, ty, valid_y, duration_y, opts)
    if opts.similarity == "l2":
        # Distances do not see a common offset, but the products that they are made of do.
        every = (a,) if b is None else (a, b)
        total = torch.stack([s.z.sum(1) for s in every]).sum(0)  # [N, D]
        count = torch.stack([s.real.sum(1) for s in every]).sum(0)  # [N]
        if b is None:
            total, count = total.sum(0, keepdim=True), count.sum(0, keepdim=True)
        center = total / count.clamp(min=1)[:, None]
        a, b = (_centered(s, center) for s in (a, b))
    return a, b


def _centered(s: Side | None, center: Tensor) -> Side | None:
    if s is None:
        return None
    return s._replace(z=torch.where(s.real[..., None], s.z - center[:, None], 0))


def _hops(a: Side, b: Side | None):
    """(u, v, shift): cycles from u over v back to u. Without b, sequence n goes over n + shift."""
    if b is not None:
        yield a, b, 0
        yield b, a, 0
        return
    for shift in range(1, len(a.z)):
        yield a, a.roll(shift), shift


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
        # |a|^2 of -|a - b|^2 = 2 <a, b> - |b|^2 - |a|^2 is the same for a whole softmax.
        self.bias_u, self.bias_v = (
            (z.square().sum(2) * (-unit if self.distances else 0)).masked_fill_(~real, MASKED)
            for z, real in ((self.u, self.real), (self.v, v.real))
        )
        self.columns = max(self.u.shape[1], self.v.shape[1])
        self.elements = ELEMENTS.get(u.z.device.type, ELEMENTS["cuda"])

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

    def add_losses(self, sums: Tensor) -> None:
        for seqs, rows, scratch in self.blocks():
            losses = _Block(self, seqs, rows, scratch).losses()
            sums[seqs] += torch.where(self.real[seqs, rows], losses, 0).sum(1)

    def add_gradients(self, weight: Tensor, du: Tensor, dv: Tensor) -> None:
        """Add the gradients of sum_n weight_n * (losses of sequence n)."""
        # Sums over rows of the gradients of the scores: what the |b|^2 of each column gets.
        columns_u, columns_v = torch.zeros_like(self.bias_u), torch.zeros_like(self.bias_v)
        for seqs, rows, scratch in self.blocks():
            block = _Block(self, seqs, rows, scratch)
            d_logits = block.d_logits(weight[seqs, None] * self.real[seqs, rows])
            d_nearest = self.alpha * torch.bmm(d_logits, self.u[seqs])
            du[seqs].baddbmm_(d_logits.mT, block.nearest, alpha=self.alpha)
            dv[seqs].baddbmm_(block.p_v.mT, d_nearest)
            d_scores = block.d_scores(d_nearest)
            du[seqs, rows].baddbmm_(d_scores, self.v[seqs], alpha=self.alpha)
            dv[seqs].baddbmm_(d_scores.mT, block.u, alpha=self.alpha)
            if self.distances:
                columns_u[seqs] += d_logits.sum(1)
                columns_v[seqs] += d_scores.sum(1)
        if self.distances:
            du.addcmul_(self.u, columns_u[..., None], value=-self.alpha)
            dv.addcmul_(self.v, columns_v[..., None], value=-self.alpha)


class _Block:
    """Rows of u on their way over v back to u; two softmaxes, in scratch memory."""

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

    def losses(self) -> Tensor:
        """(n, rows)."""
        opts = self.hop.opts
        if opts.loss_type == "classification":
            own = self._own(self.logits)
            lse = torch.logsumexp(self.logits, 2)
            mean = self.logits.mul_(self._real_columns()).sum(2) / self._num_columns()
            return lse - (1 - opts.label_smoothing) * own - opts.label_smoothing * mean
        error, variance, _, _ = self._moments()
        if opts.loss_type == "regression_mse":
            return error.square()
        if opts.loss_type == "regression_huber":
            size, delta = error.abs(), opts.huber_delta
            return torch.where(size <= delta, size.square() / 2, delta * size - delta * delta / 2)
        variance = torch.maximum(variance, self.hop.floor[self.seqs])
        return error.square() / variance + opts.variance_lambda * variance.log()

    def d_logits(self, weight: Tensor) -> Tensor:
        """Gradient of sum_i weight_i loss_i with respect to the logits; weight (n, rows)."""
        opts, hop = self.hop.opts, self.hop
        if opts.loss_type == "classification":
            out = torch.softmax(self.logits, 2, out=self._buffer(3, self.logits))
            smooth = (opts.label_smoothing / self._num_columns())[..., None]
            out.addcmul_(smooth, self._real_columns(), value=-1)
            self._own(out).sub_(1 - opts.label_smoothing)
            return out.mul_(weight[..., None])
        error, variance, deviation, beta = self._moments()
        slope, curve = self._derivatives(error, variance)
        scale = hop.scale[self.seqs]
        slope, curve = weight * slope * scale, weight * curve
        out = self._buffer(3, beta)
        if opts.loss_type == "regression_mse_var":
            # beta (slope c + curve (c^2 - variance)), c the deviation from the predicted time
            torch.mul(deviation, (curve * scale.square())[..., None], out=out)
            out.add_(slope[..., None]).mul_(deviation).sub_((curve * variance)[..., None])
        else:
            torch.mul(deviation, slope[..., None], out=out)
        return out.mul_(beta)

    def d_scores(self, d_nearest: Tensor) -> Tensor:
        """Gradient with respect to the scores against v, from that of the nearest neighbours."""
        out = self._buffer(0, self.p_v)
        torch.bmm(d_nearest, self.hop.v[self.seqs].mT, out=out)
        return out.sub_((d_nearest * self.nearest).sum(2, keepdim=True)).mul_(self.p_v)

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predicted minus true time and the variance of the prediction (n, rows), in the units
        of the loss; deviations from the prediction, in the caller's units; the softmax."""
        hop, t = self.hop, self.hop.t[self.seqs]
        beta = torch.softmax(self.logits, 2, out=self._buffer(2, self.logits))
        product = self._buffer(3, beta)
        # Differences of times first: those of whole frames are exact, and a prediction that is
        # right to a part of a frame keeps its digits however long the video is.
        deviation = torch.sub(t[:, None], t[:, self.rows, None], out=self._buffer(0, beta))
        error = torch.mul(beta, deviation, out=product).sum(2)
        deviation.sub_(error[..., None])
        variance = torch.mul(deviation, deviation, out=product).mul_(beta).sum(2)
        scale = hop.scale[self.seqs]
        return error * scale, variance * scale.square(), deviation, beta

    def _derivatives(self, error: Tensor, variance: Tensor) -> tuple[Tensor, Tensor | float]:
        """Of a row's loss, with respect to error and variance."""
        opts, floor = self.hop.opts, self.hop.floor[self.seqs]
        if opts.loss_type == "regression_mse":
            return 2 * error, 0.0
        if opts.loss_type == "regression_huber":
            return error.clamp(-opts.huber_delta, opts.huber_delta), 0.0
        floored = torch.maximum(variance, floor)
        slope = 2 * error / floored
        curve = (opts.variance_lambda - error.square() / floored) / floored
        return slope, curve.masked_fill(variance < floor, 0)

    def _own(self, scores: Tensor) -> Tensor:
        """The entries of a block of u against u in which a frame meets itself: (n, rows)."""
        return scores[:, :, self.rows].diagonal(dim1=1, dim2=2)

    def _real_columns(self) -> Tensor:
        return self.hop.real[self.seqs, None].to(self.u.dtype)

    def _num_columns(self) -> Tensor:
        return self._real_columns().sum(2).clamp(min=1)


def _slices(total: int, size: int):
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
