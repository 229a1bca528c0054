"""Kernels of the numba backend: one pair of sequences per thread, column after column, in float64.

The forward keeps D and P as they enter each stretch of columns; the backward computes one stretch
again at a time. Without a path D and P are +inf.
"""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS, take_number

NEVER, ENDS, ALWAYS = range(3)


@numba.njit(**OPTIONS)
def _sum(a, b):
    """a + b, +inf if either is, also beside NaN."""
    return np.inf if a == np.inf or b == np.inf else a + b


@numba.njit(**OPTIONS)
def _scaled(cost, scale):
    # A path through -inf has no weight.
    return np.nan if cost == -np.inf else np.float64(cost) * scale


@numba.njit(**OPTIONS)
def _weights(a, b, c):
    """exp(least - term) of each term, 0 for +inf; their sum; and the least, NaN if any term is.
    c is not +inf."""
    least = min(a, b, c)
    if a != a or b != b or c != c:
        least = np.nan
    wa = 0.0 if a == np.inf else np.exp(least - a)
    wb = 0.0 if b == np.inf else np.exp(least - b)
    wc = np.exp(least - c)
    return wa, wb, wc, wa + wb + wc, least


@numba.njit(**OPTIONS)
def _mean(a, b, c, wa, wb, wc, total, least):
    """Mean of term - least; terms of +inf have no weight."""
    part = wc * (c - least)
    if a != np.inf:
        part += wa * (a - least)
    if b != np.inf:
        part += wb * (b - least)
    return part / total


@numba.njit(**OPTIONS)
def _softmin(a, b, c, prob):
    if c == np.inf:  # two terms need one exp
        # Not min(a, b), which is +inf for +inf and NaN.
        if a == np.inf:
            return b
        if b == np.inf:
            return a
        gap = abs(a - b)
        w = np.exp(-gap)
        return min(a, b) + (gap * w / (1 + w) if prob else -np.log(1 + w))
    wa, wb, wc, total, least = _weights(a, b, c)
    if prob:
        return least + _mean(a, b, c, wa, wb, wc, total, least)
    return least - np.log(total)


@numba.njit(**OPTIONS)
def _two_shares(a, b, prob):
    if a == np.inf:
        return 0.0, 0.0 if b == np.inf else 1 + 0 * b  # NaN stays
    if b == np.inf:
        return 1 + 0 * a, 0.0
    gap = abs(a - b)
    w = np.exp(-gap)
    near, far = 1 / (1 + w), w / (1 + w)
    if prob:
        mean = gap * far
        near, far = near * (1 + mean), far * (1 - (gap - mean))
    return (near, far) if a <= b else (far, near)


@numba.njit(**OPTIONS)
def _shares(a, b, c, prob):
    """Derivatives of the soft minimum by its terms, 0 for terms of +inf."""
    if c == np.inf:
        pa, pb = _two_shares(a, b, prob)
        return pa, pb, 0.0
    wa, wb, wc, total, least = _weights(a, b, c)
    pa, pb, pc = wa / total, wb / total, wc / total
    if prob:
        mean = _mean(a, b, c, wa, wb, wc, total, least)
        pa = 0.0 if a == np.inf else pa * (1 - (a - least - mean))
        pb = 0.0 if b == np.inf else pb * (1 - (b - least - mean))
        pc *= 1 - (c - least - mean)
    return pa, pb, pc


@numba.njit(**OPTIONS)
def _goes_up(up, j, m):
    return up == ALWAYS or (up == ENDS and (j == 0 or j == m - 1))


@numba.njit(**OPTIONS)
def _column(cost, drop, j, n, m, options, d, p, new_d, new_p):
    """D and P of column j (counted from 0) from those of the column before it."""
    scale, contiguous, up, prob = options
    ups = _goes_up(up, j, m)
    dropped = _scaled(drop[j], scale)
    new_d[0], new_p[0] = _sum(d[0], dropped), np.inf
    for i in range(1, n + 1):
        upper = new_p[i - 1] if ups else np.inf
        soft = _softmin(d[i - 1], p[i] if contiguous else d[i], upper, prob)
        new_p[i] = _sum(soft, _scaled(cost[i - 1, j], scale))
        new_d[i] = _softmin(new_p[i], _sum(d[i], dropped), np.inf, prob)


