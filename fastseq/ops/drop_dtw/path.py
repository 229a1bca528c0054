"""drop_dtw_path: the cheapest matching of Drop-DTW, on the CPU."""

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.common.fused import transforms_active
from fastseq.ops.common.validate import check_bool
from fastseq.ops.drop_dtw.op import _checked, _checked_drops


def drop_dtw_path(
    cost: Tensor,
    drop_cost: Tensor,
    *,
    contiguous: bool = True,
    exclusive: bool = True,
) -> tuple[Tensor, Tensor, float]:
    r"""The cheapest matching of Drop-DTW, and the frames that it drops.

    The limit of :func:`fastseq.drop_dtw` for gamma towards 0. On a tie a frame is matched rather
    than dropped, and a match continues the step of the frame before it rather than the previous
    step. Not differentiable; runs on the CPU in float64, with 2 bytes for each of the K S cells.

    Args:
        cost: (K, S), the cost of matching frame j to step i, K and S at least 1; float64, float32,
            bfloat16 or float16, on any device. +inf forbids a match; NaN and -inf are refused.
        drop_cost: (S,), the cost of dropping each frame. +inf: the frame must be matched.
        contiguous, exclusive: as in :func:`fastseq.drop_dtw`.

    Returns:
        The matched pairs, an int64 CPU tensor (L, 2) of (step, frame) in rising order; a bool CPU
        tensor (S,), True for each dropped frame; and the cost of the matching.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape, NaN or -inf, or no matching exists
            (K > S with exclusive=True, or too many forbidden matches).

    Example:
        >>> import torch, fastseq
        >>> cost = torch.tensor([[1.0, 2.0, 9.0, 8.0], [8.0, 9.0, 9.0, 1.0]])
        >>> pairs, dropped, total = fastseq.drop_dtw_path(cost, torch.full((4,), 3.0))
        >>> pairs.tolist(), dropped.tolist(), total
        ([[0, 0], [0, 1], [1, 3]], [False, False, True, False], 7.0)
    """
    # Not imported at the top: importing numba takes longer than this whole package.
    from fastseq.ops.drop_dtw.path_kernels import find_matching, follow_back

    op = "drop_dtw_path"
    if transforms_active():
        raise RuntimeError(
            "drop_dtw_path: a matching has no derivative, and it does not work inside torch.func "
            'transforms (grad, vmap, jvp); to fix: drop_dtw(..., backend="reference")'
        )
    check_bool(op, "contiguous", contiguous)
    check_bool(op, "exclusive", exclusive)
    batch, unbatched = _checked(op, cost)
    if not unbatched or 0 in cost.shape:
        raise ValueError(
            f"{op}: cost must have shape (K, S) with K and S at least 1, got {tuple(cost.shape)}; "
            "pass one pair at a time"
        )
    drops = _checked_drops(op, drop_cost, batch, unbatched)
    costs, drops = (t.detach().double().cpu().numpy()[0] for t in (batch, drops))
    for name, values in (("cost", costs), ("drop_cost", drops)):
        if np.isnan(values).any() or (values == -np.inf).any():
            raise ValueError(f"{op}: {name} has NaN or -inf; expected finite numbers or +inf")
    steps = np.zeros(costs.shape, np.int8)
    dropped = np.zeros((costs.shape[0] + 1, costs.shape[1]), bool)
    total = float(find_matching(costs, drops, contiguous, exclusive, steps, dropped))
    if total == np.inf:
        raise ValueError(
            f"{op}: no matching exists: {costs.shape[0]} steps, {costs.shape[1]} frames and "
            f"{int(np.isinf(costs).sum())} forbidden matches; to fix: fewer forbidden matches, or "
            "exclusive=False"
        )
    pairs = torch.from_numpy(follow_back(steps, dropped, contiguous))
    unmatched = torch.ones(costs.shape[1], dtype=torch.bool)
    unmatched[pairs[:, 1]] = False
    return pairs, unmatched, total
