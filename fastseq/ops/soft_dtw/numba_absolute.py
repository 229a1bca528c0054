"""The recursion over R itself, in float64. It is needed for infinite costs: differences between
neighbours cannot compare two ways around forbidden pairs.

Only pairs for which numba_kernels.py finds no finite value come here. R of a cell without a path is
+inf, and R is kept as a matrix.

numba's cache checks the file of a compiled function alone: after an edit here, touch
table/numba_kernels.py.
"""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS, take_number
from fastseq.ops.soft_dtw.options import SOFTMINS

PROB, SPARSE = SOFTMINS.index("prob"), SOFTMINS.index("sparse")


@numba.njit(**OPTIONS)
def shares(r, i, j, penalty, begin_free, kind):
    """Weights of a cell's diagonal, upper and left neighbour, the derivatives of the soft minimum
    times ``total``; total, which is 0 where none of them has a path; and the soft minimum."""
    diagonal = r[i - 1, j - 1] if i > 0 and j > 0 else np.inf
    up = r[i - 1, j] + penalty if i > 0 else 0.0 if begin_free else np.inf
    left = r[i, j - 1] + penalty if j > 0 else np.inf
    least = min(diagonal, up, left)
    if kind == SPARSE:
        return _sparse(diagonal, up, left)
    # Exactly 0 also beside NaN: a forbidden pair has no gradient.
    a = 0.0 if diagonal == np.inf else np.exp(least - diagonal)
    b = 0.0 if up == np.inf else np.exp(least - up)
    c = 0.0 if left == np.inf else np.exp(least - left)
    total = a + b + c
    if total == 0 or kind != PROB:
        return a, b, c, total, least - np.log(total)
    to_a = 0.0 if diagonal == np.inf else diagonal - least
    to_b = 0.0 if up == np.inf else up - least
    to_c = 0.0 if left == np.inf else left - least
    mean = (a * to_a + b * to_b + c * to_c) / total
    a, b, c = a * (1 + mean - to_a), b * (1 + mean - to_b), c * (1 + mean - to_c)
    return a, b, c, total, least + mean


@numba.njit(**OPTIONS)
def _sparse(diagonal, up, left):
    """The same for the sparse minimum; the weights are the point of the simplex nearest to minus
    the scores."""
    least = min(diagonal, up, left)
    if diagonal == np.inf and up == np.inf and left == np.inf:
        return 0.0, 0.0, 0.0, 0.0, np.inf
    small, most = min(diagonal, up), max(diagonal, up)
    middle, most = max(small, min(most, left)) - least, max(most, left) - least
    # Of the least score, if one, two or three scores have a share: the smallest is it.
    share = min(1.0, (1 + middle) / 2, (1 + middle + most) / 3)
    a, b, c = share - (diagonal - least), share - (up - least), share - (left - least)
    # Not max: NaN stays.
    a, b, c = 0.0 if a <= 0 else a, 0.0 if b <= 0 else b, 0.0 if c <= 0 else c
    return a, b, c, a + b + c, least + share - (1 + a * a + b * b + c * c) / 2


@numba.njit(**OPTIONS)
def _columns(i, m, limits):
    """Columns [first, last) of row i in the band."""
    return max(0, i + limits[0]), min(m, i + limits[1] + 1)


@numba.njit(**OPTIONS)
def _last_row(r, n, m, end_free, weights):
    """weights[j]: of a path's end at column j of the last row, before division by their sum.
    Returns the sum, which is 0 where no end has a path, and the least R."""
    weights[:] = 0
    least, total = np.inf, 0.0
    first = 0 if end_free else m - 1
    for j in range(first, m):
        least = min(least, r[n - 1, j])
    for j in range(first, m):
        if r[n - 1, j] != np.inf:
            weights[j] = np.exp(least - r[n - 1, j])
            total += weights[j]
    return total, least


@numba.njit(**OPTIONS, nogil=True, cache=True)
def forward_absolute(problem, counter, r, value):
    """Fill r[k] (T, S), in units of gamma, and value[k], for each pair k in turn.

    problem: pairs' costs (K, T, S), real lengths, limits of the bands, gammas; the warp penalty,
    whether begin and end are free; the place of the soft minimum in SOFTMINS.
    """
    cost, n_real, m_real, band, gammas, warp_penalty, begin_free, end_free, kind = problem
    weights = np.empty(cost.shape[2])
    while True:
        k = take_number(counter)
        if k >= len(cost):
            break
        n, m, rk = n_real[k], m_real[k], r[k]
        gamma, penalty = gammas[k], warp_penalty / gammas[k]
        rk[:] = np.inf
        for i in range(n):
            first, last = _columns(i, m, band[k])
            for j in range(first, last):
                u = np.float64(cost[k, i, j]) / gamma
                if u == np.inf:
                    continue
                if u == -np.inf:
                    u = np.nan  # a path through it has no weight
                if i + j > 0 or begin_free:
                    _, _, _, total, soft = shares(rk, i, j, penalty, begin_free, kind)
                    if total == 0:
                        continue
                    u += soft
                rk[i, j] = u
        total, least = _last_row(rk, n, m, end_free, weights)
        value[k] = np.inf if total == 0 else (least - np.log(total)) * gamma


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_absolute(problem, counter, r, grad, dcost):
    """dcost[k]: E of pair k; 0 for padding, outside the band and off every path."""
    cost, n_real, m_real, band, gammas, warp_penalty, begin_free, end_free, kind = problem
    weights = np.empty(cost.shape[2])
    while True:
        k = take_number(counter)
        if k >= len(cost):
            break
        n, m, rk = n_real[k], m_real[k], r[k]
        penalty = warp_penalty / gammas[k]
        dcost[k] = 0
        total, _ = _last_row(rk, n, m, end_free, weights)
        if total == 0:
            continue
        here, above = weights[:m] * (grad[k] / total), np.zeros(m)
        for i in range(n - 1, -1, -1):
            first, last = _columns(i, m, band[k])
            for j in range(last - 1, first - 1, -1):
                if rk[i, j] == np.inf:
                    continue
                dcost[k, i, j] = here[j]
                diagonal, up, left, total, _ = shares(rk, i, j, penalty, begin_free, kind)
                flux = here[j] / total if i + j > 0 or begin_free else 0.0
                if i > 0:
                    above[j] += flux * up
                    if j > 0:
                        above[j - 1] += flux * diagonal
                if j > 0:
                    here[j - 1] += flux * left
            here, above = above, here
            above[:] = 0
