"""Kernels of the table: the recursion over R itself, in float64, cell after cell."""

import math

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS, take_number
from fastseq.ops.soft_dtw.options import SOFTMINS

_LOGSUMEXP, _SPARSE = SOFTMINS.index("logsumexp"), SOFTMINS.index("sparse")


@numba.njit(**OPTIONS)
def _shares(kind, a, b, c):
    """Weights of three entries at a, b and c: softmax, or the nearest point of the simplex.

    The greatest of them is 0, others may be -inf.
    """
    if kind != _SPARSE:
        a, b, c = math.exp(a), math.exp(b), math.exp(c)
        total = a + b + c
        return a / total, b / total, c / total
    low = min(a, b, c)
    middle = max(min(a, b), min(max(a, b), c))  # the greatest is 0
    if middle - 2 * low < 1:
        t = (middle + low - 1) / 3
    elif middle > -1:
        t = (middle - 1) / 2
    else:
        t = -1.0
    return max(a - t, 0.0), max(b - t, 0.0), max(c - t, 0.0)


@numba.njit(**OPTIONS)
def _product(q, a):
    return 0.0 if q == 0 else q * a  # a may be -inf


@numba.njit(**OPTIONS)
def _softmin(r, i, j, gamma, kind):
    """Soft minimum of R at the diagonal, upper and left neighbour of a cell other than the first,
    and its gradient for each; +inf and 0 where none of them has a path."""
    diagonal = r[i - 1, j - 1] if i > 0 and j > 0 else np.inf
    up = r[i - 1, j] if i > 0 else np.inf
    left = r[i, j - 1] if j > 0 else np.inf
    # Not their least: min may pass over NaN.
    if diagonal == np.inf and up == np.inf and left == np.inf:
        return np.inf, 0.0, 0.0, 0.0
    least = min(diagonal, up, left)
    a, b, c = (least - diagonal) / gamma, (least - up) / gamma, (least - left) / gamma
    p, q, s = _shares(kind, a, b, c)
    if kind == _LOGSUMEXP:
        value = least - gamma * math.log(math.exp(a) + math.exp(b) + math.exp(c))
        return value, p, q, s
    mean = _product(p, a) + _product(q, b) + _product(s, c)
    if kind == _SPARSE:
        spread = p * (1 - p) + q * (1 - q) + s * (1 - s)
        return least - gamma * (mean + spread / 2), p, q, s
    value = least - gamma * mean
    return value, _product(p, 1 + a - mean), _product(q, 1 + b - mean), _product(s, 1 + c - mean)


@numba.njit(**OPTIONS)
def _fill(cost, r, gamma, kind):
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            soft = _softmin(r, i, j, gamma, kind)[0] if i + j > 0 else 0.0
            # Without a path into the cell, even a cost of NaN is never read.
            r[i, j] = np.inf if soft == np.inf else cost[i, j] + soft


@numba.njit(**OPTIONS, nogil=True, cache=True)
def forward_table(costs, tables, gamma, kind, counter):
    """Fill tables[k] with R of costs[k], for each pair k in turn."""
    while True:
        k = take_number(counter)
        if k >= len(costs):
            break
        _fill(costs[k], tables[k], gamma, kind)


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_table(costs, flows, gamma, kind, counter):
    """Turn flows[k] from the gradient of R into that of the costs, for each pair k in turn."""
    r = np.empty(costs.shape[1:])
    while True:
        k = take_number(counter)
        if k >= len(costs):
            break
        flow = flows[k]
        _fill(costs[k], r, gamma, kind)
        for i in range(r.shape[0] - 1, -1, -1):
            for j in range(r.shape[1] - 1, -1, -1):
                if r[i, j] == np.inf:
                    flow[i, j] = 0.0
                    continue
                if i + j == 0:
                    continue
                _, diagonal, up, left = _softmin(r, i, j, gamma, kind)
                if i > 0 and j > 0:
                    flow[i - 1, j - 1] += flow[i, j] * diagonal
                if i > 0:
                    flow[i - 1, j] += flow[i, j] * up
                if j > 0:
                    flow[i, j - 1] += flow[i, j] * left
