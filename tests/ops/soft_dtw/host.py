"""The CUDA code of Soft-DTW compiled for the host, with the functions of a backend.

HostBackend runs only the arithmetic, tile after tile. FiberBackend runs the kernels themselves,
with a fiber for each thread (cuda_fibers.h), in an order drawn from ``seed``.
"""

import ctypes
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from fastseq.ops.soft_dtw import runtime

ROOT = Path(__file__).resolve().parents[3]
LANES = runtime.LANES


def compile_library(compiler: str, folder: Path, name: str, softmin: str = "logsumexp") -> Path:
    """<name>.cpp of this folder as a shared library, of one soft minimum."""
    library = folder / f"{name}_{softmin}.so"
    source = Path(__file__).with_name(f"{name}.cpp")
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += ["-U_FORTIFY_SOURCE"]  # its checks reject a jump to another stack
    command += [f"-DFASTSEQ_SOFTMIN={runtime.SOFTMINS[softmin]}"]
    command += [f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def suffix(given: bool, dtype: torch.dtype) -> str:
    """The suffix of a C++ function's name: the source of the costs, and the type of numbers."""
    return f"{'Costs' if given else 'Embeddings'}_{'f32' if dtype == torch.float32 else 'f64'}"


class _Backend:
    """A backend whose launches are made by a test."""

    def forward(self, x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts, needs):
        call = Call((x, y, cost, bias, lengths_x, lengths_y, gammas, bands), opts)
        h, states = call.new_h(), call.new_states() if any(needs) else None
        value = call.given.new_empty(call.batch)
        self.run_forward(call, h, states, value)
        return (value, h, states) if any(needs) else (value,)

    def backward(
        self,
        grad,
        x,
        y,
        cost,
        bias,
        lengths_x,
        lengths_y,
        gammas,
        bands,
        h,
        states,
        opts,
        needs=(True, True, True, True),
    ):
        call = Call((x, y, cost, bias, lengths_x, lengths_y, gammas, bands), opts)
        wanted = zip((x, y, cost, bias), needs, strict=True)
        grads = tuple(torch.empty_like(t) if t is not None and w else None for t, w in wanted)
        self.run_backward(call, h, states, grad, grads)
        return grads


class HostBackend(_Backend):
    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def run_forward(self, call, h, states, value):
        function = self.library[f"forward_{call.suffix}"]
        function(ctypes.byref(call.problem(h, states)), ctypes.c_void_p(_pointer(value)))

    def run_backward(self, call, h, states, grad, grads):
        for t in grads:
            if t is not None:
                t.zero_()  # the values outside of all blocks
        function = self.library[f"backward_{call.suffix}"]
        tensors = [ctypes.c_void_p(_pointer(t)) for t in (grad, *grads)]
        function(ctypes.byref(call.problem(h, states)), *tensors)


class FiberBackend(_Backend):
    """``resident``: the number of thread blocks that run at a time. ``by_strip``: one launch per
    strip.
    """

    def __init__(self, library: Path, resident: int = 4, seed: int = 0, by_strip: bool = False):
        self.library = ctypes.CDLL(str(library))
        self.schedule = Schedule(resident, seed, by_strip)

    def run_forward(self, call, h, states, value):
        totals = filled(call.batch, call.strips, dtype=torch.float64)
        self._run("forward", call, filled_like(h), states, value, totals, filled(1))

    def run_backward(self, call, h, states, grad, grads):
        flux = filled(*h.shape, dtype=call.given.dtype)
        done = filled(call.batch, call.strips)
        self._run("backward", call, h, states, grad, *grads, flux, done, filled(1))

    def _run(self, what, call, h, states, *buffers):
        function = self.library[f"{what}_{call.suffix}"]
        function.argtypes = [ctypes.c_void_p, Schedule, *[ctypes.c_void_p] * len(buffers)]
        problem = call.problem(h, states)
        if function(ctypes.byref(problem), self.schedule, *map(_pointer, buffers)):
            raise RuntimeError("the thread blocks wait for each other for ever")


def filled(*shape, dtype=torch.int32):
    """A buffer as a launch leaves it: all bits set."""
    return filled_like(torch.empty(shape, dtype=dtype))


def filled_like(t):
    t.view(torch.uint8 if t.dim() else t.dtype).fill_(0xFF)
    return t


class Call:
    """One call of the kernels."""

    def __init__(self, tensors, opts):
        self.tensors = tensors
        x, y, cost, *_ = tensors
        assert all(t is None or t.is_contiguous() for t in self.tensors)
        self.given = given = x if cost is None else cost
        self.batch, self.rows = given.shape[:2]
        self.columns = cost.shape[2] if x is None else y.shape[1]
        self.channels = 0 if x is None else x.shape[2]
        self.opts, self.strips = opts, -(-(self.rows + opts.end_free) // LANES)
        self.blocks = -(-self.columns // LANES)
        self.suffix = suffix(cost is not None, given.dtype)
        self.state = given.dtype if cost is None else torch.float64

    def new_h(self):
        return torch.empty(self.batch, self.strips, self.blocks * LANES, dtype=self.state)

    def new_states(self):
        return torch.empty(self.batch, self.strips, self.blocks + 1, 2, LANES, dtype=self.state)

    def problem(self, h, states):
        opts = self.opts
        band = -1 if opts.bandwidth is None else opts.bandwidth
        sizes = self.batch, self.rows, self.columns, self.channels, band
        ends = opts.begin_free, opts.end_free, 0
        return runtime.Problem(
            *map(_pointer, self.tensors),
            *sizes,
            *ends,
            opts.gamma,
            opts.warp_penalty,
            *map(_pointer, (h, states)),
        )


class Schedule(ctypes.Structure):
    _fields_ = (("resident", ctypes.c_uint), ("seed", ctypes.c_uint), ("by_strip", ctypes.c_int))


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()
