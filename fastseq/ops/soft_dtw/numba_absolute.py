"""The recursion over R itself, in float64: for costs with infinities, where the differences of
neighbours do not say how two ways around what is forbidden compare.

Only pairs that numba_kernels.py gives no finite value come here. R of a cell without a path is
+inf, and R is kept as a matrix.
"""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS, take_number


@numba.njit(**OPTIONS)
def _shares(r, i, j):
    """What a cell owes to its diagonal, upper and left neighbour, before division by their sum,
    which is 0 where none of them has a path; and R of the least."""
    diagonal = r[i - 1, j - 1] if i > 0 and j > 0 else np.inf
    up = r[i - 1, j] if i > 0 else np.inf
    left = r[i, j - 1] if j > 0 else np.inf
    least = min(diagonal, up, left)
    # Exactly 0 also beside NaN: what is forbidden has no gradient.
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


@numba.njit(**OPTIONS, nogil=True, cache=True)
def forward_absolute(problem, counter, r, value):
    """Fills r[k] (T, S), in units of gamma, and value[k], for each pair k in turn.

    problem: pairs' costs (K, T, S), real lengths, limits of the bands, gamma.
    """
    cost, n_real, m_real, band, gamma = problem
    while True:
        k = take_number(counter)
        if k >= len(cost):
            break
        n, m, rk = n_real[k], m_real[k], r[k]
        rk[:] = np.inf
        for i in range(n):
            first, last = _columns(i, m, band[k])
            for j in range(first, last):
                u = np.float64(cost[k, i, j]) / gamma
                if u == np.inf:
                    continue
                if u == -np.inf:
                    u = np.nan  # of a path through it no weight can be formed
                if i + j > 0:
                    diagonal, up, left, least = _shares(rk, i, j)
                    total = diagonal + up + left
                    if total == 0:
                        continue
                    u += least - np.log(total)
                rk[i, j] = u
        value[k] = rk[n - 1, m - 1] * gamma


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_absolute(problem, counter, r, grad, dcost):
    """dcost[k]: E of pair k, 0 where nothing is real, in the band or on a path."""
    cost, n_real, m_real, band, _ = problem
    while True:
        k = take_number(counter)
        if k >= len(cost):
            break
        n, m, rk = n_real[k], m_real[k], r[k]
        dcost[k] = 0
        if rk[n - 1, m - 1] == np.inf:
            continue
        here, above = np.zeros(m), np.zeros(m)
        here[m - 1] = grad[k]
        for i in range(n - 1, -1, -1):
            first, last = _columns(i, m, band[k])
            for j in range(last - 1, first - 1, -1):
                if rk[i, j] == np.inf:
                    continue
                dcost[k, i, j] = here[j]
                diagonal, up, left, _ = _shares(rk, i, j)
                flux = here[j] / (diagonal + up + left) if i + j > 0 else 0.0
                if i > 0:
                    above[j] += flux * up
                    if j > 0:
                        above[j - 1] += flux * diagonal
                if j > 0:
                    here[j - 1] += flux * left
            here, above = above, here
            above[:] = 0
