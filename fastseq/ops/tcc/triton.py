"""tcc_loss on NVIDIA GPUs: launches the kernels of triton_*.py. op.py checks the input.

Nothing is read back, so a CUDA graph can capture it. As in the torch backend the forward forms the
gradients too when they will be wanted, for an upstream gradient of 1.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.lengths import shift_times, valid_mask
from fastseq.ops.tcc.options import VARIANCE_FLOOR, TCCOptions
from fastseq.ops.tcc.triton_kernels import (
    tcc_grad_kernel,
    tcc_moments_kernel,
    tcc_nearest_kernel,
    tcc_pull_kernel,
)
from fastseq.ops.tcc.triton_pack import tcc_centre_kernel, tcc_pack_kernel, tcc_reduce_kernel

LOG2E = 1 / math.log(2)
# Nearest neighbours that all ordered pairs keep at a time, as a number of their channels.
ELEMENTS = 1 << 24
# Without a limit of its own ptxas stops at 128 or 168 registers and spills a few.
MAX_REGISTERS = 255


class Tiles(NamedTuple):
    """Rows and columns of a tile, channels per step of the scores and per program."""

    rows: int
    columns: int
    step: int
    channels: int
    warps: int
    stages: int


def packed_channels(d: int) -> int:
    """Channels that packed frames are filled up to, with zeros. A multiple of 16 bytes loads wide
    and a multiple of the gradients' steps needs no mask in them, for which there is no register."""
    return 16 if d <= 16 else triton.cdiv(d, 32) * 32


@lru_cache
def tiles(kernel: str, d: int, operands: str, arch: int) -> Tiles:
    """The configuration of "nearest", "moments", "pull" or "grad" for d packed channels and "bf16",
    "fp16", "tf32" or "tf32x3" operands.

    Nothing here may depend on N or T: a pair gives the same bits alone and in a batch. Chosen so
    that nothing spills (tests/data/tcc_resources.json) and to fit the 99 kB of shared memory of
    sm_86 and sm_89.
    """
    padded = triton.next_power_of_2(d)
    if arch == 0:  # the interpreter: few, large steps
        return Tiles(64, 64, padded, padded, 4, 1)
    half = operands in ("bf16", "fp16")
    if half:
        step, channels = 128 if padded <= 128 else 64, 128
        if kernel == "grad" and padded == 256:
            step = 32
    elif kernel == "grad":
        step, channels = (32, 128) if operands == "tf32" else (16, 64)
    else:
        step, channels = 16, 64
    rows, columns = 32 if kernel == "grad" else 64, 32
    if kernel == "grad" and operands == "tf32x3" and (padded == 32 or padded > 256):
        columns, channels = 16, 16 if padded == 32 else 64
    warps = 4 if half and padded <= 64 else 8
    return Tiles(rows, columns, min(padded, step), min(padded, channels), warps, 2)


class Packed(NamedTuple):
    """All sequences in one form; the kernels' files say what is in it."""

    num: int  # sequences, or pairs
    frames: tuple[int, int]
    channels: int  # without those that z is filled up with
    z: Tensor  # [M, T, D]
    bias: Tensor  # [M, T]
    t: Tensor  # [M, T]
    lengths: Tensor  # [M]
    seq: Tensor  # [3, M]


class Cycles(NamedTuple):
    """What the hops of a group of shifts have left for their gradients."""

    first: int
    nearest: Tensor  # [hops, T, D]
    row: Tensor  # [6, hops, T]


