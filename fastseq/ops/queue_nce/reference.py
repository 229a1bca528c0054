"""The definition of queue_nce in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.common.validate import positive_or_nan
from fastseq.ops.queue_nce.options import NORM_EPS, QueueNCEOptions, reduced


def queue_nce_reference(
    q: Tensor, positives: Tensor, temperature: Tensor | None, queue: Tensor, opts: QueueNCEOptions
) -> Tensor:
    """The loss of q (N, D), positives (N, P, D) and queue (K, D). Memory: N P K numbers."""
    dtype = accumulator(q.dtype)
    # A copy: autograd keeps its operands, and the queue changes before the backward.
    q, positives, queue = q.to(dtype), positives.to(dtype), queue.to(dtype, copy=True)
    if opts.normalize:
        q = q / q.norm(dim=-1, keepdim=True).clamp(min=NORM_EPS)
        positives = positives / positives.norm(dim=-1, keepdim=True).clamp(min=NORM_EPS)
    tau = positive_or_nan(temperature, opts.temperature, dtype)
    positive = (positives @ q[:, :, None]) / tau  # [N, P, 1]
    negative = (q @ queue.mT / tau)[:, None].expand(-1, positives.shape[1], -1)
    logits = torch.cat([positive, negative], 2)  # [N, P, 1 + K]
    return reduced(torch.logsumexp(logits, 2) - positive[..., 0], opts.reduction)
