"""Dynamic time warping between two sequences, in plain numpy.

Good for the few hundred to few thousand frames of an evaluation clip: memory is T1 * T2 float64.
It stands here until fastseq has its own ``dtw_path``.
"""

from __future__ import annotations

import numpy as np


def dtw_path(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The cheapest monotone path through ``cost`` from its first to its last corner.

    R[i, j] = cost[i, j] + min(R[i-1, j-1], R[i-1, j], R[i, j-1]); the path follows the minimum
    back from R[T1-1, T2-1]. On a tie the diagonal step is taken first, then the step in i.

    Args:
        cost: (T1, T2), finite, T1 and T2 at least 1.
    Returns:
        i, j: int64 indices of the path, from 0 to T - 1, and the path's cost.
    Raises:
        ValueError: wrong shape, empty, or not finite.
    """
    cost = np.asarray(cost, dtype=np.float64)
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(f"cost has shape {cost.shape}; expected (T1, T2), both at least 1")
    if not np.isfinite(cost).all():
        raise ValueError("cost holds NaN or infinity; expected finite numbers")
    total = _accumulate(cost)
    i, j = cost.shape[0] - 1, cost.shape[1] - 1
    path = [(i, j)]
    while i or j:
        # total is padded: total[i, j] is R[i-1, j-1], total[i, j+1] is R[i-1, j].
        steps = (total[i, j], total[i, j + 1], total[i + 1, j])
        best = int(np.argmin(steps))
        i -= best in (0, 1)
        j -= best in (0, 2)
        path.append((i, j))
    rows, columns = np.array(path[::-1], dtype=np.int64).T
    return rows, columns, float(total[-1, -1])


def _accumulate(cost: np.ndarray) -> np.ndarray:
    """R with a border of infinities in row and column 0, filled one anti-diagonal at a time."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(diagonal, rows - 1) + 1)
        j = diagonal - i
        best = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = cost[i, j] + best
    return total


def match_frames(i: np.ndarray, j: np.ndarray, length: int) -> np.ndarray:
    """One frame of the second sequence for each of the ``length`` frames of the first.

    The path may pair a frame with several; the middle one of them is taken.
    """
    first = np.searchsorted(i, np.arange(length), side="left")
    last = np.searchsorted(i, np.arange(length), side="right") - 1
    return j[(first + last) // 2]
