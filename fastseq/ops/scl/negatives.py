"""``negatives="video"`` and ``"batch"`` on NVIDIA GPUs: two more launches forward, two backward.

The softmax of each row then has terms besides those of the other view. They are summed here, before
the statistics kernel, which starts from these sums. The gradient through them is computed here too,
in float32; the gradient kernel adds it to its result and rounds once.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles
from fastseq.ops.scl.options import SCLOptions, padded
from fastseq.ops.scl.triton_negatives_kernels import (
    scl_gather_kernel,
    scl_more_grad_kernel,
    scl_more_kernel,
)


@lru_cache
def tiles(kernel: str, d: int, operands: str, online: bool, arch: int) -> Tiles:
    """The configuration of "more" or "more_grad", by the rules of ``tiles`` in triton.py."""
    wide = max(16, triton.next_power_of_2(d))
    step = min(wide, 128)
    if arch == 0:  # the interpreter: few, large steps
        return Tiles(64, 64, step, step, 4, 1)
    if operands in ("bf16", "fp16"):
        if kernel == "more_grad" and wide > 128 and arch != 90:
            return Tiles(64, 32, 128, 128, 4, 2, 255)
        return Tiles(64, 64, step, step, 4, 3, 255)
    # At most 64 channels and columns a product: tensor cores truncate their sums.
    if arch == 90:
        stages = 2 if kernel == "more" or wide > 128 else 3
        return Tiles(64, 32, min(wide, 64), step, 4, stages, 255)
    if kernel == "more_grad" and 100 <= arch < 120:
        if wide > 128:
            return Tiles(64, 32, 64, 64, 8, 1, 255)
        return Tiles(64, 32, min(wide, 32), min(wide, 64), 8, 2, 255)
    return Tiles(64, 32, min(wide, 32), min(wide, 64), 4, 2, 255)


def unrolled(d: int, operands: str, arch: int) -> bool:
    """Whether rows of all planes stay in shared memory while "more" loops over the columns."""
    return arch == 90 and operands in ("tf32", "tf32x3") and d <= 128


# Planes of bf16 that float32 is split into; products drop what lies below the last plane.
PLANES = {"bf16": 0, "fp16": 0, "tf32": 2, "tf32x3": 3}


def denominators(
    z1: Tensor,
    z2: Tensor,
    tau: Tensor | None,
    stats: Tensor,
    online: bool,
    scale: float,
    opts: SCLOptions,
) -> Tensor | None:
    """Terms added to the denominators of all rows, in the layout of the kept statistics: sums of
    2^(score - scale); online, sums relative to a maximum, and the maxima. None: no such terms."""
    if not _more(z1, opts):
        return None
    (n, frames1, _), frames2 = z1.shape, z2.shape[1]
    kernels = _kernels(z1, online, opts)
    every, sizes = _gather(kernels, z1, z2, tau, stats, scale, opts)
    places = padded(frames1) + padded(frames2)
    out = z1.new_empty((1 + online, n, places), dtype=torch.float32)
    blocks = launch.cdiv(max(frames1, frames2), kernels.rows)
    kernels.more(2 * n * blocks, (*every[:3], out), sizes)
    return out


def gradients(
    grad_out: Tensor,
    z1: Tensor,
    z2: Tensor,
    tau: Tensor | None,
    stats: Tensor,
    coef: Tensor,
    online: bool,
    scale: float,
    opts: SCLOptions,
    first_direction: int,
    directions: int,
    need_tau: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient (N, T1 + T2, D) in float32 of the views that need it; and if ``need_tau``, for
    each frame the sum of its scores times their gradients (N, T1 + T2). None: no such terms."""
    if not _more(z1, opts):
        return None, None
    (n, frames1, d), frames2 = z1.shape, z2.shape[1]
    kernels = _kernels(z1, online, opts)
    every, sizes = _gather(kernels, z1, z2, tau, stats, scale, opts, (coef, grad_out))
    out = z1.new_empty((n, frames1 + frames2, d), dtype=torch.float32)
    along = out.new_empty(out.shape[:2]) if need_tau else None
    blocks = launch.cdiv(max(frames1, frames2), kernels.grad_rows)
    kernels.more_grad(
        kernels.chunks * directions * n * blocks,
        (*every, out, tau, along),
        (*sizes, first_direction, directions, scale),
    )
    return out, along


