"""tcc_loss on NVIDIA GPUs: launches the kernels of triton_*.py. op.py checks the input.

Nothing is copied back to the host, so the call can be captured in a CUDA graph. As in the torch
backend the forward also computes the gradients, for an upstream gradient of 1, if they are needed.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles
from fastseq.ops.common.lengths import shift_times, valid_mask
from fastseq.ops.tcc.options import (
    VARIANCE_FLOOR,
    Gradients,
    TCCOptions,
    temperature_gradient,
)
from fastseq.ops.tcc.triton_cycles import (
    tcc_moments_kernel,
    tcc_nearest_kernel,
    tcc_pull_kernel,
)
from fastseq.ops.tcc.triton_gradients import (
    tcc_finish_kernel,
    tcc_keys_kernel,
    tcc_queries_kernel,
    tcc_through_kernel,
)
from fastseq.ops.tcc.triton_pack import tcc_centre_kernel, tcc_pack_kernel, tcc_reduce_kernel

LOG2E = 1 / math.log(2)
# Limit on the channels of the nearest neighbours kept at a time for all ordered pairs.
ELEMENTS = 1 << 24
# Packed frames are a multiple of this (SPAN in the kernels): no tile is larger or needs a mask.
SPAN = 64
# For "bf16", "fp16", "tf32" and "tf32x3" operands: bf16 planes of a frame, bf16 planes of a
# computed number, and how many orders of the products of two frames are computed (multiply()).
PLANES = {"bf16": (1, 2, 1), "fp16": (2, 2, 3), "tf32": (2, 2, 2), "tf32x3": (3, 3, 3)}


def packed_channels(d: int) -> int:
    """Channels of packed frames, filled with zeros so that no tile needs a mask."""
    return max(16, triton.next_power_of_2(d)) if d <= 128 else launch.cdiv(d, 128) * 128


@lru_cache
def tiles(kernel: str, d: int, operands: str, arch: int) -> Tiles:
    """The configuration of "nearest", "moments", "pull", "keys", "queries" or "through" for d
    packed channels and "bf16", "fp16", "tf32" or "tf32x3" operands.

    Nothing here may depend on N or T: a pair has the same bits alone and in a batch. No kernel has
    more columns than another has rows: beyond its last rows nothing is stored, and columns have no
    mask. Chosen so that nothing spills (tests/data/tcc_resources.json; the exceptions are in
    SPILLING of its test) and that tiles fit the 99 kB of shared memory of sm_86 and sm_89.
    """
    if arch == 0:  # the interpreter: few, large steps
        return Tiles(64, 64, d, d, 4, 1)
    exact, wide = operands == "tf32x3", d > 128
    if arch // 10 != 9 or (exact and (wide or kernel in ("queries", "through"))):
        # mma.sync, 16 rows a warp. wgmma would keep the addresses of its many operands in
        # registers, too many for these tiles; sm_100 needs even more.
        columns, step, channels = (16, 32, 64) if exact or wide else (32, 64, 128)
        if exact and kernel == "queries" and arch // 10 == 9 and not wide:
            channels = 128
        if kernel in ("queries", "through") and operands != "bf16":
            columns = 16
        if exact and kernel == "through" and wide and arch < 90:
            step = 16
        rows, warps = (64, 4) if arch < 90 else (32, 2)
        return Tiles(rows, columns, min(d, step), min(d, channels), warps, 2)
    if wide:
        columns = 16 if kernel in ("queries", "through") and operands != "bf16" else 32
        return Tiles(64, columns, 32, 128, 4, 2)
    columns, step = 32, 64
    if operands == "bf16" or (not exact and kernel in ("nearest", "moments")):
        columns, step = 64, 64 if kernel == "pull" else 128
    return Tiles(64, columns, min(d, step), min(d, 128), 4, 3)


class Packed(NamedTuple):
    """All sequences in one layout, described in the kernels' files."""

    num: int  # sequences, or pairs
    frames: tuple[int, int]
    channels: int  # without the filling zeros of z
    z: Tensor  # [planes, M, T, D]
    bias: Tensor  # [M, T]
    t: Tensor  # [M, T]
    lengths: Tensor  # [M]
    seq: Tensor  # [3, M]
    tau: Tensor | None  # the temperature if it is a tensor


