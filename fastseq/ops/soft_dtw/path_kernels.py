"""Kernels of dtw_path: R row by row, the step into each cell, and the path back along the steps."""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS

DIAGONAL, DOWN, RIGHT = range(3)


@numba.njit(**OPTIONS, nogil=True, cache=True)
def find_steps(cost, low, high, begin_free, penalty, steps, row):
    """Fill steps (T, S), the step into each cell of the band, and row (S,), R of the last row.

    Down into row 0: the path begins there. On a tie the diagonal step comes first, then down.
    """
    n, m = cost.shape
    row[:] = np.inf
    for i in range(n):
        first, last = max(0, i + low), min(m, i + high + 1)
        # The first cell comes diagonally from a cell of cost 0.
        diagonal = row[first - 1] if first > 0 else np.inf
        if i == 0 and not begin_free:
            diagonal = 0.0
        if first > 0:
            row[first - 1] = np.inf  # left of the band
        left = np.inf
        for j in range(first, last):
            above = row[j]
            down, right = above + penalty, left + penalty
            if i == 0 and begin_free:
                down = 0.0
            step, best = DIAGONAL, diagonal
            if down < best:
                step, best = DOWN, down
            if right < best:
                step, best = RIGHT, right
            steps[i, j] = step
            left = cost[i, j] + best
            row[j] = left
            diagonal = above


@numba.njit(**OPTIONS, nogil=True, cache=True)
def follow_back(steps, j, begin_free):
    """Pairs (i, j) of the path that ends in column j of the last row, first to last."""
    i = steps.shape[0] - 1
    path = np.empty((i + j + 1, 2), np.int64)
    k = len(path) - 1
    path[k] = i, j
    while i or (j and not (begin_free and steps[0, j] == DOWN)):
        step = steps[i, j]
        i -= step != RIGHT
        j -= step != DOWN
        k -= 1
        path[k, 0], path[k, 1] = i, j
    return path[k:].copy()
