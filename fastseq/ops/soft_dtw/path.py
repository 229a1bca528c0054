"""dtw_path: hard dynamic time warping on the CPU, with its path."""

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.common.fused import transforms_active
from fastseq.ops.common.validate import check_choice, check_pair
from fastseq.ops.soft_dtw.costs import cosine_frames, squared_distances
from fastseq.ops.soft_dtw.options import COSTS, band_limits, check_bandwidth, checked_ends

_DIAGONAL, _DOWN, _RIGHT = range(3)


def dtw_path(
    x: Tensor,
    y: Tensor,
    *,
    cost: str = "sqeuclidean",
    bandwidth: int | None = None,
    begin: str = "fixed",
    end: str = "fixed",
    warp_penalty: float = 0.0,
) -> tuple[Tensor, float]:
    r"""The cheapest monotone path from the first pair of frames to the last one: hard DTW.

    ``R_ij = c_ij + min(R_i-1,j-1, R_i-1,j + w, R_i,j-1 + w)`` with the warp penalty w; the path
    follows the minimum back from the last pair. On a tie the diagonal step is taken first, then the
    step in x, then the step in y; of free ends that tie the last is taken, and a path begins where
    it can as cheaply as it could come from the left. The limit of :func:`fastseq.soft_dtw` for
    gamma towards 0. Not differentiable; runs on the CPU in float64, with 10 bytes for each of the
    T S pairs; 4000 x 4000 frames take about a second.

    Args:
        x, y: embeddings (T, D) and (S, D), finite, T and S at least 1; float64, float32, bfloat16
            or float16, on any device.
        cost: "sqeuclidean" or "cosine", as in :func:`fastseq.soft_dtw`. Any other cost:
            :func:`fastseq.ops.soft_dtw.dtw_path_from_cost`.
        bandwidth, begin, end, warp_penalty: as in :func:`fastseq.soft_dtw`: a Sakoe-Chiba band,
            "free" for a path from or to any frame of y, and what each step that is not diagonal
            costs.

    Returns:
        The path, an int64 CPU tensor (L, 2) of pairs (i, j) from (0, 0) to (T - 1, S - 1), or from
        and to the columns that free ends chose, and its cost, the sum over the path with its
        penalties.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option, or NaN or infinity.

    Example:
        >>> import torch, fastseq
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]])
        >>> path, total = fastseq.dtw_path(x, y)
        >>> path.tolist(), total
        ([[0, 0], [0, 1], [1, 2]], 4.0)
        >>> fastseq.dtw_path(x, y, begin="free")[0].tolist()
        [[0, 1], [1, 2]]
    """
    if transforms_active():
        raise RuntimeError(
            "dtw_path: a path has no derivative, and it does not work inside torch.func transforms "
            '(grad, vmap, jvp); to fix: soft_dtw_alignment(..., backend="reference")'
        )
    check_pair("dtw_path", "x", x, "y", y)
    check_choice("dtw_path", "cost", cost, COSTS)
    if x.dim() != 2:
        raise ValueError(
            f"dtw_path: x and y must have shape (T, D) and (S, D), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}; call it for one pair at a time"
        )
    x, y = (t.detach().double().cpu() for t in (x, y))
    if cost == "cosine":
        x, y = cosine_frames(x, None, 0), cosine_frames(y, None, 1)
    return dtw_path_from_cost(
        squared_distances(x, y),
        bandwidth=bandwidth,
        begin=begin,
        end=end,
        warp_penalty=warp_penalty,
    )


def dtw_path_from_cost(
    cost: Tensor | np.ndarray,
    *,
    bandwidth: int | None = None,
    begin: str = "fixed",
    end: str = "fixed",
    warp_penalty: float = 0.0,
) -> tuple[Tensor, float]:
    """:func:`dtw_path` of costs (T, S) that the caller has computed, of any sign.

    Example:
        >>> import torch
        >>> path, total = dtw_path_from_cost(torch.tensor([[-1.0, 5.0], [5.0, -2.0]]))
        >>> path.tolist(), total
        ([[0, 0], [1, 1]], -3.0)
    """
    op = "dtw_path"
    bandwidth = check_bandwidth(op, bandwidth)
    begin_free, end_free, penalty = checked_ends(op, begin, end, warp_penalty)
    if not isinstance(cost, Tensor | np.ndarray):
        raise TypeError(f"{op}: cost must be a tensor or an array, got {type(cost).__name__}")
    if isinstance(cost, Tensor):
        cost = cost.detach().double().cpu().numpy()
    cost = np.ascontiguousarray(cost, dtype=np.float64)
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(
            f"{op}: the costs must have shape (T, S) with T and S at least 1, got {cost.shape}"
        )
    if not np.isfinite(cost).all():
        raise ValueError(f"{op}: the costs hold NaN or infinity; expected finite numbers")
    limits = band_limits(*cost.shape, bandwidth)
    steps, bottom = _steps(cost, *limits, begin_free, penalty)
    i, j = cost.shape[0] - 1, cost.shape[1] - 1
    if end_free:
        j -= int(bottom[::-1].argmin())
    total, path = float(bottom[j]), [(i, j)]
    while i or (j and not (begin_free and steps[0, j] == _DOWN)):
        step = steps[i, j]
        i -= step != _RIGHT
        j -= step != _DOWN
        path.append((i, j))
    return torch.tensor(path[::-1]), total


def _steps(
    cost: np.ndarray, low: int, high: int, begin_free: bool, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """The step into each cell of the band, and R of the last row; by anti-diagonals. Down into
    row 0: the path begins there."""
    n, m = cost.shape
    steps, bottom = np.zeros((n, m), np.int8), np.full(m, np.inf)
    # R of the two anti-diagonals before, at row i + 1: row 0 stands for "outside", like all
    # cells that are not in the band. The first cell comes diagonally from a cell of cost 0.
    before, last = np.full((2, n + 1), np.inf)
    before[0] = np.inf if begin_free else 0
    for k in range(n + m - 1):
        first = max(0, k - m + 1, -((high - k) // 2))
        end = min(k, n - 1, (k - low) // 2) + 1
        now = np.full(n + 1, np.inf)
        if first < end:
            diagonal, down = before[first:end], last[first:end] + penalty
            right = last[first + 1 : end + 1] + penalty
            if begin_free and first == 0:
                down[0] = 0
            step = np.where(down < diagonal, _DOWN, _DIAGONAL)
            best = np.minimum(diagonal, down)
            step[right < best] = _RIGHT
            # The cells (i, k - i) in the flattened matrix.
            cells = slice(first * m + k - first, (end - 1) * m + k - end + 2, max(m - 1, 1))
            steps.reshape(-1)[cells] = step
            now[first + 1 : end + 1] = cost.reshape(-1)[cells] + np.minimum(best, right)
        if k >= n - 1:
            bottom[k - n + 1] = now[n]
        before, last = last, now
    return steps, bottom
