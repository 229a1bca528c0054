"""tcc_loss as independent float64 loops, and helpers of its tests."""

import math

import torch


def similarity(a, b, kind, temperature):
    """One number, as in the released code: expanded square, clamped at 0, divided twice."""
    dot = float(a @ b)
    value = -max(0.0, float(a @ a) + float(b @ b) - 2 * dot) if kind == "l2" else dot
    return value / len(a) / temperature


def softmax(scores):
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    return [p / sum(powers) for p in powers]


def cycle(
    u,
    v,
    t,
    duration,
    *,
    loss_type="regression_mse_var",
    similarity_kind="l2",
    temperature=0.1,
    variance_lambda=0.001,
    label_smoothing=0.1,
    huber_delta=0.1,
    normalize_indices=True,
):
    """Losses of the frames of u as Python floats; u (T, D), v (S, D), t a list of T numbers."""
    if normalize_indices:
        t = [x / duration for x in t]
    out = []
    for i in range(len(u)):
        alpha = softmax([similarity(u[i], b, similarity_kind, temperature) for b in v])
        nearest = sum(a * b for a, b in zip(alpha, v, strict=True))
        beta = softmax([similarity(nearest, b, similarity_kind, temperature) for b in u])
        if loss_type == "classification":
            labels = [label_smoothing / len(u)] * len(u)
            labels[i] += 1 - label_smoothing
            out.append(-sum(y * math.log(p) for y, p in zip(labels, beta, strict=True)))
            continue
        predicted = sum(b * x for b, x in zip(beta, t, strict=True))
        error = predicted - t[i]
        if loss_type == "regression_mse":
            out.append(error**2)
        elif loss_type == "regression_huber":
            near = abs(error) <= huber_delta
            far = huber_delta * abs(error) - huber_delta**2 / 2
            out.append(error**2 / 2 if near else far)
        else:
            variance = sum(b * (x - predicted) ** 2 for b, x in zip(beta, t, strict=True))
            log = math.log(variance)
            out.append(math.exp(-log) * error**2 + variance_lambda * log)
    return out


def brute_force(x, y, tx, ty, lengths_x, lengths_y, duration_x, duration_y, **options):
    """Loss of every reduction, over the pairs of x and y, or without y over all ordered pairs of x.

    All arguments are lists with one entry per sequence.
    """
    n = len(x)
    us = [(x[k, : lengths_x[k]], tx[k][: lengths_x[k]], duration_x[k]) for k in range(n)]
    if y is None:
        hops = [(i, us[i], us[j]) for i in range(n) for j in range(n) if i != j]
    else:
        vs = [(y[k, : lengths_y[k]], ty[k][: lengths_y[k]], duration_y[k]) for k in range(n)]
        hops = [h for k in range(n) for h in ((k, us[k], vs[k]), (k, vs[k], us[k]))]
    sums, count = [0.0] * n, 0
    for k, (u, t, duration), (v, _, _) in hops:
        if len(u) and len(v):
            sums[k] += sum(cycle(u, v, t, duration, **options))
            count += len(u)
    total = sum(sums)
    every = {"none": sums, "mean": total / max(count, 1), "sum": total}
    return {name: torch.tensor(loss, dtype=torch.float64) for name, loss in every.items()}


def randn(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def loss_and_grads(x, y=None, *times, upstream=1.0, **kwargs):
    import fastseq

    inputs = [z.detach().requires_grad_() for z in (x, y) if z is not None]
    args = inputs if y is not None else [*inputs, None]
    loss = fastseq.tcc_loss(*args, *times, **kwargs)
    return (loss, *torch.autograd.grad((loss * upstream).sum(), inputs))
