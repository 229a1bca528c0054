"""contrastive_idm on NVIDIA GPUs: launches the kernels of triton_kernels.py; op.py checks input.

One launch forward, one backward. Nothing is read back, so a CUDA graph can capture it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.contrastive_idm.options import CIDMOptions, pair_times
from fastseq.ops.contrastive_idm.triton_kernels import cidm_grad_kernel, cidm_loss_kernel


@lru_cache
def tiles(kernel: str, d: int, operands: str, direct: bool, arch: int) -> Tiles:
    """The configuration of "loss" or "grad" for "bf16", "fp16", "tf32" or "tf32x3" operands.

    ``direct``: distances from differences. Nothing here may depend on N or T: a sequence gives the
    same bits alone and in a batch. Chosen so that nothing spills
    (tests/data/contrastive_idm_resources.json) and to fit the 99 kB of shared memory of sm_86.
    """
    padded = max(16, triton.next_power_of_2(d))
    interpreted = arch == 0  # which wants few, large steps
    if direct:
        return Tiles(32, 32, min(padded, 64) if interpreted else 8, min(padded, 64), 4, 1)
    if interpreted:
        return Tiles(64, 64, padded, padded, 4, 1)
    half = operands in ("bf16", "fp16")
    if kernel == "loss":
        if half:
            return Tiles(64, 64, min(padded, 128), padded, 8 if padded > 128 else 4, 2)
        return Tiles(64, 64, 16, padded, 8, 2)
    if half:
        if padded <= 64:
            return Tiles(64, 32 if arch < 90 else 64, padded, padded, 4 if arch < 90 else 8, 2)
        if padded == 128:
            return Tiles(64, 32 if arch < 90 and operands == "fp16" else 64, 128, 128, 8, 2)
        return Tiles(32, 32, 128, 256, 8, 2)
    return Tiles(64, 32, 16, min(padded, 64), 8, 2)


def forward(
    z: Tensor,
    t: Tensor | None,
    lengths: Tensor | None,
    windows: Tensor | None,
    opts: CIDMOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Loss, and the coefficients (N,) of the reduction."""
    n, frames, _ = z.shape
    fp32 = {"dtype": torch.float32, "device": z.device}
    shape = (n,) if opts.reduction == "none" else ()
    if n == 0 or frames == 0:
        return torch.zeros(shape, **fp32), torch.zeros(n, **fp32)
    t, lengths, windows = _side_inputs(z, t, lengths, windows)
    kernels = _kernels(z, opts)
    blocks = launch.cdiv(frames, kernels.rows)
    loss, coef = torch.empty(shape, **fp32), torch.empty(n, **fp32)
    part = torch.empty((n, blocks), **fp32)
    kernels.loss(
        n * blocks,
        (z, t, lengths, windows, part, loss, coef, launch.ticket(z)),
        (n, frames, 0 if t is None else t.stride(0), opts.window, opts.margin),
    )
    return loss, coef


def backward(
    grad: Tensor,
    z: Tensor,
    t: Tensor | None,
    lengths: Tensor | None,
    windows: Tensor | None,
    coef: Tensor,
    opts: CIDMOptions,
    needs: Sequence[bool],
) -> tuple[Tensor]:
    n, frames, _ = z.shape
    dz = torch.empty_like(z)
    if dz.numel() == 0:
        return (dz,)
    t, lengths, windows = _side_inputs(z, t, lengths, windows)
    kernels = _kernels(z, opts)
    blocks = launch.cdiv(frames, kernels.grad_rows)
    strides = 0 if t is None else t.stride(0), grad.stride(0) if grad.dim() else 0
    kernels.grad(
        kernels.chunks * n * blocks,
        (z, t, lengths, windows, coef, grad, dz),
        (n, frames, *strides, opts.window, opts.margin),
    )
    return (dz,)


class Kernels(NamedTuple):
    """Both kernels of a kind of call, rows of their tiles, gradient programs for all channels."""

    loss: launch.Kernel
    rows: int
    grad: launch.Kernel
    grad_rows: int
    chunks: int


def _kernels(z: Tensor, opts: CIDMOptions) -> Kernels:
    options = opts.kind, opts.weights == "paper", opts.distance == "euclidean", opts.reduction
    centre = z.dtype == torch.float32
    return _choose(
        z.shape[2], *launch.operands(z.dtype), launch.architecture(z.device), centre, *options
    )


@launch.once
def _choose(
    d: int,
    operands: str,
    precision: str,
    arch: int,
    centre: bool,
    kind: str,
    paper: bool,
    direct: bool,
    reduction: str,
) -> Kernels:
    shared = {"D": d, "KIND": kind, "PAPER": paper, "DIRECT": direct, "CENTRE": centre}
    shared |= {"PREC": precision}
    loss, grad = (tiles(kernel, d, operands, direct, arch) for kernel in ("loss", "grad"))
    return Kernels(
        launch.Kernel(cidm_loss_kernel, **shared, **_tile(loss), REDUCTION=reduction),
        loss.rows,
        launch.Kernel(cidm_grad_kernel, **shared, **_tile(grad), BN=grad.columns, BD=grad.channels),
        grad.rows,
        launch.cdiv(d, grad.channels),
    )


def _tile(tile: Tiles) -> dict[str, int]:
    return {
        "BM": tile.rows,
        "BK": tile.step,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers or launch.MOST_REGISTERS,
    }


def _side_inputs(z, t, lengths, windows):
    """Times as the kernels read them: float32, int32 or int64 with contiguous rows."""
    if t is not None:
        if t.dtype == torch.float64:
            t = pair_times(t, valid_mask(lengths, *z.shape[:2], z.device), torch.float32)
        t = t if t.stride(1) == 1 else t.contiguous()
    windows = None if windows is None else windows.float()
    return t, lengths, windows