@numba.njit(**OPTIONS, nogil=True, cache=True)
def forward_pairs(problem, counter, state, value):
    """Fill value (N,), and state (N, stretches, 2, K + 1), D and P as they enter each stretch.

    problem: cost (N, K, S), drop costs (N, S), real lengths, columns of a stretch, and the options:
    1 / gamma, contiguous, the columns where P_i-1,j counts, whether the soft minimum is "prob".
    """
    cost, drop, n_real, m_real, stretch, options = problem
    d, p = np.empty((2, cost.shape[1] + 1)), np.empty((2, cost.shape[1] + 1))
    while True:
        b = take_number(counter)
        if b >= len(cost):
            break
        n, m = n_real[b], m_real[b]
        if n == 0 or m == 0:
            value[b] = 0
            continue
        d[0], p[0] = np.inf, np.inf
        d[0, 0] = 0
        for j in range(m):
            old, new = j % 2, (j + 1) % 2
            if state.shape[1] > 0 and j % stretch == 0:
                state[b, j // stretch, 0] = d[old]
                state[b, j // stretch, 1] = p[old]
            _column(cost[b], drop[b], j, n, m, options, d[old], p[old], d[new], p[new])
        value[b] = d[m % 2, n] / options[0]


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_pairs(problem, counter, state, grad, dcost, ddrop):
    """Fill dcost and ddrop, which are 0, where the cells are real."""
    cost, drop, n_real, m_real, stretch, options = problem
    scale, contiguous, up, prob = options
    rows = cost.shape[1] + 1
    d, p = np.empty((stretch + 1, rows)), np.empty((stretch + 1, rows))
    to_d, to_p = np.empty((2, rows)), np.empty((2, rows))
    while True:
        b = take_number(counter)
        if b >= len(cost):
            break
        n, m = n_real[b], m_real[b]
        if n == 0 or m == 0:
            continue
        to_d[:], to_p[:] = 0, 0
        to_d[m % 2, n] = grad[b]
        for part in range((m - 1) // stretch, -1, -1):
            first, last = part * stretch, min((part + 1) * stretch, m)
            d[0], p[0] = state[b, part, 0], state[b, part, 1]
            for j in range(first, last):
                k = j - first
                _column(cost[b], drop[b], j, n, m, options, d[k], p[k], d[k + 1], p[k + 1])
            for j in range(last - 1, first - 1, -1):
                old, new = d[j - first], d[j - first + 1]
                old_p, new_p = p[j - first], p[j - first + 1]
                of_d, of_p = to_d[(j + 1) % 2], to_p[(j + 1) % 2]
                next_d, next_p = to_d[j % 2], to_p[j % 2]
                next_d[:], next_p[:] = 0, 0
                ups, total = _goes_up(up, j, m), 0.0
                dropped = _scaled(drop[b, j], scale)
                for i in range(n, 0, -1):
                    if of_d[i] == 0 and of_p[i] == 0:
                        continue
                    unmatched = _sum(old[i], dropped)
                    match, skip, _ = _shares(new_p[i], unmatched, np.inf, prob)
                    # Exactly 0 also beside NaN: what is forbidden has no gradient.
                    if unmatched != np.inf:
                        flux = of_d[i] * skip
                        total += flux
                        next_d[i] += flux
                    if new_p[i] == np.inf:
                        continue
                    flux = of_p[i] + of_d[i] * match
                    dcost[b, i - 1, j] = flux
                    upper = new_p[i - 1] if ups else np.inf
                    left = old_p[i] if contiguous else old[i]
                    diagonal, along, above = _shares(old[i - 1], left, upper, prob)
                    next_d[i - 1] += flux * diagonal
                    if contiguous:
                        next_p[i] += flux * along
                    else:
                        next_d[i] += flux * along
                    if ups:
                        of_p[i - 1] += flux * above
                if new[0] != np.inf:
                    total += of_d[0]
                    next_d[0] += of_d[0]
                ddrop[b, j] = total
