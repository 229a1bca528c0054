"""Blockwise backend: any device; the (N, K) scores are never stored as a whole.

The queue is read once, in blocks whose scores fit the cache: a product with the queries, exp, and
if a gradient is needed the product of those exponentials with the same block. The backward needs
only one thing of the queue: the mean of its rows under the softmax, (N, D).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.common.validate import positive_or_nan
from fastseq.ops.queue_nce.options import (
    NORM_EPS,
    Gradients,
    QueueNCEOptions,
    keeps_mean,
    reduced,
    spread,
)

# Scores of a block: 8 MB of float32. Blocks of 2 MB take the same processor time, but synchronise
# threads four times as often, which is slow when other programs load the machine.
ROWS, ELEMENTS = 512, 1 << 21
MIN_COLUMNS, MAX_COLUMNS = 256, 16384
# Queries up to this norm need no running maximum against unit vectors: exp(+-40) is a normal
# number, and so are sums of it.
BOUNDED = 40.0
# Sums of plain exponentials within these limits are accurate: nothing overflowed, and the loss by
# underflow is below a rounding error.
SAFE_SUMS = 1e-25, 1e25


def forward(
    q: Tensor,
    positives: Tensor,
    temperature: Tensor | None,
    queue: Tensor,
    opts: QueueNCEOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss; 1 - the probability of each positive (N, P); and for the gradients of q and the
    temperature the queue's mean under the softmax of each query (N, D)."""
    u, v = (_unit(z, opts)[0] for z in (q, positives))
    tau = positive_or_nan(temperature, opts.temperature, u.dtype)
    scores = (v * u[:, None]).sum(2) / tau
    lse, mean = _scan(u / tau, queue, keeps_mean(needs))
    gap = lse[:, None] - scores
    losses = torch.logaddexp(torch.zeros_like(gap), gap)
    return reduced(losses, opts.reduction), torch.sigmoid(gap), mean


def backward(
    grad: Tensor,
    q: Tensor,
    positives: Tensor,
    temperature: Tensor | None,
    lack: Tensor,
    mean: Tensor | None,
    opts: QueueNCEOptions,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients of q, of the positives and of the temperature in their dtypes, None where not
    needed."""
    need_q, need_positives, need_temperature = needs
    (u, q_norm), (v, v_norm) = _unit(q, opts), _unit(positives, opts)
    tau = positive_or_nan(temperature, opts.temperature, u.dtype)
    weight = spread(grad, lack, opts.reduction) * lack / tau  # [N, P]
    dq = dp = dt = None
    if keeps_mean(needs):
        du = weight.sum(1, keepdim=True) * mean - (weight[..., None] * v).sum(1)
        if need_temperature:
            # The temperature divides the queries: its gradient follows from that of u = q / tau.
            dt = (-(du * u).sum() / tau).to(temperature.dtype)
        if need_q:
            dq = _through_norm(du, u, q_norm).to(q.dtype)
    if need_positives:
        dv = -weight[..., None] * u[:, None]
        dp = _through_norm(dv, v, v_norm).to(positives.dtype)
    return dq, dp, dt


def _unit(z: Tensor, opts: QueueNCEOptions) -> tuple[Tensor, Tensor | None]:
    """Embeddings as operands of the product, and their norms if they were divided by them."""
    z = z.to(accumulator(z.dtype))
    if not opts.normalize:
        return z, None
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / norm.clamp(min=NORM_EPS), norm


def _through_norm(d: Tensor, unit: Tensor, norm: Tensor | None) -> Tensor:
    if norm is None:
        return d
    # A clamped norm is a constant.
    along = torch.where(norm < NORM_EPS, 0, (d * unit).sum(-1, keepdim=True))
    return (d - along * unit) / norm.clamp(min=NORM_EPS)


def _scan(x: Tensor, queue: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """log sum_k exp(<x_n, queue_k>) (N,), and the rows' mean with those weights (N, D)."""
    num, length = len(x), len(queue)
    total = x.new_empty(num)
    peak = torch.zeros_like(total)
    mean = torch.empty_like(x) if keep else None
    columns = max(MIN_COLUMNS, min(MAX_COLUMNS, ELEMENTS // max(1, min(num, ROWS))))
    scratch = x.new_empty(min(num, ROWS) * min(length, columns))
    for start in range(0, num, ROWS):
        rows = slice(start, min(start + ROWS, num))
        out = total[rows], peak[rows], None if mean is None else mean[rows]
        if not _plain_sums(x[rows], queue, columns, scratch, *out[::2]):
            _running_maximum(x[rows], queue, columns, scratch, *out)
    if keep:
        # An empty queue: 0 / 0.
        mean /= total[:, None] if length else 1
    return total.log() + peak, mean


def _plain_sums(x, queue, columns, scratch, total, mean) -> bool:
    """Sums of plain exponentials, which saves one pass over the scores. False if they may have
    left float32's range; checking costs a host read, so only on the CPU."""
    if x.device.type != "cpu" or bool((torch.linalg.vector_norm(x, dim=1) > BOUNDED).any()):
        return False
    total.zero_()
    if mean is not None:
        mean.zero_()
    for block, scores in _blocks(x, queue, columns, scratch):
        scores.exp_()
        total += scores.sum(1)
        if mean is not None:
            mean.addmm_(scores, block)
    low, high = SAFE_SUMS
    return len(queue) == 0 or not bool(((total < low) | (total > high)).any())  # NaN stays


def _running_maximum(x, queue, columns, scratch, total, peak, mean) -> None:
    total.zero_()
    peak.fill_(-torch.inf)
    if mean is not None:
        mean.zero_()
    for block, scores in _blocks(x, queue, columns, scratch):
        before = peak.clone()
        torch.maximum(before, scores.amax(1), out=peak)
        shrink = (before - peak).exp_()
        scores.sub_(peak[:, None]).exp_()
        total.mul_(shrink).add_(scores.sum(1))
        if mean is not None:
            mean.mul_(shrink[:, None]).addmm_(scores, block)
    if len(queue) == 0:
        peak.zero_()


def _blocks(x: Tensor, queue: Tensor, columns: int, scratch: Tensor):
    """Blocks of the queue's rows in the dtype of x, and their scores (rows of x, block)."""
    for start in range(0, len(queue), columns):
        block = queue[start : start + columns].to(x.dtype)
        scores = scratch[: len(x) * len(block)].view(len(x), len(block))
        yield block, torch.mm(x, block.mT, out=scores)
