"""The definition of column_lse in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.column_lse.options import ColumnLSEOptions
from fastseq.ops.common.lengths import valid_mask


def column_lse_reference(
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    opts: ColumnLSEOptions,
) -> Tensor:
    """(N, S) of x (N, T, D) and y (N, S, D), computed in float64."""
    real_x = valid_mask(lengths_x, *x.shape[:2], x.device)
    real_y = valid_mask(lengths_y, *y.shape[:2], y.device)
    # Padding may contain NaN, and a gradient of 0 times NaN is NaN.
    a = torch.where(real_x[..., None], x, 0).double()
    b = torch.where(real_y[..., None], y, 0).double()
    exponents = (a @ b.mT - 1) * opts.rate  # [N, T, S]
    # Without a real frame all exponents would be -inf, and their gradient NaN.
    some = real_x.any(1)[:, None, None]
    exponents = torch.where(real_x[..., None] | ~some, exponents, -torch.inf)
    value = torch.where(some[:, 0] & real_y, exponents.logsumexp(1), 0)
    return value.to(x.dtype)
