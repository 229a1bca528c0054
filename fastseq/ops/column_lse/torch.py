"""Blockwise backend: any device; the (N, S, T) exponents are never stored as a whole.

One pair of sequences after another, so that its bits do not depend on the batch around it; padding
is not computed on the CPU.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastseq.ops.column_lse.options import ColumnLSEOptions
from fastseq.ops.common.lengths import valid_mask

# Exponents of a block: 2 MB of float32, which fit the cache of a core.
ELEMENTS, MIN_COLUMNS = 1 << 19, 32


def forward(
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    opts: ColumnLSEOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor | None]:
    """The value (N, S), and for the backward a copy of it."""
    value = y.new_zeros(y.shape[:2])
    for b, columns, frames, own, absent in _blocks(x, y, lengths_x, lengths_y):
        exponents = _exponents(frames, own, absent, opts)
        if opts.shifted:
            top = exponents.amax(1)
            if absent is not None:  # maybe no frame at all
                top = torch.where(top == -torch.inf, 0, top)
            exponents.sub_(top[:, None])
        lse = exponents.exp_().sum(1).log_()
        value[b, columns] = lse + top if opts.shifted else lse
    if not _host_has(x):
        value = torch.where(_some(x, y, lengths_x, lengths_y), value, 0)
    return value, value.clone() if any(needs) else None


def backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    value: Tensor,
    opts: ColumnLSEOptions,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y, None where not needed."""
    dx, dy = (torch.zeros_like(z) if need else None for z, need in zip((x, y), needs, strict=True))
    grad = grad * opts.rate
    if not _host_has(x):
        grad = torch.where(_some(x, y, lengths_x, lengths_y), grad, 0)
    for b, columns, frames, own, absent in _blocks(x, y, lengths_x, lengths_y):
        weights = _exponents(frames, own, absent, opts).sub_(value[b, columns, None]).exp_()
        weights.mul_(grad[b, columns, None])
        if dx is not None:
            dx[b, : len(frames)].addmm_(weights.mT, own)
        if dy is not None:
            torch.mm(weights, frames, out=dy[b, columns])
    return dx, dy


def _exponents(frames: Tensor, own: Tensor, absent: Tensor | None, opts) -> Tensor:
    """(columns, frames)."""
    exponents = torch.mm(own, frames.mT).sub_(1).mul_(opts.rate)
    return exponents if absent is None else exponents.masked_fill_(absent, -torch.inf)


def _blocks(x, y, lengths_x, lengths_y) -> Iterator[tuple]:
    """For each block of columns of each pair: number of the pair, slice of the columns, frames of
    x, frames of y, and which of the former are absent (None: none)."""
    sizes = [(x.shape[1], y.shape[1])] * len(x)
    masks = [None] * len(x)
    if _host_has(x):
        given = zip((lengths_x, lengths_y), (x, y), strict=True)
        sides = [[z.shape[1]] * len(x) if n is None else n.tolist() for n, z in given]
        sizes = list(zip(*sides, strict=True))
    else:  # the host never reads lengths from a device
        real = valid_mask(lengths_x, *x.shape[:2], x.device)
        x = torch.where(real[..., None], x, 0)
        y = torch.where(valid_mask(lengths_y, *y.shape[:2], y.device)[..., None], y, 0)
        if lengths_x is not None:
            masks = list(~real)
    for b, (n, m) in enumerate(sizes):
        step = max(MIN_COLUMNS, ELEMENTS // n) if n else 1
        for first in range(0, m if n else 0, step):
            columns = slice(first, min(first + step, m))
            yield b, columns, x[b, :n], y[b, columns], masks[b]


def _host_has(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _some(x: Tensor, y: Tensor, lengths_x, lengths_y) -> Tensor:
    """(N, S): whether the column is real and x has a real frame."""
    some = valid_mask(lengths_x, *x.shape[:2], x.device).any(1, keepdim=True)
    return some & valid_mask(lengths_y, *y.shape[:2], y.device)
