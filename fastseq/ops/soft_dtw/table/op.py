"""The table of Soft-DTW as called by the user: checks, padding, choice of backend."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import choose_backend, constant_under_compile, unavailable
from fastseq.ops.common.fused import FusedLoss
from fastseq.ops.common.lengths import Lengths, prepare_valid, valid_mask
from fastseq.ops.common.validate import FLOAT_DTYPES, check_choice, check_positive
from fastseq.ops.soft_dtw.options import SOFTMINS
from fastseq.ops.soft_dtw.table.reference import table_reference


class TableOptions(NamedTuple):
    gamma: float
    softmin: str


FUSED = FusedLoss(
    "soft_dtw_table_from_cost",
    "fastseq.ops.soft_dtw.table",
    inputs=("cost",),
    differentiable=1,
    options=TableOptions,
    reference=table_reference,
    # The backward recomputes R: keeping it would need a second T x S matrix.
    kept=1,
    shapes=lambda cost, *, backend, opts, needs: (cost.shape, None),
    stem="soft_dtw_table",
)


def soft_dtw_table_from_cost(
    cost: Tensor,
    *,
    gamma: float = 1.0,
    softmin: str = "logsumexp",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    backend: str = "auto",
) -> Tensor:
    r"""The table R of :func:`soft_dtw_from_cost`: the Soft-DTW value of every pair of prefixes.

    ::

        R_ij = cost_ij + softmin(R_i-1,j-1, R_i-1,j, R_i,j-1)     R of the first pair: its cost

    Every entry has a gradient, while :func:`soft_dtw_from_cost` returns the last one only. Memory:
    T x S numbers for R by definition, in float64.

    Args:
        cost: (N, T, S), or (T, S) for one pair: the cost of pairing frame i of x with frame j of
            y; float64, float32, bfloat16 or float16. +inf forbids a pair, and R is +inf, without a
            gradient, where no path is left. NaN and -inf make R NaN at their pair and behind it.
        gamma: smoothing, in the units of the cost. Default 1.0, as :func:`soft_dtw`.
        softmin: "logsumexp", "prob" or "sparse", as in :func:`soft_dtw`.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence. Padding is ignored, even if it contains NaN.
        backend: "auto", "numba" (CPU), "torch" (any device) or "reference" (the only one that can
            be differentiated twice).

    Returns:
        (N, T, S), or (T, S) for one pair: float64 for float64 inputs, otherwise float32. 0 for
        padding.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it, or a backend other than
            "reference" is differentiated twice.

    Example:
        >>> import torch
        >>> from fastseq.ops.soft_dtw import soft_dtw_table_from_cost
        >>> cost = (torch.arange(3.0)[:, None] - torch.arange(3.0)).square()
        >>> soft_dtw_table_from_cost(cost, gamma=0.01)
        tensor([[0., 1., 5.],
                [1., 0., 1.],
                [5., 1., 0.]])
    """
    op = "soft_dtw_table_from_cost"
    check_cost(op, cost)
    check_choice(op, "softmin", softmin, SOFTMINS)
    opts = TableOptions(check_positive(op, "gamma", gamma), softmin)
    name = _resolve(op, backend, cost.device.type)
    unbatched = cost.dim() == 2
    if unbatched:
        cost = cost[None]
    dtype = torch.float64 if cost.dtype == torch.float64 else torch.float32
    num, frames_x, frames_y = cost.shape
    lengths_x = prepare_valid(op, "_x", lengths_x, None, num, frames_x, cost.device)
    lengths_y = prepare_valid(op, "_y", lengths_y, None, num, frames_y, cost.device)
    # A cell of R depends on the cells before it only, so padding needs no more than this mask.
    real = valid_mask(lengths_x, num, frames_x, cost.device)[:, :, None]
    real = real & valid_mask(lengths_y, num, frames_y, cost.device)[:, None]
    table = torch.where(real, cost, 0).double()
    # A path through -inf has no weight.
    table = torch.where(table == -torch.inf, torch.nan, table)
    if table.numel():
        table = FUSED(name, opts, table)
    table = torch.where(real, table, 0).to(dtype)
    return table[0] if unbatched else table


def check_cost(op: str, cost: Tensor) -> None:
    """A floating tensor of shape (N, T, S) or (T, S)."""
    if not isinstance(cost, Tensor):
        raise TypeError(f"{op}: cost must be a torch.Tensor, got {type(cost).__name__}")
    if cost.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{op}: cost must be float64, float32, bfloat16 or float16, got {cost.dtype}"
        )
    if cost.dim() not in (2, 3):
        raise ValueError(
            f"{op}: cost must have shape (N, T, S), or (T, S) for one pair; got {tuple(cost.shape)}"
        )


@constant_under_compile
def _resolve(op: str, requested: str, device_type: str) -> str:
    elsewhere = f"the tensors are on {device_type}; to fix: move them to the CPU"
    numba = unavailable("numba") if device_type == "cpu" else elsewhere
    return choose_backend(op, requested, {"numba": numba, "torch": None, "reference": None})[0]
