"""dtw_local_path_from_cost: the best part of a path, which may begin and end at any pair."""

import math
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.soft_dtw.path import checked_costs

_DIAGONAL, _DOWN, _RIGHT, _BEGIN = range(4)


def dtw_local_path_from_cost(
    cost: Tensor | np.ndarray, *, threshold: float
) -> tuple[Tensor, float]:
    r"""The best-scoring monotone path that begins and ends at any pair of frames.

    Each pair of the path earns ``threshold - cost``; the path with the highest sum wins. It is the
    local alignment of Smith and Waterman with the steps of DTW:

    ``S_ij = threshold - c_ij + max(0, S_i-1,j-1, S_i-1,j, S_i,j-1)``,

    and the path follows the maximum back from the highest ``S_ij``. Frames before and after it
    stay out, of x and of y. A path crosses expensive pairs only if cheaper pairs behind them make
    up for it, and a higher threshold never lowers the score. A diagonal step skips a pair that two
    other steps would have included; it is taken where that pair costs more than the threshold.

    Of several paths with the highest score the one that ends first is returned (smallest i + j,
    then smallest i), without a beginning that earns 0 in total; ties between steps are resolved as
    in :func:`fastseq.dtw_path`. Not differentiable; runs on the CPU in float64; 9 bytes for each
    of the T S pairs; 4000 x 4000 frames take two seconds.

    Args:
        cost: costs (T, S) of any sign, finite, T and S at least 1, on any device.
        threshold: largest cost that does not lower the score, in the costs' unit; finite.

    Returns:
        The path, an int64 CPU tensor (L, 2) of pairs (i, j), and its score, which is above 0. If no
        pair costs less than the threshold, a path of shape (0, 2) and 0.0.

    Raises:
        TypeError: wrong type. ValueError: wrong shape or threshold, or NaN or infinity.

    Example:
        >>> import torch
        >>> cost = torch.tensor([[9.0, 9.0, 9.0, 9.0], [9.0, 0.0, 9.0, 9.0], [9.0, 9.0, 1.0, 9.0]])
        >>> path, score = dtw_local_path_from_cost(cost, threshold=2.0)
        >>> path.tolist(), score
        ([[1, 1], [2, 2]], 3.0)
    """
    op = "dtw_local_path_from_cost"
    cost = checked_costs(op, cost)
    if not isinstance(threshold, Real) or isinstance(threshold, bool):
        raise TypeError(f"{op}: threshold must be a number, got {type(threshold).__name__}")
    if not math.isfinite(threshold):
        raise ValueError(f"{op}: threshold must be finite, got {threshold}")
    steps, (i, j), score = _steps(float(threshold) - cost)
    if score <= 0:
        return torch.empty(0, 2, dtype=torch.int64), 0.0
    path = [(i, j)]
    while steps[i, j] != _BEGIN:
        step = steps[i, j]
        i -= step != _RIGHT
        j -= step != _DOWN
        path.append((i, j))
    return torch.tensor(path[::-1]), score


def _steps(earned: np.ndarray) -> tuple[np.ndarray, tuple[int, int], float]:
    """The step into each cell, the cell of the highest S, and that S; by anti-diagonals."""
    n, m = earned.shape
    steps = np.zeros((n, m), np.int8)
    # S of the two anti-diagonals before, at row i + 1; row 0 and cells outside a diagonal stand for
    # "outside".
    before, last = np.full((2, n + 1), -np.inf)
    highest, end = -np.inf, (0, 0)
    for k in range(n + m - 1):
        first, stop = max(0, k - m + 1), min(k, n - 1) + 1
        diagonal, down, right = before[first:stop], last[first:stop], last[first + 1 : stop + 1]
        step = np.where(down > diagonal, _DOWN, _DIAGONAL)
        best = np.maximum(diagonal, down)
        step[right > best] = _RIGHT
        best = np.maximum(best, right)
        step[best <= 0] = _BEGIN
        # The cells (i, k - i) in the flattened matrix.
        cells = slice(first * m + k - first, (stop - 1) * m + k - stop + 2, max(m - 1, 1))
        steps.reshape(-1)[cells] = step
        now = np.full(n + 1, -np.inf)
        here = now[first + 1 : stop + 1]
        here[:] = earned.reshape(-1)[cells] + np.maximum(best, 0)
        place = int(here.argmax())
        if here[place] > highest:
            highest, end = float(here[place]), (first + place, k - first - place)
        before, last = last, now
    return steps, end, highest
