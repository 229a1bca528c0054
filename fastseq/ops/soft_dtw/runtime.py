"""Replaces fastseq._C in cuda.py: the same kernels, compiled at run time by NVRTC.

It does the work of csrc/soft_dtw/soft_dtw.cu in Python: arguments, shared memory, launches. The
first call of each kind, dtype and soft minimum compiles for some seconds. Only this module has the
soft minima "prob" and "sparse".
"""

import ctypes
import functools
from types import SimpleNamespace

import torch

from fastseq.ops.common.nvrtc import Kernel, compile_kernels, sources

SOURCE = '#include "backward.cuh"\n#include "forward.cuh"\n'
LANES = 32  # rows of a strip
# Entries for float and for double.
THREADS = {"forward": (160, 160), "backward": (384, 352)}
# By origin of the costs, as in cells.cuh: bytes of ForwardShared and BackwardShared, and the most
# bytes of the centre that follows those of embeddings.
SHARED = {
    "Embeddings": {"forward": (17968, 35888), "backward": (60464, 96304)},
    "Costs": {"forward": (24624, 24624), "backward": (71216, 85040)},
}
CENTRE = 8192, 4096
# Types of softmin.cuh.
SOFTMINS = {"logsumexp": "LogSumExp", "prob": "Prob", "sparse": "Sparse"}


class SoftDTWCall(SimpleNamespace):
    softmin = "logsumexp"


def soft_dtw_forward(call: SoftDTWCall, value: int, totals: int, tickets: int) -> None:
    _launch("forward", call, value, totals, tickets)


def soft_dtw_backward(
    call: SoftDTWCall,
    grad: int,
    dx: int,
    dy: int,
    dcost: int,
    dbias: int,
    flux: int,
    done: int,
    tickets: int,
) -> None:
    _launch("backward", call, grad, dx, dy, dcost, dbias, flux, done, tickets)


def _launch(what: str, call: SoftDTWCall, *buffers: int) -> None:
    kind = "Costs" if call.cost else "Embeddings"
    kernel = kernels(call.device, kind, call.is_double, call.softmin)[what]
    args = ARGUMENTS[what](_problem(call), *buffers)
    strips = -(-(call.rows + call.end_free) // LANES)
    if call.batch * strips >= 2**31:
        raise RuntimeError("soft_dtw: batch * frames is too large for one launch")
    shared = SHARED[kind][what][call.is_double]
    if kind == "Embeddings":
        shared += min(call.channels * (8 if call.is_double else 4), CENTRE[call.is_double])
    kernel.fill(call.polled, call.polled_bytes, call.stream)
    if call.by_strip:
        for strip in range(strips):
            args.only_strip = strip
            kernel.launch(call.batch, shared, args, call.stream)
        return
    args.only_strip = -1
    kernel.launch(call.batch * strips, shared, args, call.stream)


@functools.cache
def kernels(device: int, kind: str, is_double: bool, softmin: str) -> dict[str, Kernel]:
    """Both kernels, so that no backward waits for a compilation."""
    code, names = machine_code(torch.cuda.get_device_capability(device), kind, is_double, softmin)
    centre = CENTRE[is_double] if kind == "Embeddings" else 0
    return {
        what: Kernel(
            code, name, device, THREADS[what][is_double], SHARED[kind][what][is_double] + centre
        )
        for what, name in names.items()
    }


@functools.cache
def machine_code(
    capability: tuple[int, int], kind: str, is_double: bool, softmin: str = "logsumexp"
) -> tuple[bytes, dict[str, str]]:
    wanted = [expression(what, kind, is_double, softmin) for what in THREADS]
    code, names = compile_kernels(SOURCE, sources("soft_dtw"), wanted, capability)
    return code, dict(zip(THREADS, names, strict=True))


def expression(what: str, kind: str, is_double: bool, softmin: str = "logsumexp") -> str:
    """The C++ expression of one kernel."""
    space, scalar = "fastseq::soft_dtw", "double" if is_double else "float"
    return f"{space}::{what}_kernel<{space}::{kind}<{scalar}, {space}::{SOFTMINS[softmin]}>>"


def _problem(call: SoftDTWCall) -> "Problem":
    return Problem(
        *(call.x, call.y, call.cost, call.bias),
        *(call.lengths_x, call.lengths_y, call.gammas, call.bands),
        *(call.batch, call.rows, call.columns, call.channels, call.band),
        *(call.begin_free, call.end_free, call.patience),
        *(call.gamma, call.penalty),
        *(call.h, call.states),
    )


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Problem(ctypes.Structure):
    """Problem of problem.cuh, of either kind and any dtype."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "x y cost bias lengths_x lengths_y gammas bands"),
        *_fields(ctypes.c_int, "batch rows columns channels band begin_free end_free patience"),
        *_fields(ctypes.c_double, "gamma penalty"),
        *_fields(ctypes.c_void_p, "h states"),
    )


def _arguments(buffers: str) -> type[ctypes.Structure]:
    fields = (
        ("p", Problem),
        *_fields(ctypes.c_void_p, buffers),
        ("only_strip", ctypes.c_int),
    )
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


# Forward of forward.cuh, Backward of backward.cuh.
ARGUMENTS = {
    "forward": _arguments("value totals tickets"),
    "backward": _arguments("grad dx dy dcost dbias flux done tickets"),
}
