"""CUDA backend: the kernels of csrc/soft_dtw, compiled into the extension or at run time. Nothing
here waits for the GPU or reads from it.

FASTSEQ_SOFT_DTW_DEBUG=1 launches once per strip of 32 rows instead of once, without the flags by
which strips wait for each other: what goes wrong only without it is a matter of memory ordering.
"""

import functools
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from fastseq.ops.common import extension
from fastseq.ops.soft_dtw import runtime
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from fastseq.ops.soft_dtw.runtime import FLAGS, LANES


def forward(
    x: Tensor | None,
    y: Tensor | None,
    cost: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    opts: SoftDTWOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    given = x if cost is None else cost
    batch, rows, columns = _sizes(x, y, cost)
    if 0 in (batch, rows, columns):
        return (given.new_zeros(batch),)
    strips, blocks = -(-rows // LANES), -(-columns // LANES)
    # Of given costs the recursion is over R itself, which float32 cannot hold.
    dtype = given.dtype if cost is None else torch.float64
    h = given.new_empty(batch, strips, blocks * LANES, dtype=dtype)
    states = h.new_empty(batch, strips, blocks + 1, 2, LANES) if any(needs) else None
    value = given.new_empty(batch)
    totals = given.new_empty(batch, strips, dtype=torch.float64)
    sync = _sync(given, 1 + FLAGS["forward"] * batch * strips)
    call = _call(x, y, cost, lengths_x, lengths_y, opts, h, states)
    _build().soft_dtw_forward(call, *map(_pointer, (value, totals, sync)))
    return (value,) if states is None else (value, h, states)


def backward(
    grad: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    cost: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    *saved: Tensor,
    opts: SoftDTWOptions,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    wanted = zip((x, y, cost), needs, strict=True)
    dx, dy, dcost = grads = [torch.empty_like(t) if need else None for t, need in wanted]
    if not any(needs):
        return dx, dy, dcost
    if not saved:  # no cells
        for t in grads:
            if t is not None:
                t.zero_()
        return dx, dy, dcost
    h, states = saved
    sync = _sync(h, 1 + FLAGS["backward"] * h.shape[0] * h.shape[1])
    call = _call(x, y, cost, lengths_x, lengths_y, opts, h, states)
    flux = torch.empty_like(h, dtype=grad.dtype)
    buffers = (grad.contiguous(), dx, dy, dcost, flux, sync)
    _build().soft_dtw_backward(call, *map(_pointer, buffers))
    return dx, dy, dcost


@functools.cache
def _build() -> ModuleType:
    """fastseq._C where it can run kernels, otherwise what stands in for it."""
    return extension.extension() if extension.status()[0] else runtime


def _sizes(x: Tensor | None, y: Tensor | None, cost: Tensor | None) -> tuple[int, int, int]:
    return (x.shape[0], x.shape[1], y.shape[1]) if cost is None else tuple(cost.shape)


def _call(x, y, cost, lengths_x, lengths_y, opts: SoftDTWOptions, h: Tensor, states: Tensor | None):
    """What both kernels get. Tensors have to outlive the launch, not the call."""
    call = _build().SoftDTWCall()
    call.device = h.get_device()
    call.stream = torch.cuda.current_stream(h.device).cuda_stream
    call.is_double = (x if cost is None else cost).dtype == torch.float64
    call.debug = os.environ.get("FASTSEQ_SOFT_DTW_DEBUG", "0") not in ("", "0")
    call.x, call.y, call.cost = map(_pointer, (x, y, cost))
    call.lengths_x, call.lengths_y = map(_pointer, (lengths_x, lengths_y))
    call.batch, call.rows, call.columns = _sizes(x, y, cost)
    call.channels = 0 if x is None else x.shape[2]
    call.band = -1 if opts.bandwidth is None else min(opts.bandwidth, 2**30)
    call.gamma = opts.gamma
    call.h, call.states = map(_pointer, (h, states))
    return call


def _sync(like: Tensor, words: int) -> Tensor:
    """Ticket counter and flags; the launch zeroes them on its stream."""
    return like.new_empty(words, dtype=torch.int32)


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
