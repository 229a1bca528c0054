"""The dtypes that losses are computed in."""

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums, statistics and the loss are formed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
