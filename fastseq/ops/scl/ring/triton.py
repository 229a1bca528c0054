"""The parts of a split scl_loss on NVIDIA GPUs: rows of one rank against columns of another.

The kernels are those of the whole loss. Statistics: two launches. Gradient: three. Nothing is
copied back to the host.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.scl.options import ROWS, UNIT, SCLOptions, padded
from fastseq.ops.scl.ring import blocks
from fastseq.ops.scl.ring.options import Primitives, Side, Weights
from fastseq.ops.scl.triton import (
    Kernels,
    is_online,
    kernels_of,
    plane_memory,
    scales_of,
    side_inputs,
    stride_of,
)
from fastseq.ops.scl.triton_ring_kernels import scl_weights_kernel


def statistics(
    rows: Side,
    columns: Side,
    tau: Tensor | None,
    var: Tensor | None,
    opts: SCLOptions,
    near: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-denominators of the rows over these columns, and if ``near`` the logarithm of the sum of
    their targets g and the mean over g of s - log g ("ce": of s). Each (N, T) in float32.

    g is 2^32 times that of the definition for "gauss". Without a column the first is -1e30; without
    a target the second is minus infinity and the third 0.
    """
    n, frames, _ = rows.z.shape
    part = rows.z.new_empty((3, n, frames), dtype=torch.float32)
    if part.numel():
        call = _prepared(rows, columns, tau, var, opts, near)
        blocks = launch.cdiv(padded(max(call.sizes[1:])), call.kernels.rows)
        call.kernels.stats(
            n * blocks,
            (*call.inputs, call.planes, call.stats, part, None, None, None, None, var),
            (*call.sizes, *call.scales),
        )
    return (part[0], part[1], part[2]) if near else (part[0], None, None)


def add_gradient(
    total: Tensor,
    rows: Side,
    columns: Side,
    of_rows: Weights,
    of_columns: Weights,
    tau: Tensor | None,
    var: Tensor | None,
    opts: SCLOptions,
    near: bool,
    along: bool,
) -> Tensor | None:
    """Add to ``total`` (N, T, D), float32, the gradient of the rows' embeddings through their
    scores with these columns, for an upstream gradient of 1. If ``along``, returns the sums (N, T)
    of the rows' scores times their gradients.
    """
    n, frames, _ = rows.z.shape
    alongs = total.new_zeros((n, frames + columns.z.shape[1])) if along else None
    if n and frames and columns.z.shape[1]:
        call = _prepared(rows, columns, tau, var, opts, near)
        kinds = {"ONLINE": is_online(tau, opts), "TARGET": opts.target if near else NO_TARGET}
        pairs = zip(of_rows[: 2 + near], of_columns[: 2 + near], strict=True)
        weights = [x.float().contiguous() for pair in pairs for x in pair]
        _weights(**kinds)(
            n * call.stats.shape[2] // UNIT,
            (call.stats, *weights, *([] if near else [None, None]), var),
            (*call.sizes, *call.scales),
        )
        kernels = call.kernels
        out = torch.empty_like(total)
        one = torch.ones((2, n), dtype=torch.float32, device=total.device)
        blocks = launch.cdiv(max(call.sizes[1:]), kernels.grad_rows)
        kernels.grad(
            kernels.chunks * n * blocks,
            (
                *(*call.inputs, call.planes, call.stats, one, one, out, out),
                *(None, tau, var, alongs),
            ),
            (*call.sizes, 0, 0, 1, *call.scales),
        )
        total += out
    return None if alongs is None else alongs[:, :frames]


def finish(total: Tensor, rows: Side, top: Tensor, opts: SCLOptions) -> Tensor:
    """The gradient of the rows in their dtype: ``total`` times ``top``, 0 where not real."""
    out = total * top
    if rows.valid is not None:
        out.masked_fill_(~valid_mask(rows.valid, *out.shape[:2], out.device)[..., None], 0)
    return out.to(rows.z.dtype)


# Without targets: reach is minus infinity, and a box needs no second pass over the last tile.
NO_TARGET = "box"


class _Prepared(NamedTuple):
    """A call whose frames have been prepared."""

    kernels: Kernels
    inputs: tuple[Tensor | None, ...]  # z and valid of rows and columns
    planes: Tensor | None
    stats: Tensor
    sizes: tuple[int, int, int]
    scales: tuple[float, float, float]


def _prepared(rows: Side, columns: Side, tau, var, opts: SCLOptions, near: bool) -> _Prepared:
    z1, z2 = rows.z, columns.z
    sizes = n, frames1, frames2 = len(z1), z1.shape[1], z2.shape[1]
    t1, t2 = (rows.t, columns.t) if near else (None, None)
    t1, t2, valid1, valid2, masked = side_inputs(z1, z2, t1, t2, rows.valid, columns.valid)
    scales = scales_of(opts)
    if not near:
        opts = opts._replace(target=NO_TARGET)
        scales = *scales[:2], -math.inf
    opts = opts._replace(reduction="none")
    kernels = kernels_of(z1, z2, masked, is_online(tau, opts), opts, partial=True)
    frames = padded(frames1) + padded(frames2)
    stats = z1.new_empty((ROWS, n, frames), dtype=torch.float32)
    planes = plane_memory(z1, frames, kernels)
    kernels.prepare(
        n * frames // UNIT,
        (z1, z2, t1, t2, valid1, valid2, stats, planes, tau, var),
        (*sizes, stride_of(t1), stride_of(t2), scales[0]),
    )
    return _Prepared(kernels, (z1, z2, valid1, valid2), planes, stats, sizes, scales)


@launch.once
def _weights(**constants: bool | str) -> launch.Kernel:
    return launch.Kernel(scl_weights_kernel, **constants, num_warps=1)


PRIMITIVES = Primitives(statistics, add_gradient, finish)
forward = functools.partial(blocks.forward, PRIMITIVES)
backward = functools.partial(blocks.backward, PRIMITIVES)
