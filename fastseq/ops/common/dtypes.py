"""The dtypes that losses are computed in."""

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, statistics and the loss: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
