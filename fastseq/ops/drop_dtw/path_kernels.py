"""Kernels of drop_dtw_path: the steps into each cell, and the matching back along the steps."""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS

LEFT, DIAGONAL, UP = range(3)


@numba.njit(**OPTIONS, nogil=True, cache=True)
def find_matching(cost, drop, contiguous, exclusive, steps, dropped):
    """Fill, for each cell, steps (K, S), from where frame j is matched to step i, and dropped
    (K + 1, S), whether dropping frame j is cheaper than matching it. Returns the least cost.
    """
    k, m = cost.shape
    d, p = np.full((2, k + 1), np.inf), np.full((2, k + 1), np.inf)
    d[0, 0] = 0
    for j in range(m):
        old, new = j % 2, (j + 1) % 2
        d[new, 0], dropped[0, j] = d[old, 0] + drop[j], True
        for i in range(1, k + 1):
            step, best = LEFT, p[old, i] if contiguous else d[old, i]
            if d[old, i - 1] < best:
                step, best = DIAGONAL, d[old, i - 1]
            if not exclusive and p[new, i - 1] < best:
                step, best = UP, p[new, i - 1]
            steps[i - 1, j] = step
            p[new, i] = cost[i - 1, j] + best
            skip = drop[j] + d[old, i]
            dropped[i, j] = skip < p[new, i]
            d[new, i] = min(skip, p[new, i])
    return d[m % 2, k]


@numba.njit(**OPTIONS, nogil=True, cache=True)
def follow_back(steps, dropped, contiguous):
    """Pairs (step, frame) of the matching, first to last."""
    i, j = steps.shape
    pairs = np.empty((i + j, 2), np.int64)
    place, matched = len(pairs), False
    while j > 0:
        if not matched and dropped[i, j - 1]:
            j -= 1
            continue
        place -= 1
        pairs[place, 0], pairs[place, 1] = i - 1, j - 1
        step = steps[i - 1, j - 1]
        matched = step == UP or (step == LEFT and contiguous)
        i -= step != LEFT
        j -= step != UP
    return pairs[place:].copy()