def _more(z1: Tensor, opts: SCLOptions) -> bool:
    return opts.negatives == "video" or (opts.negatives == "batch" and len(z1) > 1)


class Kernels(NamedTuple):
    """The kernels of one kind of call; planes, padded channels and columns of a tile; rows of the
    tiles, and the number of gradient programs that together cover the channels."""

    gather: launch.Kernel
    planes: int
    channels: int
    columns: int
    more: launch.Kernel
    rows: int
    more_grad: launch.Kernel
    grad_rows: int
    chunks: int


def _kernels(z: Tensor, online: bool, opts: SCLOptions) -> Kernels:
    kind = opts.normalize, online, opts.negatives == "batch"
    return _choose(z.shape[2], *launch.operands(z.dtype), launch.architecture(z.device), *kind)


GATHERED = 16  # rows that one program copies


@launch.once
def _choose(
    d: int,
    operands: str,
    _: str,
    arch: int,
    normalize: bool,
    online: bool,
    batch: bool,
) -> Kernels:
    more, grad = (tiles(kernel, d, operands, online, arch) for kernel in ("more", "more_grad"))
    step = max(more.step, grad.step, grad.channels)
    wide = step * launch.cdiv(d, step)
    shared = {"P": wide, "ONLINE": online, "BATCH": batch, "PLANES": PLANES[operands]}
    copy = {"D": d, "P": wide, "BM": GATHERED, "BK": step, "NORM": normalize}
    common = {key: shared[key] for key in ("ONLINE", "BATCH", "PLANES")}
    return Kernels(
        launch.Kernel(scl_gather_kernel, **copy, **common),
        PLANES[operands],
        wide,
        max(more.columns, grad.columns),
        launch.Kernel(scl_more_kernel, UNROLL=unrolled(d, operands, arch), **shared, **_tile(more)),
        more.rows,
        launch.Kernel(
            scl_more_grad_kernel,
            D=d,
            BD=grad.channels,
            NORM=normalize,
            UNROLL=False,
            **shared,
            **_tile(grad),
        ),
        grad.rows,
        wide // grad.channels,
    )


def _tile(tile: Tiles) -> dict[str, int | None]:
    return {
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.step,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers,
    }


def _gather(kernels: Kernels, z1, z2, tau, stats, scale: float, opts, upstream=None):
    """All frames in the kernels' layout, and N, T1, T2 with the number of places for each view.

    ``upstream``: weights of the directions and gradient of the loss, in the backward.
    """
    (n, frames1, _), frames2 = z1.shape, z2.shape[1]

    def whole(frames: int) -> int:
        return kernels.columns * launch.cdiv(frames, kernels.columns)

    if opts.negatives == "batch":
        first, both = frames1, whole(frames1 + frames2)
    else:
        first = whole(frames1)
        both = first + whole(frames2)
    fp32 = {"dtype": torch.float32}
    # Rows are read in whole tiles too: those after the last place may contain anything.
    plane = n * both + max(kernels.rows, kernels.grad_rows)
    split = {"dtype": torch.bfloat16} if kernels.planes else {}
    z = z1.new_empty((max(kernels.planes, 1) * plane, kernels.channels), **split)
    x = z1.new_empty((n, both), **fp32)
    y = z1.new_empty((1 if upstream is None else 4, n, both), **fp32)
    top = None if upstream is None else z1.new_empty(n, **fp32)
    coef, grad_out = upstream or (None, None)
    stride = grad_out.stride(0) if grad_out is not None and grad_out.dim() else 0
    sizes = n, frames1, frames2, first, both, plane
    kernels.gather(
        2 * n * launch.cdiv(max(first, both - first), GATHERED),
        (z1, z2, stats, coef, grad_out, top, z, x, y, tau),
        (*sizes, stride, scale),
    )
    return (z, x, y, top), sizes
