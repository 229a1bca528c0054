"""scl_loss as independent float64 loops, and inputs that the tests of every backend use."""

import math

import torch


def log_weight(gap, variance, target):
    """log g of a time gap in Python floats, without the cut-off."""
    sigma = math.sqrt(variance)
    if target == "gauss":
        return -gap * gap / (2 * variance)
    if target == "laplace":
        return -abs(gap) / sigma
    return math.log(2 / (1 + math.exp(abs(gap) / sigma))) if target == "sigmoid" else 0.0


def brute_force(
    z1,
    z2,
    t1,
    t2,
    m1,
    m2,
    *,
    variance=10.0,
    temperature=0.1,
    normalize=True,
    objective="kl",
    negatives="cross",
    target="gauss",
):
    """Row losses of both views as Python floats: the definition, one number at a time."""
    z1, z2 = z1.double(), z2.double()
    if normalize:
        z1, z2 = (z / z.norm(dim=-1, keepdim=True) for z in (z1, z2))
    reach = math.sqrt(variance if target == "box" else 206 * variance)
    every = {0: (z1, t1, m1), 1: (z2, t2, m2)}
    rows = {0: torch.zeros(m1.shape).double(), 1: torch.zeros(m2.shape).double()}
    for view, (z, t, m) in every.items():
        zo, to, mo = every[1 - view]
        for n in range(len(z)):
            for i in range(z.shape[1]):
                near = [
                    j
                    for j in range(zo.shape[1])
                    if m[n, i] and mo[n, j] and abs(float(t[n, i]) - float(to[n, j])) <= reach
                ]
                if not near:
                    continue
                gaps = [float(t[n, i]) - float(to[n, j]) for j in near]
                log_g = [log_weight(gap, variance, target) for gap in gaps]
                g = [math.exp(x - max(log_g)) for x in log_g]
                w = [x / sum(g) for x in g]
                keys = [zo[n, j] for j in range(zo.shape[1]) if mo[n, j]]
                if negatives == "video":
                    keys += [z[n, j] for j in range(z.shape[1]) if m[n, j]]
                if negatives == "batch":
                    keys += [
                        e[k, j]
                        for e, _, me in every.values()
                        for k in range(len(e))
                        if k != n
                        for j in range(e.shape[1])
                        if me[k, j]
                    ]
                scores = torch.stack(keys) @ z[n, i] / temperature
                log_p = torch.stack([zo[n, j] for j in near]) @ z[n, i] / temperature
                log_p = log_p - torch.logsumexp(scores, 0)
                loss = -sum(a * float(b) for a, b in zip(w, log_p, strict=True))
                if objective == "kl":
                    loss += sum(a * math.log(a) for a in w if a > 0)
                rows[view][n, i] = loss
    return rows[0], rows[1]


def reduce(rows1, rows2, m1, m2, reduction):
    """The four reductions, written out."""
    per_video = rows1.sum(1) + rows2.sum(1)
    if reduction == "none":
        return per_video
    if reduction == "sum":
        return per_video.sum()
    if reduction == "mean":
        return per_video.sum() / max(int(m1.sum() + m2.sum()), 1)
    n1, n2 = m1.sum(1), m2.sum(1)
    means = [
        rows1[n].sum() / max(int(n1[n]), 1) + rows2[n].sum() / max(int(n2[n]), 1)
        for n in range(len(rows1))
        if n1[n] + n2[n] > 0
    ]
    return torch.stack(means).mean() if means else rows1.sum()


def golden(dtype=torch.float32):
    """The case with known released loss and gradient: 8.104879 and 3.027793.

    Embeddings (2, 2, 6, 8) normalised, steps (2, 2, 6), video lengths (2, 2).
    """
    k = torch.arange(2 * 2 * 6 * 8, dtype=dtype)
    z = torch.sin(0.7 * k + 0.3).view(2, 2, 6, 8)
    z = torch.nn.functional.normalize(z, dim=-1)
    t = torch.arange(6)
    steps = torch.stack([torch.stack([3 * t + b, 2 * t + 1 + b]) for b in range(2)])
    return z, steps, torch.tensor([[30, 30], [45, 45]])


def loss_and_grads(z1, z2, *args, upstream=1.0, **kwargs):
    import fastseq

    z1, z2 = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    loss = fastseq.scl_loss(z1, z2, *args, **kwargs)
    return (loss, *torch.autograd.grad((loss * upstream).sum(), (z1, z2)))
