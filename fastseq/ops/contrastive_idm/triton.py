"""contrastive_idm on NVIDIA GPUs: launches the kernels of triton_*.py; op.py checks the input.

Two launches forward, two backward. Nothing is copied back to the host, so the call can be captured
in a CUDA graph.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.contrastive_idm.options import CIDMOptions, pair_times
from fastseq.ops.contrastive_idm.triton_direct import (
    cidm_direct_grad_kernel,
    cidm_direct_loss_kernel,
)
from fastseq.ops.contrastive_idm.triton_kernels import cidm_grad_kernel, cidm_loss_kernel
from fastseq.ops.contrastive_idm.triton_operands import cidm_prepare_kernel


@lru_cache
def tiles(kernel: str, d: int, operands: str, direct: bool, arch: int) -> Tiles:
    """The configuration of "loss" or "grad" for "bf16", "fp16", "tf32" or "tf32x3" operands.

    ``direct``: distances from differences. Nothing here may depend on N or T: a sequence has the
    same bits alone and in a batch. Chosen so that nothing spills
    (tests/data/contrastive_idm_resources.json) and to fit the 99 kB of shared memory of sm_86.
    """
    padded = max(16, triton.next_power_of_2(d))
    interpreted = arch == 0  # the interpreter: few, large steps
    half = operands in ("bf16", "fp16")
    if direct:
        if interpreted:
            return Tiles(32, 32, min(padded, 64), min(padded, 64), 4, 1)
        return Tiles(32, 32, 8, min(padded, 64), 4, 1)
    if interpreted:
        return Tiles(64, 64, padded, padded, 4, 1)
    step = min(padded, 128)
    if half:
        if kernel == "loss":
            return Tiles(64, 64, step, padded, 4, 2 if arch < 90 and padded > 256 else 3)
        # float16 computes two products in the tiles within the window.
        wide = operands == "bf16" and arch == 90
        chunk = min(step, 128 if arch == 90 else 64)
        if arch == 90 and padded > (256 if wide else 128):
            step = 64  # unrolled steps over the channels need many addresses
        return Tiles(64, 64 if wide else 32, step, chunk, 4, 3)
    if arch == 90:
        chunk = min(step, 64 if operands == "tf32x3" else 128)
        step = step if padded <= 128 else 32
        if kernel == "loss":
            return Tiles(64, 64, step, padded, 4, 2)
        return Tiles(64, 32, step, chunk, 4, 2)
    step = min(padded, 32)
    if kernel == "loss":
        return Tiles(32, 32, step, padded, 4, 1)
    return Tiles(32, 32, step, step, 4, 1)


def forward(
    z: Tensor,
    t: Tensor | None,
    lengths: Tensor | None,
    windows: Tensor | None,
    opts: CIDMOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, None]:
    """Loss, the coefficients (N,) of the reduction, and None for pairs."""
    n, frames, _ = z.shape
    fp32 = {"dtype": torch.float32, "device": z.device}
    shape = (n,) if opts.reduction == "none" else ()
    if n == 0 or frames == 0:
        return torch.zeros(shape, **fp32), torch.zeros(n, **fp32), None
    kernels = _kernels(z, opts)
    blocks = launch.cdiv(frames, kernels.rows)
    loss, coef = torch.empty(shape, **fp32), torch.empty(n, **fp32)
    part = torch.empty((n, blocks), **fp32)
    side, windows = _prepared(z, t, lengths, windows, kernels, kernels.of_loss, kernels.rows)
    kernels.loss(
        n * blocks,
        (z, *side, lengths, windows, part, loss, coef, launch.ticket(z)),
        (n, frames, opts.window, opts.margin),
    )
    return loss, coef, None


def backward(
    grad: Tensor,
    z: Tensor,
    t: Tensor | None,
    lengths: Tensor | None,
    windows: Tensor | None,
    coef: Tensor,
    pairs: None,
    opts: CIDMOptions,
    needs: Sequence[bool],
) -> tuple[Tensor]:
    n, frames, _ = z.shape
    dz = torch.empty_like(z)
    if dz.numel() == 0:
        return (dz,)
    kernels = _kernels(z, opts)
    blocks = launch.cdiv(frames, kernels.grad_rows)
    side, windows = _prepared(
        z, t, lengths, windows, kernels, kernels.of_grad, kernels.grad_columns
    )
    kernels.grad(
        kernels.chunks * n * blocks,
        (z, *side, lengths, windows, coef, grad, dz),
        (frames, grad.stride(0) if grad.dim() else 0, opts.window, opts.margin),
    )
    return (dz,)


class Kernels(NamedTuple):
    """The kernels of one kind of call: the two that prepare the inputs of loss and gradient, and
    split float32 into so many planes (0: distances from differences); those two; rows and columns
    of their tiles; and the number of gradient programs that cover the channels."""

    of_loss: launch.Kernel
    of_grad: launch.Kernel
    planes: int
    loss: launch.Kernel
    rows: int
    grad: launch.Kernel
    grad_rows: int
    grad_columns: int
    chunks: int


def _kernels(z: Tensor, opts: CIDMOptions) -> Kernels:
    options = opts.kind, opts.weights == "paper", opts.distance == "euclidean", opts.reduction
    operands, _ = launch.operands(z.dtype)
    return _choose(z.shape[2], operands, launch.architecture(z.device), *options)


@launch.once
def _choose(
    d: int,
    operands: str,
    arch: int,
    kind: str,
    paper: bool,
    direct: bool,
    reduction: str,
) -> Kernels:
    loss, grad = (tiles(kernel, d, operands, direct, arch) for kernel in ("loss", "grad"))
    found = constants(d, operands, arch, kind, paper, direct, reduction)
    kernels = cidm_loss_kernel, cidm_grad_kernel
    if direct:
        kernels = cidm_direct_loss_kernel, cidm_direct_grad_kernel
    return Kernels(
        launch.Kernel(cidm_prepare_kernel, **found["prepare loss"]),
        launch.Kernel(cidm_prepare_kernel, **found["prepare"]),
        found["prepare"]["PLANES"],
        launch.Kernel(kernels[0], **found["loss"]),
        loss.rows,
        launch.Kernel(kernels[1], **found["grad"]),
        grad.rows,
        grad.columns,
        launch.cdiv(d, grad.channels),
    )


def constants(
    d: int, operands: str, arch: int, kind: str, paper: bool, direct: bool, reduction: str
) -> dict[str, dict[str, Any]]:
    """Constants and options of each kernel; "prepare" belongs to the gradient."""
    loss, grad = (tiles(kernel, d, operands, direct, arch) for kernel in ("loss", "grad"))
    shared = {"D": d, "KIND": kind, "PAPER": paper}
    of_loss = shared | _tile(loss) | {"REDUCTION": reduction}
    of_grad = shared | _tile(grad) | {"BN": grad.columns, "BD": grad.channels}
    if direct:
        of_grad |= {"CENTRE": operands.startswith("tf32"), "PREC": "tf32"}
        if operands == "tf32x3":
            of_grad["PREC"] = operands
    else:
        of_loss["PLANES"] = of_grad["PLANES"] = planes(operands)
    padded = max(16, triton.next_power_of_2(d))
    prepare = {
        "D": d,
        "BK": padded if arch == 0 else min(padded, 64 if planes(operands) > 1 else 128),
        "PLANES": 0 if direct else planes(operands),
        "num_warps": 4,
        "maxnreg": launch.MOST_REGISTERS,
    }
    return {
        "prepare loss": prepare | {"BT": loss.rows, "BM": loss.rows},
        "prepare": prepare | {"BT": grad.columns, "BM": grad.rows},
        "loss": of_loss,
        "grad": of_grad,
    }


def planes(operands: str) -> int:
    """Number of bfloat16 numbers that an operand is split into."""
    return {"tf32": 2, "tf32x3": 3}.get(operands, 1)


def _tile(tile: Tiles) -> dict[str, int]:
    return {
        "BM": tile.rows,
        "BK": tile.step,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers or launch.MOST_REGISTERS,
    }


def _prepared(
    z: Tensor,
    t: Tensor | None,
    lengths: Tensor | None,
    windows: Tensor | None,
    kernels: Kernels,
    prepare: launch.Kernel,
    columns: int,
) -> tuple[tuple[Tensor | None, ...], Tensor | None]:
    """Frames as ``prepare`` stores them, in blocks of ``columns``: times and norms; unless
    distances come from differences, also the blocks' time spans and the split rows of float32; and
    windows as float32."""
    n, frames, channels = z.shape
    if t is not None:
        if t.dtype == torch.float64:
            t = pair_times(t, valid_mask(lengths, n, frames, z.device), torch.float32)
        t = t if t.stride(1) == 1 else t.contiguous()
    blocks = launch.cdiv(frames, columns)
    side = torch.empty((n, 2, blocks * columns), dtype=torch.float32, device=z.device)
    span = torch.empty((n, blocks, 2), dtype=torch.float32, device=z.device)
    split = None
    if kernels.planes > 1:
        shape = n, kernels.planes, blocks * columns, channels
        split = torch.empty(shape, dtype=torch.bfloat16, device=z.device)
    prepare(
        n * blocks,
        (z, t, lengths, side, span, split),
        (frames, 0 if t is None else t.stride(0)),
    )
    windows = None if windows is None else windows.float()
    return (side, span, split) if kernels.planes else (side,), windows
