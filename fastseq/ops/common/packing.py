"""Packs tensors of any number, shapes and dtypes into one, which an operator can return."""

from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8)


def pack(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """(bytes, layout) of the tensors; layout is on the CPU: dtype, rank and sizes of each."""
    layout = [n for t in tensors for n in (_DTYPES.index(t.dtype), t.dim(), *t.shape)]
    # Each begins at a multiple of 8 bytes, as a view of another dtype requires.
    parts = [torch.empty(0, dtype=torch.uint8, device=device)]
    for t in tensors:
        raw = t.contiguous().reshape(-1).view(torch.uint8)
        parts += [raw, raw.new_zeros(-raw.numel() % 8)]
    return torch.cat(parts), torch.tensor(layout, dtype=torch.int64)


def unpack(packed: Tensor, layout: Tensor) -> tuple[Tensor, ...]:
    """The tensors of :func:`pack`, as views of its bytes."""
    tensors, numbers, start = [], layout.tolist(), 0
    while numbers:
        kind, rank, *numbers = numbers
        shape, numbers = numbers[:rank], numbers[rank:]
        dtype = _DTYPES[kind]
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(packed[start : start + size].view(dtype).view(shape))
        start += size + -size % 8
    return tuple(tensors)
