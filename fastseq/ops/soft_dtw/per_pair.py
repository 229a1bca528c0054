"""A gamma and a bandwidth for each pair: checked once, passed on in one form."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.common.fused import transforms_active
from fastseq.ops.common.lengths import INT_DTYPES, integers
from fastseq.ops.common.validate import FLOAT_DTYPES, positive_or_nan

# One for all pairs, or one for each.
Gamma = float | Tensor
Bandwidth = int | Sequence[int] | Tensor | None

# How to learn gamma: an equal value, computed from scaled inputs.
_LEARNED = {
    "soft_dtw": "gamma * soft_dtw(x / gamma.sqrt(), y / gamma.sqrt(), gamma=1), of squared "
    "Euclidean costs",
    "soft_dtw_from_cost": "gamma * soft_dtw_from_cost(cost / gamma, gamma=1)",
}
_WIDEST = 2**30  # widest band; one wider than the matrix is the whole matrix


def split_gamma(
    op: str, gamma: Gamma, num: int, device: torch.device
) -> tuple[float, Tensor | None]:
    """A number, which the options check, and None; or 1 and a tensor (N,), in float64.

    The values of a tensor are checked on the CPU only, and not while torch.compile traces: reading
    them from a GPU would wait for it. Values that are not positive and finite make the result NaN.
    """
    if not isinstance(gamma, Tensor):
        return gamma, None
    if gamma.requires_grad:
        raise TypeError(
            f"{op}: gamma must not require a gradient; pass gamma.detach() (gradients with respect "
            "to gamma are not computed"
            + (f"; to learn it: {_LEARNED[op]})" if op in _LEARNED else ")")
        )
    if gamma.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{op}: gamma must be a number or a tensor of float64, float32, bfloat16 or float16, "
            f"got {gamma.dtype}"
        )
    if gamma.shape not in ((), (num,)):
        raise ValueError(
            f"{op}: gamma must be a number or a tensor of shape () or ({num},), one for each pair; "
            f"got {tuple(gamma.shape)}"
        )
    _check_place(op, "gamma", gamma, device)
    if _readable(gamma):
        wrong = [g for g in gamma.reshape(-1).tolist() if not 1e-30 <= g <= 1e30]
        if wrong:
            raise ValueError(
                f"{op}: gamma must be finite (1e-30 to 1e30) and greater than 0, got {wrong[0]}"
            )
    # A copy: the caller may change it in place before the backward.
    copy = gamma.to(device=device, dtype=torch.float64, copy=True).expand(num).contiguous()
    return 1.0, copy if _readable(gamma) else positive_or_nan(copy, 1.0, torch.float64)


def split_bandwidth(
    op: str, bandwidth: Bandwidth, num: int, device: torch.device
) -> tuple[int | None, Tensor | None]:
    """One for all pairs, which the options check, and None; or None and an int64 tensor (N,)."""
    if not isinstance(bandwidth, Tensor | list | tuple | np.ndarray):
        return bandwidth, None
    if not isinstance(bandwidth, Tensor):
        try:
            bandwidth = integers(bandwidth)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{op}: bandwidth must be integers, got {bandwidth!r}") from None
        if bandwidth.numel() == 0:
            bandwidth = bandwidth.long()
    if bandwidth.dtype not in INT_DTYPES:
        raise TypeError(f"{op}: bandwidth must be integers, got {bandwidth.dtype}")
    if bandwidth.dim() == 0 and num == 1:
        bandwidth = bandwidth[None]
    if bandwidth.shape != (num,):
        raise ValueError(
            f"{op}: bandwidth must be an integer, None, or have shape ({num},), one for each pair; "
            f"got {tuple(bandwidth.shape)}"
        )
    _check_place(op, "bandwidth", bandwidth, device)
    if _readable(bandwidth):
        wrong = [r for r in bandwidth.tolist() if r < 0]
        if wrong:
            raise ValueError(f"{op}: bandwidth must be 0 or more, or None, got {wrong[0]}")
    copy = bandwidth.to(device=device, dtype=torch.int64, copy=True)
    return None, copy.clamp(0, _WIDEST)


def _check_place(op: str, name: str, value: Tensor, device: torch.device) -> None:
    if value.device.type != "cpu" and value.device != device:
        places = "the CPU" if device.type == "cpu" else f"{device} or the CPU"
        raise ValueError(
            f"{op}: {name} must be on {places} for inputs on {device}, got {value.device}"
        )


def _readable(value: Tensor) -> bool:
    return value.device.type == "cpu" and not (torch.compiler.is_compiling() or transforms_active())
