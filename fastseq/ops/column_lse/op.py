"""column_lse: choice of backend, and the link from its backends to PyTorch. The callers, which are
other ops, have checked its inputs."""

import torch
from torch import Tensor

from fastseq.ops.column_lse.options import ColumnLSEOptions
from fastseq.ops.column_lse.reference import column_lse_reference
from fastseq.ops.common.dispatch import constant_under_compile, triton_and_torch
from fastseq.ops.common.fused import FusedLoss


def column_lse(
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    rate: float,
    backend: str,
) -> Tensor:
    """(N, S): log sum_i exp(rate (<x_i, y_j> - 1)) over the real frames i of x.

    x (N, T, D) and y (N, S, D): unit vectors or zeros, float32 or float64; lengths (N,) int64 on
    their device, or None where all frames are real. ``backend``: "torch", "triton" or "reference".
    Columns of padding, and all columns where x has no real frame, have value 0 and no gradient.
    """
    return FUSED(backend, ColumnLSEOptions(rate), x, y, lengths_x, lengths_y)


@constant_under_compile
def backend_beside(name: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that forms the columns' log-sum-exp for backend ``name`` of soft_dtw."""
    if name in ("torch", "reference"):
        return name
    usable = triton_and_torch(device_type, dtype)
    return next(beside for beside, reason in usable.items() if reason is None)


def _shapes(x, y, lengths_x, lengths_y, backend: str, opts: ColumnLSEOptions, needs):
    """Shapes of the value, and of its logarithms that the backward needs."""
    return y.shape[:2], y.shape[:2] if any(needs) else None


FUSED = FusedLoss(
    "soft_dtw",  # the function that errors name
    "fastseq.ops.column_lse",
    inputs=("x", "y", "lengths_x?", "lengths_y?"),
    differentiable=2,
    options=ColumnLSEOptions,
    reference=column_lse_reference,
    kept=1,
    shapes=_shapes,
)
