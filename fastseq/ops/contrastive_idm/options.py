"""The options of one call, and the parts of the definition that the backends share."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.lengths import shift_times
from fastseq.ops.common.validate import REDUCTIONS, check_choice, check_nonnegative, check_positive

KINDS = ("contrastive", "idm", "sfa")
WEIGHTS = ("paper", "code")
DISTANCES = ("sqeuclidean", "euclidean")


class CIDMOptions(NamedTuple):
    window: float
    margin: float
    kind: str
    weights: str
    distance: str
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        window: float,
        margin: float,
        kind: str,
        weights: str,
        distance: str,
        reduction: str,
    ) -> "CIDMOptions":
        window = check_nonnegative(op, "window", window)
        margin = check_positive(op, "margin", margin)
        check_choice(op, "kind", kind, KINDS)
        check_choice(op, "weights", weights, WEIGHTS)
        check_choice(op, "distance", distance, DISTANCES)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        return cls(window, margin, kind, weights, distance, reduction)


def pair_times(t: Tensor | None, real: Tensor, dtype: torch.dtype) -> Tensor:
    """Times (N, T) in the dtype in which gaps are computed; (1, T) if all sequences share them.

    float64 for float64 embeddings, otherwise float32; float32 times are not converted. Which pairs
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
