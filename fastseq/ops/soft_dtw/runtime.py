"""Stands in for fastseq._C in cuda.py: the same kernels, compiled at run time by NVRTC.

What csrc/soft_dtw/soft_dtw.cu does in C++: arguments, shared memory, launches. The first call of
a kind and dtype compiles for some seconds.
"""

import ctypes
import functools
import math
from types import SimpleNamespace

import torch

from fastseq.ops.common.nvrtc import Kernel, compile_kernels, sources

SOURCE = '#include "backward.cuh"\n#include "forward.cuh"\n'
LANES = 32  # rows of a strip
FLAGS = {"forward": 1, "backward": 5}  # per strip
THREADS = {"forward": 192, "backward": 352}
# Where costs come from, as cells.cuh has it: bytes of ForwardShared and BackwardShared, for float
# and double.
SHARED = {
    "Embeddings": {"forward": (20996, 41992), "backward": (49820, 99616)},
    "Costs": {"forward": (25096, 25096), "backward": (53792, 82720)},
}

SoftDTWCall = SimpleNamespace


def soft_dtw_forward(call: SimpleNamespace, value: int, totals: int, sync: int) -> None:
    _launch("forward", call, value, totals, sync)


def soft_dtw_backward(
    call: SimpleNamespace, grad: int, dx: int, dy: int, dcost: int, flux: int, sync: int
) -> None:
    _launch("backward", call, grad, dx, dy, dcost, flux, sync)


def _launch(what: str, call: SimpleNamespace, *buffers: int) -> None:
    kernel = kernels(call.device, "Costs" if call.cost else "Embeddings", call.is_double)[what]
    args = _arguments(what, call.is_double)(_problem(call), *buffers)
    strips = -(-call.rows // LANES)
    words = 1 + call.batch * strips * FLAGS[what]
    if words >= 2**31:
        raise RuntimeError("soft_dtw: batch * frames is too large for one launch")
    if call.debug:
        for strip in range(strips):
            args.only_strip = strip
            kernel.launch(call.batch, args, call.stream)
        return
    args.only_strip = -1
    kernel.zero(args.sync, words, call.stream)
    kernel.launch(call.batch * strips, args, call.stream)


@functools.cache
def kernels(device: int, kind: str, is_double: bool) -> dict[str, Kernel]:
    """Both kernels, so that no backward waits for a compilation."""
    code, names = machine_code(torch.cuda.get_device_capability(device), kind, is_double)
    return {
        what: Kernel(code, name, device, THREADS[what], SHARED[kind][what][is_double])
        for what, name in names.items()
    }


@functools.cache
def machine_code(
    capability: tuple[int, int], kind: str, is_double: bool
) -> tuple[bytes, dict[str, str]]:
    wanted = [expression(what, kind, is_double) for what in THREADS]
    code, names = compile_kernels(SOURCE, sources("soft_dtw"), wanted, capability)
    return code, dict(zip(THREADS, names, strict=True))


def expression(what: str, kind: str, is_double: bool) -> str:
    """The C++ expression of one kernel."""
    scalar = "double" if is_double else "float"
    return f"fastseq::soft_dtw::{what}_kernel<fastseq::soft_dtw::{kind}<{scalar}>>"


def _problem(call: SimpleNamespace) -> ctypes.Structure:
    return _problem_type(call.is_double)(
        *(call.x, call.y, call.cost, call.lengths_x, call.lengths_y),
        *(call.batch, call.rows, call.columns, call.channels, call.band),
        1 / (math.log(2) * call.gamma),
        *(call.h, call.states),
    )


@functools.cache
def _problem_type(is_double: bool) -> type[ctypes.Structure]:
    """Problem of problem.cuh, of numbers of one dtype; of either kind."""
    return _structure(
        *_pointers("x", "y", "cost", "lengths_x", "lengths_y"),
        *((name, ctypes.c_int) for name in ("batch", "rows", "columns", "channels", "band")),
        ("scale", ctypes.c_double if is_double else ctypes.c_float),
        *_pointers("h", "states"),
    )


@functools.cache
def _arguments(what: str, is_double: bool) -> type[ctypes.Structure]:
    """Forward of forward.cuh, Backward of backward.cuh."""
    forward, backward = ("value", "totals"), ("grad", "dx", "dy", "dcost", "flux")
    return _structure(
        ("p", _problem_type(is_double)),
        *_pointers(*(forward if what == "forward" else backward), "sync"),
        ("only_strip", ctypes.c_int),
    )


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _structure(*fields: tuple[str, type]) -> type[ctypes.Structure]:
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})
