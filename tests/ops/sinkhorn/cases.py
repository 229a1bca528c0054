"""Sinkhorn's algorithm as float64 loops, VAVA's released loss as a dense function, and inputs."""

import math

import torch
import torch.nn.functional as F

from fastseq.ops.sinkhorn.op import FUSED
from fastseq.ops.sinkhorn.options import Numbers, SinkhornOptions, counts


def randn(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def units(*shape, dtype=torch.float64, seed=0):
    return F.normalize(randn(*shape, seed=seed), dim=-1).to(dtype)


def brute_force(x, y, *, epsilon=0.1, iterations=20, prior_width=None, virtual_cost=None):
    """Value and plan (a list of rows) of one pair x (T, D), y (S, D) with costs ||x_i - y_j||^2:
    the scaling form of the algorithm, one number at a time.
    """
    v = 0 if virtual_cost is None else 1
    n, m = len(x) + v, len(y) + v

    def cost(i, j):
        if v and (i == 0 or j == 0):
            return virtual_cost
        return sum((float(a) - float(b)) ** 2 for a, b in zip(x[i - v], y[j - v], strict=True))

    def prior(i, j):
        if prior_width is None or (v and (i == 0) != (j == 0)):
            return 1.0
        return math.exp(-(((i + 1) / n - (j + 1) / m) ** 2) / (2 * prior_width**2))

    kernel = [[prior(i, j) * math.exp(-cost(i, j) / epsilon) for j in range(m)] for i in range(n)]
    rows = [1 / n] * n
    for _ in range(iterations):
        columns = [1 / m / sum(kernel[i][j] * rows[i] for i in range(n)) for j in range(m)]
        rows = [1 / n / sum(kernel[i][j] * columns[j] for j in range(m)) for i in range(n)]
    plan = [[rows[i] * kernel[i][j] * columns[j] for j in range(m)] for i in range(n)]
    value = sum(plan[i][j] * cost(i, j) for i in range(n) for j in range(m))
    return value, plan


def released_transport(
    x, y, step, lambda1=1.0, lambda2=0.1, virtual_distance=5.0, zeta=0.5, delta=2.0, iterations=20
):
    """The transport of VAVA's released code for one pair, vectorised, without its clamp of K to
    1e-15 .. 1e20: the value, and K * D of the real frames.
    """
    n, m = len(x), len(y)
    lambda1, lambda2 = lambda1 * (n + m), lambda2 * n * m / 4
    found = ((x[:, None] - y[None]) ** 2).mean(2).argmin(1)
    phi = min(max(0.999 ** int((step + 1.0) ** 0.5), 0.001), 0.999)
    n, m = n + 1, m + 1
    i = torch.arange(1, n + 1, dtype=x.dtype)[:, None] / n
    j = torch.arange(1, m + 1, dtype=x.dtype) / m
    centre = torch.cat([torch.ones(1), found + 1.0]).to(x.dtype)[:, None] / m
    unit = (1 / n**2 + 1 / m**2) ** 0.5
    far = torch.tensor(2 * virtual_distance / (n + m) * 1.5, dtype=x.dtype)
    one_virtual = torch.zeros(n, m, dtype=torch.bool)
    one_virtual[0, 1:], one_virtual[1:, 0] = True, True

    def normal(gap):
        return torch.exp(-((gap / unit) ** 2) / (2 * delta**2)) / (delta * (2 * math.pi) ** 0.5)

    def inverse(gap):
        return lambda1 / (gap**2 + 1)

    def mixed(function):
        mixture = phi * function(i - j) + (1 - phi) * function(centre - j)
        return torch.where(one_virtual, function(far), mixture)

    cost = F.pad((x[:, None] - y[None]).square().sum(2), (1, 0, 1, 0), value=zeta)
    kernel = mixed(normal) * torch.exp((mixed(inverse) - cost) / lambda2)
    u = torch.full((n,), 1 / n, dtype=x.dtype)
    for _ in range(iterations + 1):
        v = 1 / m / (kernel.T @ u)
        u = 1 / n / (kernel @ v)
    value = (u[:, None] * kernel * cost * v).sum() / (n * m)
    return value, (kernel * cost)[1:, 1:]


def released_loss(x, y, step, margin=2.0, window=15.0, temperature=0.5):
    """VAVA's whole released loss for one pair of equal lengths."""
    n, m = len(x), len(y)

    def within(z):
        gap = (torch.arange(len(z))[:, None] - torch.arange(len(z))).to(z.dtype)
        distance = ((z[:, None] - z[None]) ** 2).mean(2)
        hinge = torch.relu(margin - distance)
        return torch.where(gap.abs() > window, hinge, distance / (gap**2 + 1)).mean()

    value, product = released_transport(x, y, step)

    def matched(rows, columns):
        return ((x - y[rows]) ** 2 + (y - x[columns]) ** 2).mean() / temperature

    best = matched(product.argmax(1), product.argmax(0))
    worst = matched(product.argmin(1), product.argmin(0))
    between = -torch.log_softmax(torch.stack([best, worst]), 0)[1]
    return 0.5 * (within(x) + within(y)) + value / (n * m) + 0.0001 * between


def general(
    n=3, t=9, s=7, d=5, *, dtype=torch.float64, virtual=True, centres=True, ragged=True, epsilon=0.3
):
    """Inputs of the backends with every number of a pair in use: (inputs, opts of 6 iterations)."""
    x, y = units(n, t, d), units(n, s, d, seed=1)
    lengths_x = torch.tensor([t, 4, 0][:n]) if ragged else None
    lengths_y = torch.tensor([3, s, 5][:n]) if ragged else None
    c = torch.rand(n, t, generator=torch.Generator().manual_seed(2)) if centres else None
    v = int(virtual)
    sizes = ((counts(*z).double() + v).clamp(min=1) for z in ((x, lengths_x), (y, lengths_y)))
    steps = [1 / size for size in sizes]
    phi = 0.6 if centres else 1.0
    pairs = Numbers(1 / epsilon, *steps, 20.0, 3.0, phi, 0.5, -1.0).stacked(n, dtype, x.device)
    x, y = (z.to(dtype).requires_grad_() for z in (x, y))
    c = None if c is None else c.to(dtype)
    return (x, y, c, lengths_x, lengths_y, pairs), SinkhornOptions(6, virtual)


def value_and_grads(backend, inputs, opts):
    """(values, dx, dy) for upstream gradients 1, 2, -0.5."""
    values = FUSED["sinkhorn_alignment"](backend, opts, *inputs)
    weights = torch.tensor([1.0, 2.0, -0.5], dtype=values.dtype)[: len(values)]
    return values.detach(), *torch.autograd.grad((values * weights).sum(), inputs[:2])
