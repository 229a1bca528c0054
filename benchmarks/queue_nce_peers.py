"""queue_nce written without fastseq: q (N, D), positives (N, P, D), queue (K, D), all of norm 1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Unavailable
from benchmarks.scl_peers import flex_lse

TEMPERATURE = 0.1


def released(q: Tensor, positives: Tensor, queue: Tensor) -> Tensor:
    """Logits (N, 1 + K) for each positive, all stacked, then cross-entropy with label 0."""
    parts = []
    for k in positives.unbind(1):
        right = (q * k).sum(1, keepdim=True)
        parts.append(torch.cat([right, q @ queue.mT], 1) / TEMPERATURE)
    logits = torch.cat(parts)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=q.device))


def once(q: Tensor, positives: Tensor, queue: Tensor) -> Tensor:
    """Logits of the queue once, then the cross-entropy of each positive."""
    wrong = q @ queue.mT
    right = (positives @ q[:, :, None])[..., 0]  # [N, P]
    label = torch.zeros(len(q), dtype=torch.long, device=q.device)
    losses = [
        F.cross_entropy(torch.cat([right[:, p, None], wrong], 1) / TEMPERATURE, label)
        for p in range(right.shape[1])
    ]
    return torch.stack(losses).mean()


def shared_lse(q: Tensor, positives: Tensor, queue: Tensor) -> Tensor:
    """Logits of the queue and their log-sum-exp once: the least work possible with autograd."""
    return _from_lse(torch.logsumexp((q @ queue.mT / TEMPERATURE).float(), 1), q, positives)


def flex(q: Tensor, positives: Tensor, queue: Tensor) -> Tensor:
    return _from_lse(flex_lse(q[None], queue[None])[0], q, positives)


def _from_lse(lse: Tensor, q: Tensor, positives: Tensor) -> Tensor:
    right = (positives @ q[:, :, None])[..., 0].float() / TEMPERATURE
    return F.softplus(lse[:, None] - right).mean()


def build_compiled(case: Case):
    return torch.compile(shared_lse, dynamic=False, fullgraph=True)


def build_flex(case: Case):
    if case.device != "cuda":
        raise Unavailable("FlexAttention has no backward on the CPU")
    return torch.compile(flex, dynamic=False)
