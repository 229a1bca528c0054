"""scl_loss on NVIDIA GPUs: launches the kernels of triton_kernels.py. op.py checks the input.

Two launches forward; one backward, two for fp32. Nothing is copied back to the host, so the call
can be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.scl import negatives
from fastseq.ops.scl.options import ROWS, UNIT, SCLOptions, padded, reach
from fastseq.ops.scl.triton_kernels import scl_grad_kernel, scl_stats_kernel
from fastseq.ops.scl.triton_prepare import scl_prepare_kernel

LOG2E = 1 / math.log(2)
# Number of bf16 planes that add up to a frame, by operand type: 0 where the frame is multiplied.
PLANES = {"bf16": 0, "fp16": 0, "tf32": 2, "tf32x3": 3}
# From this number of frames on, tiles are larger.
LONG = 1024
# From here on exp((s - 1) / temperature) is a normal fp32 number for every cosine s, so that
# 1 / temperature can replace the running maximum.
CONSTANT_SHIFT_FROM = 0.025


@lru_cache
def tiles(
    kernel: str,
    d: int,
    operands: str,
    online: bool,
    arch: int,
    long: bool = False,
    masked: bool = False,
) -> Tiles:
    """The configuration of "stats" or "grad" for "bf16", "fp16", "tf32" or "tf32x3" operands.

    ``online``: with a running maximum. ``long``: the longer view has at least LONG frames, padding
    included: enough rows for large tiles on every multiprocessor. ``masked``: with a mask. Nothing
    else may depend on N or T: a sequence has the same bits alone and in a batch of the same
    padding. Chosen so that nothing spills (tests/data/scl_resources.json; the exceptions are in
    SPILLING of its test) and that tiles fit the 99 kB of shared memory of sm_86 and sm_89.
    """
    padded = max(16, triton.next_power_of_2(d))
    if arch == 0:  # the interpreter: few, large steps
        return Tiles(64, 64, padded, padded, 4, 1)
    if operands in ("bf16", "fp16"):
        return _of_halves(kernel, padded, online, arch, long and not masked)
    return _of_planes(kernel, padded, operands, arch, masked)


def _of_halves(kernel: str, padded: int, online: bool, arch: int, large: bool) -> Tiles:
    if padded <= (128 if kernel == "stats" else 64) and 100 <= arch < 120:
        return Tiles(64, 64, padded, padded, 8, 2)
    if kernel == "stats":
        if padded > 128:
            return Tiles(64, 32, 128, padded, 8, 2)
        if arch != 90:
            return Tiles(64, 32, padded, padded, 4, 2, 255)
        if online:
            return Tiles(64, 32, padded, padded, 4, 3)
        if large:
            return Tiles(128, 64, padded, padded, 8, 3, 128)
        return Tiles(64, 32, padded, padded, 4, 3, 168)
    if padded <= 64:
        return Tiles(64, 32, padded, padded, 4, 2, 255)
    if padded > 128:
        return Tiles(32, 32, 256 if padded == 256 else 128, 256, 8, 2)
    if arch == 90:
        return Tiles(64, 32, 128, 128, 4, 2 if online else 3, 255)
    return Tiles(64, 64, 128, 128, 8, 2)


def _of_planes(kernel: str, padded: int, operands: str, arch: int, masked: bool) -> Tiles:
    """Tiles for fp32 as sums of bf16. A step has as many channels as tensor cores add up without
    fp32 in between: see add_product()."""
    stats = kernel == "stats"
    step, chunk, warps, stages = min(padded, 32), min(padded, 64), 4, 2
    if arch < 90 and not stats:
        step, chunk, warps = min(step, 32 if padded <= 128 else 16), min(padded, 128), 8
    elif arch == 90:
        step = min(padded, 128 if stats or operands == "tf32" else 64)
        chunk = min(padded, 64 if masked else 128)
    elif 100 <= arch < 120:
        # Its products run one after the other, and their operands wait in registers.
        step, warps, stages = min(padded, 64 if padded > 64 else 32), 8, 1 if padded > 128 else 2
    return Tiles(64, 32, step, padded if stats else chunk, warps, stages, 255)


def parts(arch: int) -> int:
    """Number of parts of a row's sums, see partial_sums(). sm_100's tensor memory assigns whole
    rows to a thread, and Triton 3.7 does not compile more parts for it."""
    return 1 if 100 <= arch < 120 else 8


def forward(
    z1: Tensor,
    z2: Tensor,
    tau: Tensor | None,
    var: Tensor | None,
    t1: Tensor | None,
    t2: Tensor | None,
    valid1: Tensor | None,
    valid2: Tensor | None,
    opts: SCLOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, None]:
    """Loss, statistics of the frames (6, N, padded), direction weights (2, N), None for pairs."""
    (n, frames1, _), frames2 = z1.shape, z2.shape[1]
    fp32 = {"dtype": torch.float32, "device": z1.device}
    shape = (n,) if opts.reduction == "none" else ()
    frames = padded(frames1) + padded(frames2)
    if n == 0 or frames == 0:
        zeros = torch.zeros(shape, **fp32)
        return zeros, torch.zeros(ROWS, n, frames, **fp32), torch.zeros(2, n, **fp32), None
    t1, t2, valid1, valid2, masked = side_inputs(z1, z2, t1, t2, valid1, valid2)
    online = is_online(tau, opts)
    kernels = kernels_of(z1, z2, masked, online, opts)
    blocks = launch.cdiv(padded(max(frames1, frames2)), kernels.rows)
    loss = torch.empty(shape, **fp32)
    stats = torch.empty((ROWS, n, frames), **fp32)
    coef = torch.empty((2, n), **fp32)
    part = torch.empty((2, 2, n, blocks), **fp32)
    planes = plane_memory(z1, frames, kernels)
    scales = scales_of(opts)
    kernels.prepare(
        n * frames // UNIT,
        (z1, z2, t1, t2, valid1, valid2, stats, planes, tau, var),
        (n, frames1, frames2, stride_of(t1), stride_of(t2), scales[0]),
    )
    more = negatives.denominators(z1, z2, tau, stats, online, scales[0], opts)
    kernels.stats(
        2 * n * blocks,
        (z1, z2, valid1, valid2, planes, stats, part, loss, coef, launch.ticket(z1), more, var),
        (n, frames1, frames2, *scales),
    )
    return loss, stats, coef, None


def backward(
    grad_out: Tensor,
    z1: Tensor,
    z2: Tensor,
    tau: Tensor | None,
    var: Tensor | None,
    t1: Tensor | None,
    t2: Tensor | None,
    valid1: Tensor | None,
    valid2: Tensor | None,
    stats: Tensor,
    coef: Tensor,
    pairs: None,
    opts: SCLOptions,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of z1, z2 and the temperature in their dtypes, None where not needed."""
    need1, need2, need_tau = needs
    (n, frames1, _), frames2 = z1.shape, z2.shape[1]
    if n == 0 or frames1 + frames2 == 0 or not any(needs):
        zeros = (torch.zeros_like(x) if x is not None else None for x in (z1, z2, tau))
        return tuple(zero if need else None for zero, need in zip(zeros, needs, strict=True))
    # The temperature's gradient needs that of one view; with other negatives, of both.
    own1 = need1 or (need_tau and (not need2 or opts.negatives != "cross"))
    own2 = need2 or (need_tau and opts.negatives != "cross")
    _, _, valid1, valid2, masked = side_inputs(z1, z2, None, None, valid1, valid2)
    online = is_online(tau, opts)
    kernels = kernels_of(z1, z2, masked, online, opts)
    dz1 = torch.empty_like(z1) if own1 else None
    dz2 = torch.empty_like(z2) if own2 else None
    planes, scales = plane_memory(z1, stats.shape[2], kernels), scales_of(opts)
    if planes is not None:
        kernels.prepare(
            n * stats.shape[2] // UNIT,
            (z1, z2, None, None, valid1, valid2, None, planes, tau, var),
            (n, frames1, frames2, 0, 0, scales[0]),
        )
    blocks = launch.cdiv(max(frames1, frames2), kernels.grad_rows)
    directions = own1 + own2
    out = dz1 if own1 else dz2, dz2 if own2 else dz1
    which = 0 if own1 else 1, directions
    kind = online, scales[0], opts, *which, need_tau
    more, more_along = negatives.gradients(grad_out, z1, z2, tau, stats, coef, *kind)
    along = stats.new_empty((n, frames1 + frames2)) if need_tau else None
    kernels.grad(
        kernels.chunks * directions * n * blocks,
        (z1, z2, valid1, valid2, planes, stats, coef, grad_out, *out, more, tau, var, along),
        (n, frames1, frames2, stride_of(grad_out), *which, *scales),
    )
    dtau = None
    if need_tau:
        # The loss is a function of the scores, which are proportional to 1 / temperature. Scores
        # with the other view are in the sums of either view; others are in those of both frames.
        slope = (along[:, :frames1] if own1 else along[:, frames1:]).sum()
        if more_along is not None:
            slope += more_along.sum() / 2
        dtau = (-slope / tau).to(tau.dtype)
    return dz1 if need1 else None, dz2 if need2 else None, dtau


