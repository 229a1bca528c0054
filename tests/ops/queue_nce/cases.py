"""queue_nce as independent float64 loops, and helpers of its tests."""

import math

import torch


def brute_force(q, positives, queue, *, temperature=0.1, normalize=True):
    """Losses (N, P) as nested lists, one logit at a time."""

    def unit(z):
        z = z.double().tolist()
        norm = math.sqrt(sum(x * x for x in z)) if normalize else 1.0
        return [x / norm for x in z]

    def score(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / temperature

    rows = [c.double().tolist() for c in queue]
    out = []
    for n, u in enumerate(map(unit, q)):
        negatives = [math.exp(score(u, c)) for c in rows]
        right = [math.exp(score(u, unit(p))) for p in positives[n]]
        out.append([-math.log(e / (e + sum(negatives))) for e in right])
    return out


def loss_and_grads(q, positives, queue, *, upstream=1.0, **kwargs):
    import fastseq

    q, positives = (z.detach().requires_grad_() for z in (q, positives))
    loss = fastseq.queue_nce(q, positives, queue, **kwargs)
    return loss, *torch.autograd.grad((loss * upstream).sum(), (q, positives))


def inputs(n, per_query, length, d, *, dtype=torch.float64, seed=0):
    """Random directions of random length; a queue of unit vectors, some of them near the
    queries.
    """
    make = torch.Generator().manual_seed(seed)
    q = torch.randn(n, d, generator=make, dtype=torch.float64)
    positives = q[:, None] + torch.randn(n, per_query, d, generator=make, dtype=torch.float64)
    queue = torch.randn(length, d, generator=make, dtype=torch.float64)
    near = min(n, length // 4)
    queue[:near] += q[:near]
    queue = torch.nn.functional.normalize(queue, dim=1)
    return q.to(dtype), positives.to(dtype), queue.to(dtype)
