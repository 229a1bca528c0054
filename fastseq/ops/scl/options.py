"""The options of one call, and the parts of the definition that the backends share."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.common.validate import (
    check_bool,
    check_choice,
    check_positive,
    positive_or_nan,
)

OBJECTIVES = ("kl", "ce")
NEGATIVES = ("cross", "video", "batch")
REDUCTIONS = ("none", "mean", "sum", "paper")
TARGETS = ("gauss", "laplace", "sigmoid", "box")

NORM_EPS = 1e-12  # as torch.nn.functional.normalize
MAX_EXPONENT = 103.0  # exp(-103) is the smallest fp32 number

# Kept for each frame: up to ROWS numbers, in whole units of UNIT frames (triton_tiles.py).
ROWS, UNIT = 6, 64


class SCLOptions(NamedTuple):
    """The checked options. Variance and temperature are 1 where the call has them as tensors."""

    variance: float
    temperature: float
    normalize: bool
    objective: str
    negatives: str
    reduction: str
    target: str = "gauss"

    @classmethod
    def checked(
        cls,
        op: str,
        variance: float,
        temperature: float,
        normalize: bool,
        objective: str,
        negatives: str,
        reduction: str,
        target: str = "gauss",
    ) -> "SCLOptions":
        check_bool(op, "normalize", normalize)
        check_choice(op, "objective", objective, OBJECTIVES)
        check_choice(op, "negatives", negatives, NEGATIVES)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        check_choice(op, "target", target, TARGETS)
        variance = check_positive(op, "variance", variance)
        temperature = check_positive(op, "temperature", temperature)
        return cls(variance, temperature, normalize, objective, negatives, reduction, target)


def scalars(
    tau: Tensor | None, var: Tensor | None, opts: SCLOptions, dtype: torch.dtype
) -> tuple[Tensor | float, Tensor | float]:
    """Temperature and variance of a call. If either is a tensor that is not positive and finite,
    the temperature is NaN and the variance 1, so that the loss becomes NaN."""
    temperature = positive_or_nan(tau, opts.temperature, dtype)
    if var is None:
        return temperature, opts.variance
    shown = 0 * positive_or_nan(var, opts.variance, dtype) + temperature
    return shown, torch.where((var > 0) & (var < torch.inf), var, 1).to(dtype)


def reach(variance: Tensor | float, target: str) -> Tensor | float:
    """Largest time gap with a non-zero target, the same for every dtype and backend.

    "box": sigma. Others: d^2 = 206 variance, 45.4 frames at variance 10. Beyond it
    exp(-d^2 / (2 variance)) underflows in fp32, as in the released code.
    """
    return _root(variance if target == "box" else 2 * MAX_EXPONENT * variance)


def log_target(gap: Tensor, variance: Tensor | float, target: str) -> Tensor:
    """log g of time gaps within reach. A constant factor of g cancels, since targets sum to 1."""
    if target == "gauss":
        return -gap.square() / (2 * variance)
    if target == "box":
        return 0 * gap  # NaN stays
    scaled = -gap.abs() / _root(variance)
    return scaled if target == "laplace" else F.logsigmoid(scaled)


def _root(x: Tensor | float) -> Tensor | float:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def padded(frames: int) -> int:
    """Number of places for a view's frames in the kept statistics, (ROWS, N, padded of both)."""
    return -(-frames // UNIT) * UNIT


def row_coefficients(m1: Tensor, m2: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """`coefficients` for masks (N, T1) and (N, T2) of real frames."""
    counts = torch.stack([m1.sum(1), m2.sum(1)]).to(dtype)
    return coefficients(counts, reduction, *totals(counts))


def totals(counts: Tensor) -> Tensor:
    """(2,): the number of real frames and of videos that have one; counts (2, N) per view."""
    return torch.stack([counts.sum(), (counts.sum(0) > 0).sum().to(counts.dtype)])


def coefficients(counts: Tensor, reduction: str, frames: Tensor, videos: Tensor) -> Tensor:
    """Weights (2, N): loss = sum over n of w[0, n] * rows of view 1 + w[1, n] * rows of view 2."""
    if reduction in ("none", "sum"):
        return torch.ones_like(counts)
    if reduction == "mean":
        return torch.ones_like(counts) / frames.clamp(min=1)
    return 1 / (counts.clamp(min=1) * videos.clamp(min=1))