def forward(
    x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, opts: TCCOptions, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and, to ``keep``, its gradients with respect to x and y in float32."""
    n, frames = len(x), max(x.shape[1], 0 if y is None else y.shape[1])
    shifts = n - 1 if y is None else 1
    shape = (n,) if opts.reduction == "none" else ()
    # Without y each sequence has a part in the losses of all others.
    keep = keep and (y is not None or opts.reduction != "none")
    if n == 0 or frames == 0 or shifts == 0:
        grads = (z.new_zeros(z.shape, dtype=torch.float32) if keep else None for z in _given(x, y))
        return x.new_zeros(shape, dtype=torch.float32), *_two(grads)
    with launch.on_device(x.device):
        packed = _pack(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, None, opts)
        rows = _tiles("moments", packed).rows
        blocks = triton.cdiv(frames, rows)
        part = torch.empty((shifts, len(packed.z), blocks), dtype=torch.float32, device=x.device)
        grads = _run(packed, part, shifts, opts, keep, y is None)
        loss = torch.empty(shape, dtype=torch.float32, device=x.device)
        tcc_reduce_kernel[(1,)](
            part,
            packed.seq[2],
            loss,
            n,
            part.numel() // (n * blocks),
            blocks,
            REDUCTION=opts.reduction,
            BV=16,
            BB=64,
            num_warps=4,
        )
    return loss, *grads


def backward(
    grad, x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, dx, dy, opts: TCCOptions
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and y, from those that the forward has kept or else from the start."""
    if dx is not None:
        dx, dy = (None if d is None else d * grad.view(-1, 1, 1) for d in (dx, dy))
    elif x.numel() == 0 or (y is None and len(x) == 1):
        dx, dy = _two(torch.zeros_like(z) for z in _given(x, y))
    else:
        shifts = len(x) - 1 if y is None else 1
        with launch.on_device(x.device):
            packed = _pack(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, grad, opts)
            dx, dy = _run(packed, None, shifts, opts, True, y is None)
    return dx.to(x.dtype), None if y is None else dy.to(y.dtype)


def _given(x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    return (x,) if y is None else (x, y)


def _two(values) -> tuple[Tensor | None, Tensor | None]:
    first, second = (*values, None)[:2]
    return first, second


def _pack(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, grad, opts: TCCOptions) -> Packed:
    n, d = len(x), x.shape[2]
    pairs, distances = y is not None, opts.similarity == "l2"
    if not pairs:
        y, valid_y, duration_y = x, valid_x, duration_x
    tx, ty = _times(tx, ty if pairs else tx, valid_x, valid_y)
    duration_x, duration_y = (
        None if v is None else v.float().contiguous() for v in (duration_x, duration_y)
    )
    frames = max(x.shape[1], y.shape[1])
    fp32 = {"dtype": torch.float32, "device": x.device}
    many = 2 * n if pairs else n
    strides = (*x.stride(), *y.stride())
    step = min(128, max(16, triton.next_power_of_2(d)))
    centre = None
    # Distances do not see a common offset, but the products that they are made of do. Products of
    # half precision are exact, which its differences would not be.
    if distances and x.dtype == torch.float32:
        centre = torch.empty((n if pairs else 1, d), **fp32)
        tcc_centre_kernel[(len(centre) * triton.cdiv(d, 16),)](
            *(x, y, valid_x, valid_y, centre, n, x.shape[1], y.shape[1], *strides),
            D=d,
            BT=128,
            BK=16,
            PAIRS=pairs,
            num_warps=4,
        )
    packed = Packed(
        n,
        (x.shape[1], y.shape[1]),
        d,
        torch.empty((many, frames, packed_channels(d)), dtype=x.dtype, device=x.device),
        torch.empty((many, frames), **fp32),
        torch.empty((many, frames), **fp32),
        torch.empty(many, dtype=torch.int32, device=x.device),
        torch.empty((3, many), **fp32),
    )
    tcc_pack_kernel[(many * triton.cdiv(frames, 32),)](
        *(x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, centre, grad),
        *packed[3:],
        *(n, x.shape[1], y.shape[1], frames),
        *strides,
        *(0 if t is None else t.stride(0) for t in (tx, ty)),
        grad.stride(0) if grad is not None and grad.dim() else 0,
        LOG2E / (d * opts.temperature) if distances else 0.0,
        VARIANCE_FLOOR,
        CHANNELS=d,
        D=packed.z.shape[2],
        BT=32,
        BK=step,
        PAIRS=pairs,
        SHARES=opts.normalize_indices,
        REDUCTION=opts.reduction,
        num_warps=4,
    )
    return packed


def _times(tx: Tensor | None, ty: Tensor | None, valid_x, valid_y):
    """Times as the kernels read them: float32, int32 or int64, one of these, contiguous rows."""
    if tx is None:
        return None, None
    if tx.dtype != ty.dtype or tx.dtype == torch.float64:
        tx, ty = (
            shift_times(t, t[:, :0], real, real[:, :0], torch.float32)[0]
            for t, real in (
                (t, valid_mask(valid, *t.shape, t.device))
                for t, valid in ((tx, valid_x), (ty, valid_y))
            )
        )
    return tuple(t if t.stride(1) == 1 else t.contiguous() for t in (tx, ty))


def _tiles(kernel: str, packed: Packed) -> Tiles:
    operands, _ = launch.operands(packed.z.dtype)
    return tiles(kernel, packed.z.shape[2], operands, launch.architecture(packed.z.device))


def _run(
    packed: Packed, part: Tensor | None, shifts: int, opts: TCCOptions, keep: bool, all_pairs: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Row losses of every hop, to ``keep`` also the gradients of their weighted sum."""
    many, d = len(packed.z), packed.channels
    fp32 = {"dtype": torch.float32, "device": packed.z.device}
    dx = dy = None
    if keep:
        dx = torch.empty((packed.num, packed.frames[0], d), **fp32)
        dy = None if all_pairs else torch.empty((packed.num, packed.frames[1], d), **fp32)
    at_once = max(1, min(shifts, ELEMENTS // packed.z.numel()))
    for start in range(0, shifts, at_once):
        group = min(at_once, shifts - start)
        first = 1 + start if all_pairs else packed.num
        some = torch.empty(0, **fp32) if part is None else part[start : start + group]
        cycles = _cycles(packed, first, group * many, some, opts)
        if keep:
            _gradients(packed, cycles, dx, dx if all_pairs else dy, start > 0, opts)
    return dx, dy


def _scale(packed: Packed, opts: TCCOptions) -> float:
    """From products to scores, base 2."""
    scale = LOG2E / (packed.channels * opts.temperature)
    return 2 * scale if opts.similarity == "l2" else scale


def _cycles(packed: Packed, first: int, hops: int, part: Tensor, opts: TCCOptions) -> Cycles:
    many, frames, d = packed.z.shape
    z, _, precision = packed.z, *launch.operands(packed.z.dtype)
    fp32 = {"dtype": torch.float32, "device": z.device}
    nearest = torch.empty((hops, frames, d), **fp32)
    row = torch.empty((6, hops, frames), **fp32)
    tile = _tiles("nearest", packed)
    tcc_nearest_kernel[(triton.cdiv(d, tile.channels) * triton.cdiv(frames, tile.rows) * hops,)](
        *(z, packed.bias, packed.lengths, nearest, row),
        *(many, frames, first, hops, _scale(packed, opts)),
        D=d,
        BM=tile.rows,
        BN=tile.columns,
        BK=tile.step,
        BD=tile.channels,
        PREC=precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=MAX_REGISTERS,
    )
    tile = _tiles("moments", packed)
    blocks = triton.cdiv(frames, tile.rows)
    if part.numel() == 0:
        part = torch.empty((hops, blocks), **fp32)
    tcc_moments_kernel[(blocks * hops,)](
        *(z, packed.bias, packed.t, packed.lengths, packed.seq, nearest, row, part),
        *(many, frames, first, hops, _scale(packed, opts)),
        *(opts.variance_lambda, opts.label_smoothing, opts.huber_delta),
        D=d,
        BM=tile.rows,
        BN=tile.columns,
        BK=tile.step,
        TYPE=opts.loss_type,
        PREC=precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=MAX_REGISTERS,
    )
    return Cycles(first, nearest, row)


def _gradients(packed: Packed, cycles: Cycles, dx, dy, add: bool, opts: TCCOptions) -> None:
    many, frames, d = packed.z.shape
    z, _, precision = packed.z, *launch.operands(packed.z.dtype)
    hops = len(cycles.nearest)
    pull = torch.empty_like(cycles.nearest)
    tile = _tiles("pull", packed)
    chunks = triton.cdiv(d, tile.channels)
    level = torch.empty((chunks, hops, frames), dtype=torch.float32, device=z.device)
    shared = {"TYPE": opts.loss_type, "PREC": precision}
    tcc_pull_kernel[(chunks * triton.cdiv(frames, tile.rows) * hops,)](
        *(z, packed.bias, packed.t, packed.lengths),
        *(cycles.nearest, cycles.row, pull, level),
        *(many, frames, cycles.first, hops, _scale(packed, opts), opts.label_smoothing),
        D=d,
        BM=tile.rows,
        BN=tile.columns,
        BK=tile.step,
        BD=tile.channels,
        **shared,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=MAX_REGISTERS,
    )
    tile = _tiles("grad", packed)
    tcc_grad_kernel[(triton.cdiv(d, tile.channels) * triton.cdiv(frames, tile.rows) * many,)](
        *(z, packed.bias, packed.t, packed.lengths),
        *(cycles.nearest, cycles.row, pull, level, dx, dy),
        *(packed.num, many, frames, *packed.frames, cycles.first, hops, int(add)),
        *(_scale(packed, opts), opts.label_smoothing),
        CHANNELS=packed.channels,
        D=d,
        BM=tile.rows,
        BN=tile.columns,
        BK=tile.step,
        BD=tile.channels,
        CHUNKS=chunks,
        L2=opts.similarity == "l2",
        **shared,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=MAX_REGISTERS,
    )