class Kernels(NamedTuple):
    """The kernels of one kind of call, rows of their tiles, number of gradient programs that cover
    the channels, and the planes (number, channels) that products read in place of fp32 frames."""

    prepare: launch.Kernel
    stats: launch.Kernel
    rows: int
    grad: launch.Kernel
    grad_rows: int
    chunks: int
    planes: int
    channels: int


def kernels_of(
    z1: Tensor, z2: Tensor, masked: bool, online: bool, opts: SCLOptions, partial: bool = False
) -> Kernels:
    """``partial``: the statistics kernel is that of ring/triton.py."""
    kind = opts.normalize, online, opts.objective == "kl", opts.reduction, opts.target, partial
    long = max(z1.shape[1], z2.shape[1]) >= LONG
    where = launch.architecture(z1.device)
    return _choose(z1.shape[2], *launch.operands(z1.dtype), where, long, masked, *kind)


@launch.once
def _choose(
    d: int,
    operands: str,
    precision: str,
    arch: int,
    long: bool,
    masked: bool,
    normalize: bool,
    online: bool,
    kl: bool,
    reduction: str,
    target: str,
    partial: bool,
) -> Kernels:
    wide, planes = max(16, triton.next_power_of_2(d)), PLANES[operands]
    shared = {"D": d, "DP": wide, "PLANES": planes, "MASK": masked}
    both = shared | {"ONLINE": online, "PREC": precision, "PARTS": parts(arch), "TARGET": target}
    stats, grad = (
        tiles(kernel, d, operands, online, arch, long, masked) for kernel in ("stats", "grad")
    )
    return Kernels(
        launch.Kernel(scl_prepare_kernel, **shared, NORM=normalize, BK=min(wide, 128), num_warps=4),
        launch.Kernel(
            scl_stats_kernel,
            **both,
            **_tile(stats),
            KL=kl,
            REDUCTION=reduction,
            PARTIAL=partial,
        ),
        stats.rows,
        launch.Kernel(scl_grad_kernel, **both, **_tile(grad), NORM=normalize, BD=grad.channels),
        grad.rows,
        launch.cdiv(d, grad.channels),
        planes,
        wide,
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


def plane_memory(z: Tensor, frames: int, kernels: Kernels) -> Tensor | None:
    """Memory for fp32 frames as sums of bf16; None where frames are not split."""
    if not kernels.planes:
        return None
    shape = kernels.planes, z.shape[0], frames, kernels.channels
    return torch.empty(shape, dtype=torch.bfloat16, device=z.device)


def stride_of(x: Tensor | None) -> int:
    """Elements between sequences; 0 where all share one value."""
    return x.stride(0) if x is not None and x.dim() else 0


def side_inputs(z1, z2, t1, t2, valid1, valid2):
    """Times with contiguous rows and one dtype; lengths, or masks for both if one view has one."""
    if t1 is not None:
        if t1.dtype != t2.dtype:
            both = (t1.dtype, t2.dtype)
            wide = torch.float64 if any(t.is_floating_point for t in both) else torch.int64
            t1, t2 = t1.to(wide), t2.to(wide)
        t1 = t1 if t1.stride(1) == 1 else t1.contiguous()
        t2 = t2 if t2.stride(1) == 1 else t2.contiguous()
    masked = any(v is not None and v.dtype == torch.bool for v in (valid1, valid2))
    if masked:
        valid1 = valid_mask(valid1, *z1.shape[:2], z1.device)
        valid2 = valid_mask(valid2, *z2.shape[:2], z2.device)
    valid1 = None if valid1 is None else valid1.contiguous()
    valid2 = None if valid2 is None else valid2.contiguous()
    return t1, t2, valid1, valid2, masked


@lru_cache
def scales_of(opts: SCLOptions) -> tuple[float, float, float]:
    """log2(e) / temperature, the rate of the targets' exponents (triton_kernels.py) and the largest
    gap with a weight."""
    rates = {"gauss": LOG2E / (2 * opts.variance), "box": 0.0}
    rate = rates.get(opts.target, LOG2E / math.sqrt(opts.variance))
    return LOG2E / opts.temperature, rate, reach(opts.variance, opts.target)


def is_online(tau: Tensor | None, opts: SCLOptions) -> bool:
    """Whether a running maximum is needed; always so if the temperature is a tensor."""
    return tau is not None or not (opts.normalize and opts.temperature >= CONSTANT_SHIFT_FROM)
