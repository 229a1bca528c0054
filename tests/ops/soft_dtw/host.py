"""The CUDA code of Soft-DTW compiled for the host, with the functions that a backend has.

HostBackend: the arithmetic alone, tile after tile. FiberBackend: the kernels themselves, every
thread a fiber (cuda_fibers.h), in an order drawn from ``seed``.
"""

import ctypes
import functools
import math
import subprocess
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
LANES = 32


def compile_library(compiler: str, folder: Path, name: str) -> Path:
    """<name>.cpp of this folder as a shared library."""
    library = folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.cpp")
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += ["-U_FORTIFY_SOURCE"]  # which takes a jump to another stack for a mistake
    command += [f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def suffix(given: bool, dtype: torch.dtype) -> str:
    """The end of a C++ function's name: where costs come from, and the type of numbers."""
    return f"{'Costs' if given else 'Embeddings'}_{'f32' if dtype == torch.float32 else 'f64'}"


class HostBackend:
    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    @functools.cache  # noqa: B019
    def _function(self, what: str, given: bool, dtype: torch.dtype):
        function = self.library[f"{what}_{suffix(given, dtype)}"]
        pointers = [ctypes.c_void_p] * (3 if what == "forward" else 6)
        function.argtypes = (
            [ctypes.c_void_p] * 5 + [ctypes.c_int] * 5 + [ctypes.c_double, *pointers]
        )
        function.restype = None
        return function

    @staticmethod
    def _call(x, y, cost, lengths_x, lengths_y, opts):
        given = x if cost is None else cost
        batch, rows = given.shape[:2]
        columns = cost.shape[2] if x is None else y.shape[1]
        channels = 0 if x is None else x.shape[2]
        tensors = (x, y, cost, lengths_x, lengths_y)
        assert all(t is None or t.is_contiguous() for t in tensors)
        band = -1 if opts.bandwidth is None else opts.bandwidth
        return given, [*map(_pointer, tensors), batch, rows, columns, channels, band, opts.gamma]

    def forward(self, x, y, cost, lengths_x, lengths_y, opts, needs):
        given, call = self._call(x, y, cost, lengths_x, lengths_y, opts)
        batch, rows, columns = call[5:8]
        strips, blocks = -(-rows // LANES), -(-columns // LANES)
        state = given.dtype if cost is None else torch.float64
        h = given.new_empty(batch, strips, blocks * LANES, dtype=state)
        states = h.new_empty(batch, strips, blocks + 1, 2, LANES) if any(needs) else None
        value = given.new_empty(batch)
        call += map(_pointer, (h, states, value))
        self._function("forward", cost is not None, given.dtype)(*call)
        return (value, h, states) if any(needs) else (value,)

    def backward(
        self, grad, x, y, cost, lengths_x, lengths_y, *saved, opts, needs=(True, True, True)
    ):
        given, call = self._call(x, y, cost, lengths_x, lengths_y, opts)
        grads = tuple(None if t is None else torch.zeros_like(t) for t in (x, y, cost))
        call += map(_pointer, (*saved, grad, *grads))
        self._function("backward", cost is not None, given.dtype)(*call)
        return grads


class FiberBackend:
    """``resident``: thread blocks that run at a time. ``debug``: one launch per strip, no flags."""

    def __init__(self, library: Path, resident: int = 4, seed: int = 0, debug: bool = False):
        self.library = ctypes.CDLL(str(library))
        self.schedule = _Schedule(resident, seed, debug)

    def forward(self, x, y, cost, lengths_x, lengths_y, opts, needs):
        given, call = HostBackend._call(x, y, cost, lengths_x, lengths_y, opts)
        batch, rows, columns = call[5:8]
        strips, blocks = -(-rows // LANES), -(-columns // LANES)
        state = given.dtype if cost is None else torch.float64
        saved = given.new_empty(batch, strips, blocks * LANES, dtype=state), None
        if any(needs):
            saved = saved[0], saved[0].new_empty(batch, strips, blocks + 1, 2, LANES)
        value = given.new_empty(batch)
        totals = torch.empty(batch, strips, dtype=torch.float64)
        sync = torch.full((1 + batch * strips,), -1, dtype=torch.int32)
        self._run("forward", given.dtype, call, saved, value, totals, sync)
        return (value, *saved) if any(needs) else (value,)

    def backward(
        self, grad, x, y, cost, lengths_x, lengths_y, *saved, opts, needs=(True, True, True)
    ):
        given, call = HostBackend._call(x, y, cost, lengths_x, lengths_y, opts)
        wanted = zip((x, y, cost), needs, strict=True)
        grads = tuple(torch.empty_like(t) if t is not None and w else None for t, w in wanted)
        flux = torch.empty_like(saved[0], dtype=given.dtype)
        sync = torch.full((1 + 5 * saved[0].shape[0] * saved[0].shape[1],), -1, dtype=torch.int32)
        self._run("backward", given.dtype, call, saved, grad, *grads, flux, sync)
        return grads

    def _run(self, what, dtype, call, saved, *buffers):
        single = dtype == torch.float32
        scale = 1 / (math.log(2) * call[-1])
        problem = (_Problem32 if single else _Problem64)(*call[:-1], scale, *map(_pointer, saved))
        function = self.library[f"{what}_{suffix(bool(call[2]), dtype)}"]
        function.argtypes = [ctypes.c_void_p, _Schedule, *[ctypes.c_void_p] * len(buffers)]
        if function(ctypes.byref(problem), self.schedule, *map(_pointer, buffers)):
            raise RuntimeError("the thread blocks wait for each other for ever")


class _Schedule(ctypes.Structure):
    _fields_ = (("resident", ctypes.c_uint), ("seed", ctypes.c_uint), ("debug", ctypes.c_int))


def _problem(scalar):
    """Problem of csrc/soft_dtw/problem.cuh, of either kind."""
    pointers = [(name, ctypes.c_void_p) for name in ("x", "y", "cost", "lengths_x", "lengths_y")]
    sizes = [(name, ctypes.c_int) for name in ("batch", "rows", "columns", "channels", "band")]
    saved = [("h", ctypes.c_void_p), ("states", ctypes.c_void_p)]
    fields = (*pointers, *sizes, ("scale", scalar), *saved)
    return type("Problem", (ctypes.Structure,), {"_fields_": fields})


_Problem32, _Problem64 = _problem(ctypes.c_float), _problem(ctypes.c_double)


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()
