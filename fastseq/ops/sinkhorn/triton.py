"""sinkhorn_alignment on NVIDIA GPUs: launches the kernels of triton_*.py. op.py checks the input.

Two launches for each iteration forward, two backward, and two to four around them. Nothing is
copied back to the host, so the call can be captured in a CUDA graph.

Distances are |x|^2 + |y|^2 - 2 <x, y>, so that tensor cores form them. float32 frames are sums of
three bf16, relative to the mean frame of their pair: a common offset would cancel in these sums.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles
from fastseq.ops.sinkhorn.options import SinkhornOptions
from fastseq.ops.sinkhorn.triton_gradients import sinkhorn_adjoint_kernel, sinkhorn_grad_kernel
from fastseq.ops.sinkhorn.triton_kernels import (
    sinkhorn_pack_kernel,
    sinkhorn_potential_kernel,
    sinkhorn_value_kernel,
)
from fastseq.ops.tcc.triton import PLANES, SPAN, packed_channels
from fastseq.ops.tcc.triton_pack import tcc_centre_kernel

PACKED, SUMMED = 32, 256  # places that the pack and value kernels process at once


@lru_cache
def tiles(kernel: str, d: int, operands: str, arch: int) -> Tiles:
    """The configuration of "potential", "adjoint" or "grad" for d packed channels and "bf16",
    "fp16", "tf32" or "tf32x3" operands.

    Nothing here may depend on N or T: a pair has the same bits alone and in a batch. Chosen so that
    nothing spills (tests/data/sinkhorn_resources.json; the exceptions are in SPILLING of its test)
    and that tiles fit the 99 kB of shared memory of sm_86 and sm_89.
    """
    if arch == 0:  # the interpreter: few, large steps
        return Tiles(64, 64, min(d, 128), d, 4, 1)
    exact, channels, family = operands == "tf32x3", min(d, 128), arch // 10
    step = min(d, 32)
    if kernel == "grad" and exact:
        rows, columns, warps = {8: (64, 16, 4), 9: (64, 32, 4)}.get(family, (32, 16, 2))
        return Tiles(rows, columns, step, channels, warps, 2)
    if kernel == "grad":
        columns = 16 if operands != "bf16" and family == 9 else 32
        return Tiles(64, columns, step, channels, 4, 2)
    # Channels of the rows that a program keeps; it loads the others again with each tile.
    if operands != "bf16" and family not in (8, 9):
        # Two warps use mma.sync. Operands of sm_100's own products would wait in registers.
        return Tiles(32, 32, step, step, 2, 2)
    if exact and (d > 128 or family == 8):
        return Tiles(64, 32, step, step, 4, 2)
    return Tiles(64, 32, min(d, 64), channels, 4, 2)


def forward(
    x: Tensor,
    y: Tensor,
    centres: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    pairs: Tensor,
    opts: SinkhornOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The value and the potentials of all iterations as triton_tiles.py defines them."""
    (n, rows, _), columns, turns = x.shape, y.shape[1], opts.iterations
    fp32 = {"dtype": torch.float32, "device": x.device}
    f = torch.empty((n, turns + 1, rows + 1), **fp32)
    g = torch.empty((n, turns, columns + 1), **fp32)
    if n == 0 or rows == 0 or columns == 0:
        return torch.zeros(n, **fp32), f.fill_(-torch.inf), g.fill_(-torch.inf)
    value, mean = torch.empty(n, **fp32), torch.empty((n, rows + 1), **fp32)
    kernels, sides = _pack(x, y, centres, lengths_x, lengths_y, pairs, f, opts)
    tensors = *sides.tensors, f, g
    for k in range(1, turns + 1):
        of_f, of_g = kernels.first if k == 1 else kernels.potential
        of_g(sides, (*tensors, None), (turns, k))
        of_f(sides, (*tensors, mean if k == turns else None), (turns, k))
    kernels.value(n, (mean, sides.lengths_x, sides.lengths_y, value), (rows, columns))
    return value, f, g


def backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    centres: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    pairs: Tensor,
    f: Tensor,
    g: Tensor,
    opts: SinkhornOptions,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y in their dtypes, None where not needed."""
    dx, dy = (torch.empty_like(z) if need else None for z, need in zip((x, y), needs, strict=True))
    if x.numel() == 0 or y.numel() == 0 or not any(needs):
        return tuple(None if d is None else d.zero_() for d in (dx, dy))
    kernels, sides = _pack(x, y, centres, lengths_x, lengths_y, pairs, None, opts)
    turns = opts.iterations
    tensors = *sides.tensors, f, g, torch.empty_like(f), torch.empty_like(g)
    for k in range(turns, 0, -1):
        of_f, of_g = kernels.last if k == turns else kernels.adjoint
        of_f(sides, tensors, (turns, k))
        of_g(sides, tensors, (turns, k))
    for kernel, out in zip(kernels.grad, (dx, dy), strict=True):
        if out is not None:
            kernel(sides, (*tensors, grad, out), (turns, grad.stride(0)))
    return dx, dy


class Sides(NamedTuple):
    """Frames of all pairs as the kernels read them."""

    sizes: tuple[int, int, int]  # pairs, frames of x, frames of y
    spans: int  # places of a packed sequence over SPAN
    z: Tensor
    norms: Tensor
    centres: Tensor | None
    lengths_x: Tensor | None
    lengths_y: Tensor | None
    pairs: Tensor

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[2:]


class OfSide(NamedTuple):
    """A kernel whose rows are the frames of x (side 0) or of y (side 1)."""

    kernel: launch.Kernel
    side: int
    rows: int
    chunks: int  # programs for all channels

    def __call__(self, sides: Sides, tensors: tuple, numbers: tuple[int, ...]) -> None:
        blocks = launch.cdiv(sides.sizes[1 + self.side] + 1, self.rows)
        programs = self.chunks * blocks * sides.sizes[0]
        self.kernel(programs, tensors, (*sides.sizes, sides.spans, *numbers))


class Kernels(NamedTuple):
    """The kernels of one kind of call. Two: those with rows of x and with rows of y."""

    planes: int
    channels: int
    centre: launch.Kernel
    pack: launch.Kernel
    first: tuple[OfSide, OfSide]
    potential: tuple[OfSide, OfSide]
    value: launch.Kernel
    last: tuple[OfSide, OfSide]
    adjoint: tuple[OfSide, OfSide]
    grad: tuple[OfSide, OfSide]


@launch.once
def _choose(d: int, operands: str, arch: int, virtual: bool) -> Kernels:
    packed = packed_channels(d)
    planes, virtually = PLANES[operands][0], {"VIRTUAL": virtual}

    def of_side(kernel, name: str, side: int, **more) -> OfSide:
        tile, shared = tiles(name, packed, operands, arch), constants(name, d, operands, arch)
        options = {
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "maxnreg": tile.registers or launch.MOST_REGISTERS,
        }
        made = launch.Kernel(kernel, **shared, **virtually, **more, ROWS=side == 0, **options)
        chunks = packed // tile.channels if name == "grad" else 1
        return OfSide(made, side, tile.rows, chunks)

    def two(kernel, name: str, **more) -> tuple[OfSide, OfSide]:
        return of_side(kernel, name, 0, **more), of_side(kernel, name, 1, **more)

    return Kernels(
        planes,
        packed,
        launch.Kernel(tcc_centre_kernel, D=d, BT=128, BK=16, PAIRS=True, num_warps=4),
        launch.Kernel(sinkhorn_pack_kernel, **pack(d, operands), **virtually, num_warps=4),
        two(sinkhorn_potential_kernel, "potential", FIRST=True),
        two(sinkhorn_potential_kernel, "potential", FIRST=False),
        launch.Kernel(sinkhorn_value_kernel, BT=SUMMED, **virtually, num_warps=4),
        two(sinkhorn_adjoint_kernel, "adjoint", LAST=True),
        two(sinkhorn_adjoint_kernel, "adjoint", LAST=False),
        two(sinkhorn_grad_kernel, "grad"),
    )


def pack(d: int, operands: str) -> dict[str, int]:
    """Constants of the pack kernel."""
    packed = packed_channels(d)
    planes, _, orders = PLANES[operands]
    shape = {"CHANNELS": d, "D": packed, "BT": PACKED, "BK": min(packed, 128)}
    return shape | {"P": planes, "ZZ": orders}


def constants(kernel: str, d: int, operands: str, arch: int) -> dict[str, int | bool]:
    """Constants that a kernel is compiled for, apart from its side and its role."""
    packed = packed_channels(d)
    planes, computed, orders = PLANES[operands]
    tile = tiles(kernel, packed, operands, arch)
    shared = {
        "D": packed,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.step,
        "PZ": planes,
        "ZZ": orders,
    }
    if kernel == "grad":
        own = {"CHANNELS": d, "BD": tile.channels, "PC": computed, "CONVERT": arch >= 100}
        return shared | own
    return shared | {"KEPT": tile.channels // tile.step, "FRESH": planes == 3}


def _pack(
    x: Tensor,
    y: Tensor,
    centres: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    pairs: Tensor,
    f: Tensor | None,
    opts: SinkhornOptions,
) -> tuple[Kernels, Sides]:
    """Pack the frames; where f is passed, store its start."""
    n, rows, d = x.shape
    columns = y.shape[1]
    arch, operands = launch.architecture(x.device), launch.operands(x.dtype)[0]
    kernels = _choose(d, operands, arch, opts.virtual)
    pairs = pairs.contiguous()
    spans = launch.cdiv(max(rows, columns) + 1, SPAN)
    z = torch.empty(
        (kernels.planes, 2 * n, spans * SPAN, kernels.channels),
        dtype=torch.bfloat16,
        device=x.device,
    )
    norms = torch.empty((2 * n, spans * SPAN), dtype=torch.float32, device=x.device)
    mean = None
    # Products of half precision are exact; differences from a mean would not be.
    if x.dtype == torch.float32:
        mean = torch.empty((n, d), dtype=torch.float32, device=x.device)
        strides = *x.stride(), *y.stride()
        tensors = x, y, lengths_x, lengths_y, mean
        kernels.centre(n * launch.cdiv(d, 16), tensors, (n, rows, columns, *strides))
    kernels.pack(
        2 * n * spans * SPAN // PACKED,
        (x, y, lengths_x, lengths_y, mean, z, norms, f),
        (n, rows, columns, spans, opts.iterations),
    )
    if centres is not None:
        centres = centres.contiguous()
    inputs = centres, lengths_x, lengths_y, pairs
    return kernels, Sides((n, rows, columns), spans, z, norms, *inputs)
