"""dtw_path: hard dynamic time warping on the CPU, with its path."""

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.common.fused import transforms_active
from fastseq.ops.common.validate import check_choice, check_pair
from fastseq.ops.soft_dtw.costs import cosine_frames, squared_distances
from fastseq.ops.soft_dtw.options import COSTS, band_limits, check_bandwidth, checked_ends


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
    step in x, then the step in y. Of free ends that tie the last one is taken, and a path begins at
    a pair if that costs no more than coming from the left. This is the limit of
    :func:`fastseq.soft_dtw` for gamma towards 0. Not differentiable; runs on the CPU in float64,
    with 9 bytes for each of the T S pairs; 4000 x 4000 frames take about 0.2 s.

    Args:
        x, y: embeddings (T, D) and (S, D), finite, T and S at least 1; float64, float32, bfloat16
            or float16, on any device.
        cost: "sqeuclidean" or "cosine", as in :func:`fastseq.soft_dtw`. Any other cost:
            :func:`fastseq.ops.soft_dtw.dtw_path_from_cost`.
        bandwidth, begin, end, warp_penalty: as in :func:`fastseq.soft_dtw`: a Sakoe-Chiba band,
            "free" for a path from or to any frame of y, and the cost of each step that is not
            diagonal.

    Returns:
        The path, an int64 CPU tensor (L, 2) of pairs (i, j) from (0, 0) to (T - 1, S - 1), or from
        and to the columns chosen for free ends; and its cost, the sum over the path including
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
            f"{tuple(y.shape)}; pass one pair at a time"
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
    # Not imported at the top: importing numba takes longer than this whole package.
    from fastseq.ops.soft_dtw.path_kernels import find_steps, follow_back

    op = "dtw_path"
    bandwidth = check_bandwidth(op, bandwidth)
    begin_free, end_free, penalty = checked_ends(op, begin, end, warp_penalty)
    cost = checked_costs(op, cost)
    limits = band_limits(*cost.shape, bandwidth)
    steps, bottom = np.zeros(cost.shape, np.int8), np.empty(cost.shape[1])
    find_steps(cost, *limits, begin_free, penalty, steps, bottom)
    j = cost.shape[1] - 1
    if end_free:
        j -= int(bottom[::-1].argmin())
    return torch.from_numpy(follow_back(steps, j, begin_free)), float(bottom[j])


def checked_costs(op: str, cost: Tensor | np.ndarray) -> np.ndarray:
    """The costs (T, S) as contiguous float64 in host memory."""
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
        raise ValueError(f"{op}: the costs have NaN or infinity; expected finite numbers")
    return cost
