"""Soft-DTW as independent float64 loops, and helpers of every backend's tests."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.common.dispatch import backend_status

# Bounds that float32 guarantees whatever plain PyTorch returns, whose recursion over absolute
# values has errors of 1e-3: a value rounded to 4 eps, a gradient through 2 T steps of exp2 and
# log2.
VALUE, GRADIENT = 5e-7, 1e-5

# The backends that support CPU tensors, besides the definition.
BACKENDS = ("numba", "torch")
EVERY = ("reference", *BACKENDS)


@functools.cache
def all_paths(n, m):
    """Every monotone path from the first to the last cell, as lists of (i, j)."""
    if n == m == 1:
        return [[(0, 0)]]
    paths = []
    for di, dj in [(1, 1), (1, 0), (0, 1)]:
        if n > di and m > dj:
            paths += [[*p, (n - 1, m - 1)] for p in all_paths(n - di, m - dj)]
    return paths


def in_band(path, n, m, bandwidth):
    """Whether every cell keeps -r <= j - i <= (m - n) + r (for m >= n, else mirrored)."""
    if bandwidth is None:
        return True
    if m < n:
        return in_band([(j, i) for i, j in path], m, n, bandwidth)
    return all(-bandwidth <= j - i <= (m - n) + bandwidth for i, j in path)


@functools.cache
def paths_between_ends(n, m, begin="fixed", end="fixed"):
    """Every monotone path through all n rows, from and to the columns that free ends allow."""
    paths = []
    for first in range(m) if begin == "free" else [0]:
        for last in range(first, m) if end == "free" else [m - 1]:
            paths += [[(i, j + first) for i, j in p] for p in all_paths(n, last - first + 1)]
    return paths


def cost_of(path, cost, warp_penalty=0.0):
    """Includes the penalty of each step that is not diagonal."""
    steps = itertools.pairwise(path)
    warps = sum((a[0] == b[0]) or (a[1] == b[1]) for a, b in steps)
    return sum(float(cost[cell]) for cell in path) + warps * warp_penalty


def sum_over_paths(cost, gamma, bandwidth=None, begin="fixed", end="fixed", warp_penalty=0.0):
    """(value, E) by enumerating all paths, without recursion. Without a path: +inf and 0."""
    n, m = cost.shape
    paths = [p for p in paths_between_ends(n, m, begin, end) if in_band(p, n, m, bandwidth)]
    scores = [-cost_of(p, cost, warp_penalty) / gamma for p in paths]
    expected, top = np.zeros((n, m)), max(scores)
    if top == -math.inf:
        return math.inf, expected
    weights = [math.exp(s - top) for s in scores]
    total = math.fsum(weights)
    for path, weight in zip(paths, weights, strict=True):
        for cell in path:
            expected[cell] += weight / total
    return -gamma * (top + math.log(total)), expected


def recursion(cost, gamma, bandwidth=None, begin="fixed", end="fixed", warp_penalty=0.0):
    """(value, E) in float64 by the textbook recursion over absolute R, cell after cell.

    E is propagated through the probabilities of the three steps into each cell. For medium sizes.
    """
    cost = np.asarray(cost, np.float64)
    n, m = cost.shape
    low, high = -n, m
    if bandwidth is not None:
        low, high = min(m - n, 0) - bandwidth, max(m - n, 0) + bandwidth
    r = np.full((n + 1, m + 1), np.inf)
    p = np.zeros((n + 2, m + 2, 3))
    r[0, 0] = 0
    if begin == "free":
        r[0, :] = 0
    for i in range(1, n + 1):
        for j in range(max(1, i + low), min(m, i + high) + 1):
            before = [r[i - 1, j - 1], r[i - 1, j] + warp_penalty, r[i, j - 1] + warp_penalty]
            if i == 1:  # enters from a free begin, at no cost, and not diagonally
                before[:2] = (r[0, 0] if j == 1 else np.inf), np.inf
                if begin == "free":
                    before[:2] = np.inf, 0.0
            least = min(before)
            weights = [math.exp(-(b - least) / gamma) for b in before]
            total = sum(weights)
            r[i, j] = cost[i - 1, j - 1] + least - gamma * math.log(total)
            p[i, j] = [w / total for w in weights]
    e = np.zeros((n + 2, m + 2))
    least = r[n, 1:].min() if end == "free" else r[n, m]
    weights = np.exp(-(r[n, 1:] - least) / gamma) if end == "free" else np.eye(m)[m - 1]
    e[n, 1:-1] = weights / weights.sum()
    for i in range(n, 0, -1):
        for j in range(m, 0, -1):
            e[i, j] += e[i + 1, j + 1] * p[i + 1, j + 1, 0]
            e[i, j] += e[i + 1, j] * p[i + 1, j, 1] + e[i, j + 1] * p[i, j + 1, 2]
    return least - gamma * math.log(weights.sum()), e[1:-1, 1:-1]


def squared(x, y):
    """Costs in float64, by differences."""
    x, y = (np.asarray(t.detach().double()) for t in (x, y))
    return np.stack([((row - y) ** 2).sum(-1) for row in x])


def embedding_gradients(x, y, expected):
    """dL/dx and dL/dy of one pair in float64 from its E, for squared Euclidean costs."""
    x, y = (np.asarray(t.detach().double()) for t in (x, y))
    dx = 2 * (x * expected.sum(1)[:, None] - expected @ y)
    return dx, 2 * (y * expected.sum(0)[:, None] - expected.T @ x)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value_and_grads(x, y, upstream=1.0, **kwargs):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = fastseq.soft_dtw(x, y, **kwargs)
    return (value.detach(), *torch.autograd.grad((value * upstream).sum(), (x, y)))


def value_and_alignment(cost, upstream=1.0, **kwargs):
    cost = cost.detach().requires_grad_()
    value = fastseq.soft_dtw_from_cost(cost, **kwargs)
    return value.detach(), torch.autograd.grad((value * upstream).sum(), cost)[0]


def relative(a, b):
    """Relative L2 error of a against b."""
    a, b = (np.asarray(t, np.float64) for t in (a, b))
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def backends(names=EVERY):
    """parametrize over the backends of this machine; a missing backend is skipped with its
    reason.
    """
    return pytest.mark.parametrize(
        "backend",
        [
            pytest.param(
                name,
                marks=pytest.mark.skipif(
                    not backend_status(name).available, reason=backend_status(name).reason
                ),
            )
            for name in names
        ],
    )
