"""CUDA backend: the kernels of csrc/soft_dtw, from the compiled extension or compiled at run time.
Nothing here waits for the GPU or reads from it.

With FASTSEQ_SOFT_DTW_DEBUG=1 each strip of 32 rows is a launch, so that no strip waits for another:
a bug that disappears in this mode points to memory ordering. With 2, a strip that waits in vain
ends the kernel with an error instead of waiting for ever.
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
from fastseq.ops.soft_dtw.runtime import LANES

# Polls of about 0.2 us or more each: 10 s.
PATIENCE = 50_000_000


def forward(
    x: Tensor | None,
    y: Tensor | None,
    cost: Tensor | None,
    bias: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    gammas: Tensor | None,
    bands: Tensor | None,
    opts: SoftDTWOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    given = x if cost is None else cost
    if _needs_double(x, opts):
        inputs = *_doubles(x, y, cost, bias), lengths_x, lengths_y, gammas, bands
        value, *saved = forward(*inputs, opts, needs)
        return value.to(x.dtype), *saved
    batch, rows, columns = _sizes(x, y, cost)
    if 0 in (batch, rows, columns):
        return (given.new_zeros(batch),)
    strips, blocks = -(-(rows + opts.end_free) // LANES), -(-columns // LANES)
    # For given costs the recursion uses R itself, which needs more than float32.
    dtype = given.dtype if cost is None else torch.float64
    states = None
    if any(needs):
        states = given.new_empty(batch, strips, blocks + 1, 2, LANES, dtype=dtype)
    value = given.new_empty(batch)
    # All polled memory is one block, for one fill: the totals, h, the ticket counter.
    totals, width = 8 * batch * strips, blocks * LANES
    h = totals + batch * strips * width * dtype.itemsize
    polled = _polled(given, h + 4)
    start = polled.data_ptr()
    tensors = x, y, cost, bias, lengths_x, lengths_y, gammas, bands
    call = _call(tensors, opts, start + totals, states, polled)
    _module(opts).soft_dtw_forward(call, value.data_ptr(), start, start + h)
    return (value,) if states is None else (value, polled, states)


def backward(
    grad: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    cost: Tensor | None,
    bias: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    gammas: Tensor | None,
    bands: Tensor | None,
    *saved: Tensor,
    opts: SoftDTWOptions,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    if _needs_double(x, opts):
        inputs = *_doubles(x, y, cost, bias), lengths_x, lengths_y, gammas, bands
        grads = backward(grad.double(), *inputs, *saved, opts=opts, needs=needs)
        return tuple(t if t is None else t.to(x.dtype) for t in grads)
    wanted = zip((x, y, cost, bias), needs, strict=True)
    dx, dy, dcost, dbias = grads = [torch.empty_like(t) if need else None for t, need in wanted]
    if not any(needs):
        return dx, dy, dcost, dbias
    if not saved:  # no cells
        for t in grads:
            if t is not None:
                t.zero_()
        return dx, dy, dcost, dbias
    kept, states = saved
    batch, strips, phases = states.shape[:3]
    # Polled memory: flux, the counts of blocks of dy, the ticket counter.
    flux = batch * strips * (phases - 1) * LANES * grad.dtype.itemsize
    done = flux + 4 * batch * strips
    polled = _polled(states, done + 4)
    h = kept.data_ptr() + 8 * batch * strips
    tensors = x, y, cost, bias, lengths_x, lengths_y, gammas, bands
    call = _call(tensors, opts, h, states, polled)
    grad, start = grad.contiguous(), polled.data_ptr()
    buffers = *map(_pointer, (grad, dx, dy, dcost, dbias)), start, start + flux, start + done
    _module(opts).soft_dtw_backward(call, *buffers)
    return dx, dy, dcost, dbias


def _needs_double(x: Tensor | None, opts: SoftDTWOptions) -> bool:
    """With a free begin or end the value is a small rest of sums along the main diagonal, where x
    and y need not be near each other: in float32 nothing of a small value would be left."""
    return x is not None and x.dtype == torch.float32 and (opts.begin_free or opts.end_free)


def _doubles(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.double() for t in tensors]


@functools.cache
def _build() -> ModuleType:
    """fastseq._C where it can run kernels, otherwise the module that replaces it."""
    return extension.extension() if extension.status()[0] else runtime


def _module(opts: SoftDTWOptions) -> ModuleType:
    """The module with the kernels of a soft minimum: the extension has one."""
    return _build() if opts.softmin == "logsumexp" else runtime


def _sizes(x: Tensor | None, y: Tensor | None, cost: Tensor | None) -> tuple[int, int, int]:
    return (x.shape[0], x.shape[1], y.shape[1]) if cost is None else tuple(cost.shape)


def _call(tensors: Sequence[Tensor | None], opts: SoftDTWOptions, h: int, states, polled: Tensor):
    """Arguments of both kernels. The tensors must outlive the launch, not the call."""
    x, y, cost, bias, *constants = tensors
    if opts.softmin == "logsumexp":
        call = _build().SoftDTWCall()
    else:
        call = runtime.SoftDTWCall(softmin=opts.softmin)
    call.device = polled.get_device()
    call.stream = torch.cuda.current_stream(polled.device).cuda_stream
    call.is_double = (x if cost is None else cost).dtype == torch.float64
    debug = os.environ.get("FASTSEQ_SOFT_DTW_DEBUG", "") or "0"
    call.by_strip, call.patience = debug == "1", PATIENCE if debug == "2" else 0
    call.x, call.y, call.cost, call.bias = map(_pointer, (x, y, cost, bias))
    call.lengths_x, call.lengths_y, call.gammas, call.bands = map(_pointer, constants)
    call.batch, call.rows, call.columns = _sizes(x, y, cost)
    call.channels = 0 if x is None else x.shape[2]
    call.band = -1 if opts.bandwidth is None else min(opts.bandwidth, 2**30)
    call.begin_free, call.end_free = opts.begin_free, opts.end_free
    call.gamma, call.penalty = opts.gamma, opts.warp_penalty
    call.h, call.states = h, _pointer(states)
    call.polled, call.polled_bytes = polled.data_ptr(), polled.numel()
    return call


def _polled(like: Tensor, count: int) -> Tensor:
    """Memory of ``count`` bytes, which the launch fills on its stream."""
    return like.new_empty(count, dtype=torch.uint8)


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
