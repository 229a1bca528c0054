"""The options of one call, and what the backends share of the definition."""

import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.lengths import shift_times

FORMS = ("contrastive", "idm", "sfa")
WEIGHTS = ("paper", "code")
DISTANCES = ("sqeuclidean", "euclidean")
REDUCTIONS = ("none", "mean", "sum")


class CIDMOptions(NamedTuple):
    window: float
    margin: float
    form: str
    weights: str
    distance: str
    reduction: str


def check_window(op: str, window: float) -> float:
    """A finite number of at least 0, as a Python float."""
    if isinstance(window, bool) or not isinstance(window, numbers.Real):
        raise TypeError(
            f"{op}: window must be a number or a tensor (N,), got {type(window).__name__}"
        )
    if not 0 <= window <= 1e30:  # refuses NaN too
        raise ValueError(f"{op}: window must be finite and at least 0, got {window}")
    return float(window)


def pair_times(t: Tensor | None, real: Tensor, dtype: torch.dtype) -> Tensor:
    """Times (N, T) in the type in which gaps are formed; (1, T) where all sequences share them.

    float64 for float64 embeddings, else float32, and float32 times stay what they are: which pairs
    lie within the window must not depend on the embeddings' dtype.
    """
    if t is None:
        return torch.arange(real.shape[1], device=real.device, dtype=dtype)[None]
    kind = torch.float32 if t.dtype == torch.float32 else dtype
    return shift_times(t, t, real, real, kind)[0]


def coefficients(real: Tensor, times: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """Weights (N,): loss = sum over n of weight * sum over the pairs of sequence n.

    NaN where a real time is NaN, so that no weight and no window can hide it.
    """
    counts = real.sum(1).to(dtype)
    coef = torch.ones_like(counts)
    if reduction == "mean":
        coef = 1 / (counts.square().clamp(min=1) * (counts > 0).sum().clamp(min=1))
    return coef + (times - times).sum(1).to(dtype)
