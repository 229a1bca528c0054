"""The recursion over R itself, in float64. It is needed for infinite costs: differences between
neighbours cannot compare two ways around forbidden pairs.

Only pairs for which numba_kernels.py finds no finite value come here. R of a cell without a path is
+inf, and R is kept as a matrix.
"""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS, take_number


@numba.njit(**OPTIONS)
def _shares(r, i, j, penalty, begin_free):
    """Weights of a cell's diagonal, upper and left neighbour, before division by their sum, which
    is 0 where none of them has a path; and the least R of the three."""
    diagonal = r[i - 1, j - 1] if i > 0 and j > 0 else np.inf
    up = r[i - 1, j] + penalty if i > 0 else 0.0 if begin_free else np.inf
    left = r[i, j - 1] + penalty if j > 0 else np.inf
    least = min(diagonal, up, left)
    # Exactly 0 also beside NaN: a forbidden pair has no gradient.
    return (
        0.0 if diagonal == np.inf else np.exp(least - diagonal),
        0.0 if up == np.inf else np.exp(least - up),
        0.0 if left == np.inf else np.exp(least - left),
        least,
    )


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
    whether begin and end are free.
    """
    cost, n_real, m_real, band, gammas, warp_penalty, begin_free, end_free = problem
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
                    diagonal, up, left, least = _shares(rk, i, j, penalty, begin_free)
                    total = diagonal + up + left
                    if total == 0:
                        continue
                    u += least - np.log(total)
                rk[i, j] = u
        total, least = _last_row(rk, n, m, end_free, weights)
        value[k] = np.inf if total == 0 else (least - np.log(total)) * gamma


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_absolute(problem, counter, r, grad, dcost):
    """dcost[k]: E of pair k; 0 for padding, outside the band and off every path."""
    cost, n_real, m_real, band, gammas, warp_penalty, begin_free, end_free = problem
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
                diagonal, up, left, _ = _shares(rk, i, j, penalty, begin_free)
                flux = here[j] / (diagonal + up + left) if i + j > 0 or begin_free else 0.0
                if i > 0:
                    above[j] += flux * up
                    if j > 0:
                        above[j - 1] += flux * diagonal
                if j > 0:
                    here[j - 1] += flux * left
            here, above = above, here
            above[:] = 0
