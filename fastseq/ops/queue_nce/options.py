"""The options of one call, and what the backends share of the definition."""

from typing import NamedTuple

import torch

REDUCTIONS = ("none", "mean", "sum")
NORM_EPS = 1e-12  # as torch.nn.functional.normalize


class QueueNCEOptions(NamedTuple):
    temperature: float
    normalize: bool


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums, statistics and the loss are formed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