class Cycles(NamedTuple):
    """What the hops of a group of shifts store for their gradients."""

    first: int
    nearest: Tensor  # [planes, hops, T, D]
    row: Tensor  # [6, hops, T]


def forward(
    x, y, temperature, tx, ty, valid_x, valid_y, duration_x, duration_y, opts: TCCOptions, needs
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and, if a gradient is needed, its gradients of x and y in float32."""
    n, frames = len(x), max(x.shape[1], 0 if y is None else y.shape[1])
    shifts = n - 1 if y is None else 1
    shape = (n,) if opts.reduction == "none" else ()
    # Without y each sequence contributes to the losses of all others.
    keep = any(needs) and (y is not None or opts.reduction != "none")
    if n == 0 or frames == 0 or shifts == 0:
        grads = (z.new_zeros(z.shape, dtype=torch.float32) if keep else None for z in _given(x, y))
        return x.new_zeros(shape, dtype=torch.float32), *_two(grads)
    kernels = _kernels(x, y, opts)
    sides = x, y, tx, ty, valid_x, valid_y, duration_x, duration_y
    packed = _pack(kernels, *sides, None, temperature, opts)
    _, many, frames, _ = packed.z.shape
    blocks = frames // kernels.moments.rows
    part = torch.empty((shifts, many, blocks), dtype=torch.float32, device=x.device)
    grads = _run(kernels, packed, part, shifts, opts, keep, y is None)
    loss = torch.empty(shape, dtype=torch.float32, device=x.device)
    hops = part.numel() // (n * blocks)
    kernels.reduce(1, (part, packed.seq[2], loss), (n, hops, blocks))
    return loss, *grads


def backward(
    grad,
    x,
    y,
    temperature,
    tx,
    ty,
    valid_x,
    valid_y,
    duration_x,
    duration_y,
    dx,
    dy,
    opts: TCCOptions,
    needs,
) -> Gradients:
    """Gradients of x, y and the temperature, from kept gradients or computed from the start."""
    if dx is not None:
        dx, dy = (None if d is None else d * grad.view(-1, 1, 1) for d in (dx, dy))
    elif x.numel() == 0 or (y is None and len(x) == 1):
        dx, dy = _two(torch.zeros_like(z, dtype=torch.float32) for z in _given(x, y))
    else:
        shifts = len(x) - 1 if y is None else 1
        kernels = _kernels(x, y, opts)
        sides = x, y, tx, ty, valid_x, valid_y, duration_x, duration_y
        packed = _pack(kernels, *sides, grad, temperature, opts)
        dx, dy = _run(kernels, packed, None, shifts, opts, True, y is None)
    dt = None
    if needs[2]:
        dt = temperature_gradient(x, y, temperature, valid_x, valid_y, dx, dy, opts)
    return dx.to(x.dtype), None if y is None else dy.to(y.dtype), dt


class OfTiles(NamedTuple):
    """A kernel that works in tiles: their rows, and the number of programs for all channels."""

    kernel: launch.Kernel
    rows: int
    chunks: int

    def __call__(self, frames: int, hops: int, tensors: tuple, numbers: tuple) -> None:
        self.kernel(self.chunks * launch.cdiv(frames, self.rows) * hops, tensors, numbers)


class Kernels(NamedTuple):
    """The kernels of one kind of call, in the order in which they run."""

    planes: int  # of frames
    computed: int  # of numbers computed from them
    centre: launch.Kernel
    pack: launch.Kernel
    nearest: OfTiles
    moments: OfTiles
    pull: OfTiles
    keys: OfTiles
    queries: OfTiles
    through: OfTiles
    finish: launch.Kernel
    reduce: launch.Kernel


def _kernels(x: Tensor, y: Tensor | None, opts: TCCOptions) -> Kernels:
    kind = opts.loss_type, opts.similarity == "l2", opts.normalize_indices, opts.reduction
    arch = launch.architecture(x.device)
    return _choose(x.shape[2], launch.operands(x.dtype)[0], arch, y is not None, *kind)


@launch.once
def _choose(
    d: int,
    operands: str,
    arch: int,
    pairs: bool,
    loss_type: str,
    l2: bool,
    shares: bool,
    reduction: str,
) -> Kernels:
    packed = packed_channels(d)
    planes, computed, orders = PLANES[operands]

    def of_tiles(name: str, kernel, **constants) -> OfTiles:
        tile = tiles(name, packed, operands, arch)
        made = launch.Kernel(
            kernel,
            D=packed,
            BM=tile.rows,
            BN=tile.columns,
            BK=tile.step,
            BD=tile.channels,
            PZ=planes,
            PC=computed,
            ZZ=orders,
            num_warps=tile.warps,
            num_stages=tile.stages,
            maxnreg=tile.registers or launch.MOST_REGISTERS,
            **constants,
        )
        chunks = 1 if name == "moments" else launch.cdiv(packed, tile.channels)
        return OfTiles(made, tile.rows, chunks)

    pull = of_tiles("pull", tcc_pull_kernel, TYPE=loss_type)
    around = {"CHANNELS": d, "D": packed, "P": planes, "BT": 32, "BK": min(packed, 128)}
    pack = {"SHARES": shares, "REDUCTION": reduction, "PAIRS": pairs}
    return Kernels(
        planes,
        computed,
        launch.Kernel(tcc_centre_kernel, D=d, BT=128, BK=16, PAIRS=pairs, num_warps=4),
        launch.Kernel(tcc_pack_kernel, **pack, **around, num_warps=4),
        of_tiles("nearest", tcc_nearest_kernel),
        of_tiles("moments", tcc_moments_kernel, TYPE=loss_type),
        pull,
        of_tiles("keys", tcc_keys_kernel, TYPE=loss_type),
        of_tiles("queries", tcc_queries_kernel, CHUNKS=pull.chunks),
        of_tiles("through", tcc_through_kernel, CHUNKS=pull.chunks, CONVERT=arch >= 100),
        launch.Kernel(tcc_finish_kernel, L2=l2, PARTS=1 if pairs else 3, **around, num_warps=4),
        launch.Kernel(tcc_reduce_kernel, REDUCTION=reduction, BV=16, BB=64, num_warps=4),
    )


def _given(x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    return (x,) if y is None else (x, y)


def _two(values) -> tuple[Tensor | None, Tensor | None]:
    first, second = (*values, None)[:2]
    return first, second


def _pack(
    kernels: Kernels,
    x: Tensor,
    y: Tensor | None,
    tx: Tensor | None,
    ty: Tensor | None,
    valid_x: Tensor | None,
    valid_y: Tensor | None,
    duration_x: Tensor | None,
    duration_y: Tensor | None,
    grad: Tensor | None,
    tau: Tensor | None,
    opts: TCCOptions,
) -> Packed:
    n, d = len(x), x.shape[2]
    pairs, distances = y is not None, opts.similarity == "l2"
    if not pairs:
        y, valid_y, duration_y = x, valid_x, duration_x
    tx, ty = _times(tx, ty if pairs else tx, valid_x, valid_y)
    duration_x, duration_y = (
        None if v is None else v.float().contiguous() for v in (duration_x, duration_y)
    )
    spans = launch.cdiv(max(x.shape[1], y.shape[1]), SPAN)
    fp32 = {"dtype": torch.float32, "device": x.device}
    many, frames = 2 * n if pairs else n, spans * SPAN
    shape = kernels.planes, many, frames, packed_channels(d)
    strides = (*x.stride(), *y.stride())
    centre = None
    # A common offset does not change distances, but it does change the products behind them.
    # Products of half precision are exact; its differences would not be.
    if distances and x.dtype == torch.float32:
        centre = torch.empty((n if pairs else 1, d), **fp32)
        kernels.centre(
            len(centre) * launch.cdiv(d, 16),
            (x, y, valid_x, valid_y, centre),
            (n, x.shape[1], y.shape[1], *strides),
        )
    packed = Packed(
        n,
        (x.shape[1], y.shape[1]),
        d,
        torch.empty(shape, dtype=torch.bfloat16, device=x.device),
        torch.empty((many, frames), **fp32),
        torch.empty((many, frames), **fp32),
        torch.empty(many, dtype=torch.int32, device=x.device),
        torch.empty((3, many), **fp32),
        tau,
    )
    kernels.pack(
        many * launch.cdiv(frames, 32),
        (x, y, tx, ty, valid_x, valid_y, duration_x, duration_y, centre, grad, *packed[3:]),
        (
            *(n, x.shape[1], y.shape[1], spans),
            *strides,
            *(0 if t is None else t.stride(0) for t in (tx, ty)),
            grad.stride(0) if grad is not None and grad.dim() else 0,
            LOG2E / (d * opts.temperature) if distances else 0.0,
            VARIANCE_FLOOR,
        ),
    )
    return packed


def _times(tx: Tensor | None, ty: Tensor | None, valid_x, valid_y):
    """Times as the kernels read them: all float32, all int32 or all int64, in contiguous rows."""
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


def _run(
    kernels: Kernels,
    packed: Packed,
    part: Tensor | None,
    shifts: int,
    opts: TCCOptions,
    keep: bool,
    all_pairs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Row losses of every hop, and if ``keep`` also the gradients of their weighted sum."""
    d = packed.channels
    _, many, frames, _ = packed.z.shape
    fp32 = {"dtype": torch.float32, "device": packed.z.device}
    dx = dy = walks = rests = None
    if keep:
        # All pairs: one part per walk, so that no bit depends on the number of shifts in a launch.
        walks = torch.empty((3 if all_pairs else 1, *packed.z.shape[1:]), **fp32)
        rests = torch.empty(walks.shape[:3], **fp32)
        dx = torch.empty((packed.num, packed.frames[0], d), **fp32)
        dy = None if all_pairs else torch.empty((packed.num, packed.frames[1], d), **fp32)
    at_once = max(1, min(shifts, ELEMENTS // packed.z[0].numel()))
    for start in range(0, shifts, at_once):
        group = min(at_once, shifts - start)
        first = 1 + start if all_pairs else packed.num
        some = torch.empty(0, **fp32) if part is None else part[start : start + group]
        cycles = _cycles(kernels, packed, first, group * many, some, opts)
        if keep:
            _gradients(kernels, packed, cycles, walks, rests, start > 0, opts)
    if keep:
        kernels.finish(
            many * frames // 32,
            (packed.z, walks, rests, packed.lengths, packed.tau, dx, dx if all_pairs else dy),
            (packed.num, many, frames // SPAN, *packed.frames, _scale(packed, opts)),
        )
    return dx, dy


def _scale(packed: Packed, opts: TCCOptions) -> float:
    """The factor from products to scores, base 2."""
    scale = LOG2E / (packed.channels * opts.temperature)
    return 2 * scale if opts.similarity == "l2" else scale


def _cycles(
    kernels: Kernels, packed: Packed, first: int, hops: int, part: Tensor, opts: TCCOptions
) -> Cycles:
    _, many, frames, d = packed.z.shape
    fp32 = {"dtype": torch.float32, "device": packed.z.device}
    nearest = packed.z.new_empty((kernels.computed, hops, frames, d))
    row = torch.empty((6, hops, frames), **fp32)
    sizes = many, frames // SPAN, first, hops, _scale(packed, opts)
    passed = packed.z, packed.bias, packed.lengths, packed.tau, nearest, row
    kernels.nearest(frames, hops, passed, sizes)
    if part.numel() == 0:
        part = torch.empty((hops, frames // kernels.moments.rows), **fp32)
    kernels.moments(
        *(frames, hops, (*packed[3:], nearest, row, part)),
        (*sizes, opts.variance_lambda, opts.label_smoothing, opts.huber_delta),
    )
    return Cycles(first, nearest, row)


def _gradients(
    kernels: Kernels, packed: Packed, cycles: Cycles, walks, rests, add: bool, opts: TCCOptions
) -> None:
    _, many, frames, _ = packed.z.shape
    first, nearest, row = cycles
    hops = nearest.shape[1]
    pull = torch.empty_like(nearest)
    level = row.new_empty((kernels.pull.chunks, hops, frames))
    sizes = many, frames // SPAN, first, hops
    scales = _scale(packed, opts), opts.label_smoothing
    z, bias, t, lengths, _, tau = packed[3:]
    cycle = z, bias, t, lengths, tau, nearest, row
    kernels.pull(frames, hops, (*cycle, pull, level), (*sizes, *scales))
    kernels.keys(frames, many, (*cycle, walks[0], rests[0]), (*sizes, int(add), *scales))
    passed = z, bias, lengths, tau, row, pull, level
    for k, kernel in enumerate((kernels.queries, kernels.through), 1):
        part, more = (k, add) if len(walks) > 1 else (0, True)
        left = walks[part], rests[part]
        kernel(frames, many, (*passed, *left), (*sizes, int(more), scales[0]))
