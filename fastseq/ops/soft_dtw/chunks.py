"""Backend of soft_dtw_cross: runs a backend of soft_dtw on all pairs, in chunks of pairs whose
copies and kept tensors stay under a memory budget.

A forward keeps nothing: the backward repeats each chunk's forward. Chunks are rectangles of
sequences, and the gradients of a sequence are added in a fixed order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from fastseq.ops.soft_dtw.autograd import FUSED
from fastseq.ops.soft_dtw.options import SoftDTWOptions

# Bytes; a GPU needs more pairs at a time than a CPU to be busy.
BUDGET = {"cpu": 1 << 26, "cuda": 1 << 28}
DEFAULT_BUDGET = 1 << 26

# What one call is, with the backend that computes a chunk.
CrossOptions = NamedTuple(
    "CrossOptions", [("served_by", str), *SoftDTWOptions.__annotations__.items()]
)


def forward(x, y, lengths_x, lengths_y, gamma, opts: CrossOptions, needs) -> tuple[Tensor, None]:
    """Values (A, B), and None: nothing is kept."""
    served_by, *options = opts
    call = served_by, SoftDTWOptions(*options), (False, False, False, False)
    values = x.new_empty(x.shape[0], y.shape[0])
    for rows, columns in rectangles(x, y):
        lengths = _part(lengths_x, rows), _part(lengths_y, columns)
        part = values[rows, columns]
        pairs = expanded(x[rows], y[columns], *lengths, gamma)
        part.copy_(FUSED["soft_dtw"].forward(*call, *pairs)[0].view(part.shape))
        del pairs  # freed before the next chunk
    return values, None


def backward(
    grad, x, y, lengths_x, lengths_y, gamma, _, *, opts: CrossOptions, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y, None where not needed."""
    served_by, *options = opts
    call = served_by, SoftDTWOptions(*options), (*needs, False, False)
    dx, dy = (z.new_zeros(z.shape) if need else None for z, need in zip((x, y), needs, strict=True))
    for rows, columns in rectangles(x, y):
        lengths = _part(lengths_x, rows), _part(lengths_y, columns)
        gx, gy = _gradients(grad[rows, columns], call, x[rows], y[columns], *lengths, gamma)
        if dx is not None:
            dx[rows] += gx
        if dy is not None:
            dy[columns] += gy
    return dx, dy


def _gradients(grad: Tensor, call, x: Tensor, y: Tensor, lengths_x, lengths_y, gamma):
    """Gradients of one chunk; its other tensors are freed when the call returns."""
    pairs, fused = expanded(x, y, lengths_x, lengths_y, gamma), FUSED["soft_dtw"]
    _, *kept = fused.forward(*call, *pairs)
    gx, gy, *_ = fused.backward(grad.reshape(-1), *call, *pairs, *kept)
    return (
        None if gx is None else gx.view(*grad.shape, *x.shape[1:]).sum(1),
        None if gy is None else gy.view(*grad.shape, *y.shape[1:]).sum(0),
    )


def fits(x: Tensor, y: Tensor) -> bool:
    """Whether all pairs fit in one chunk."""
    return x.shape[0] * y.shape[0] <= _pairs_at_a_time(x, y)


def expanded(x: Tensor, y: Tensor, lengths_x, lengths_y, gamma) -> tuple[Tensor | None, ...]:
    """The inputs of a backend of soft_dtw for all pairs of x (A, T, D) and y (B, S, D).

    gamma: (1,), or None for the gamma of the options.
    """
    a, b = x.shape[0], y.shape[0]
    return (
        x[:, None].expand(a, b, *x.shape[1:]).reshape(a * b, *x.shape[1:]),
        y[None].expand(a, b, *y.shape[1:]).reshape(a * b, *y.shape[1:]),
        None,
        None,
        None if lengths_x is None else lengths_x[:, None].expand(a, b).reshape(a * b),
        None if lengths_y is None else lengths_y[None].expand(a, b).reshape(a * b),
        None if gamma is None else gamma.expand(a * b).contiguous(),
        None,
    )


def rectangles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice]]:
    """Chunks of pairs, similar in size, in an order that depends on the shapes alone."""
    pairs = _pairs_at_a_time(x, y)
    for columns in _parts(y.shape[0], pairs):
        for rows in _parts(x.shape[0], max(1, pairs // max(1, columns.stop - columns.start))):
            yield rows, columns


def _pairs_at_a_time(x: Tensor, y: Tensor) -> int:
    """Pairs in a chunk. A pair needs both sequences, their gradients, and kept numbers of T S
    cells."""
    frames_x, channels, frames_y = x.shape[1], x.shape[2], y.shape[1]
    numbers = 2 * (frames_x + frames_y) * channels + frames_x * frames_y // 8
    budget = BUDGET.get(x.device.type, DEFAULT_BUDGET)
    return max(1, budget // max(1, numbers * x.element_size()))


def _parts(count: int, most: int) -> Iterator[slice]:
    """range(count) in parts of at most ``most``, as even as possible."""
    parts = -(-count // most)
    for k in range(parts):
        yield slice(k * count // parts, (k + 1) * count // parts)


def _part(lengths: Tensor | None, part: slice) -> Tensor | None:
    return None if lengths is None else lengths[part]
