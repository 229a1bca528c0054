"""column_lse on NVIDIA GPUs: launches the kernels of triton_kernels.py, one forward, one backward
for each gradient. Nothing is copied back to the host. For float32 inputs alone: callers convert
half precision.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.column_lse.options import ColumnLSEOptions
from fastseq.ops.column_lse.triton_kernels import column_lse_grad_kernel, column_lse_value_kernel
from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles

LOG2E = 1 / math.log(2)
# Whatever PyTorch's matmul precision: the sum is subtracted from costs with the digits of float32.
PRECISION = "tf32x3"


@lru_cache
def tiles(d: int, arch: int) -> Tiles:
    """Nothing here may depend on N: a pair has the same bits alone and in a batch. Chosen so that
    nothing spills (tests/data/column_lse_resources.json)."""
    padded = max(16, triton.next_power_of_2(d))
    if arch == 0:  # the interpreter: few, large steps
        return Tiles(64, 64, padded, padded, 4, 1)
    return Tiles(64, 32, min(padded, 32), min(padded, 128), 4, 2)


def forward(
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    opts: ColumnLSEOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor | None]:
    """The value (N, S), and for the backward its logarithms in base 2."""
    num, columns = y.shape[:2]
    value, lse = (torch.empty(num, columns, dtype=torch.float32, device=y.device) for _ in "12")
    kernels = _kernels(x, opts)
    if num and columns:
        kernels.value(
            num * launch.cdiv(columns, kernels.rows),
            (x, y, lengths_x, lengths_y, value, lse),
            (x.shape[1], columns, opts.rate * LOG2E),
        )
    return value, lse if any(needs) else None


def backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    lse: Tensor,
    opts: ColumnLSEOptions,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y, None where not needed."""
    kernels, sides = _kernels(x, opts), ((x, lengths_x), (y, lengths_y))
    gradients: list[Tensor | None] = [None, None]
    for side in (side for side in (0, 1) if needs[side]):
        (a, lengths_a), (b, lengths_b) = sides[side], sides[1 - side]
        da = gradients[side] = torch.empty_like(a)
        if da.numel():
            kernels.grad[side](
                len(a) * launch.cdiv(a.shape[1], kernels.rows) * kernels.chunks,
                (a, b, lengths_a, lengths_b, lse, grad, da),
                (a.shape[1], b.shape[1], y.shape[1], *grad.stride(), opts.rate * LOG2E, opts.rate),
            )
    return gradients[0], gradients[1]


class Kernels(NamedTuple):
    """The kernels of one kind of call, rows of their tiles, programs that cover the channels."""

    value: launch.Kernel
    grad: tuple[launch.Kernel, launch.Kernel]
    rows: int
    chunks: int


def _kernels(x: Tensor, opts: ColumnLSEOptions) -> Kernels:
    return _choose(x.shape[2], launch.architecture(x.device), opts.shifted)


@launch.once
def _choose(d: int, arch: int, shifted: bool) -> Kernels:
    tile = tiles(d, arch)
    both = {"D": d, "BM": tile.rows, "BN": tile.columns, "BK": tile.step, "PREC": PRECISION}
    both |= {"num_warps": tile.warps, "num_stages": tile.stages}
    value = launch.Kernel(column_lse_value_kernel, **both, SHIFTED=shifted)
    grads = [
        launch.Kernel(column_lse_grad_kernel, **both, BD=tile.channels, COLUMNS=columns)
        for columns in (False, True)
    ]
    return Kernels(value, (grads[0], grads[1]), tile.rows, launch.cdiv(d, tile.channels))
