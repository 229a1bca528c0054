"""The CUDA arithmetic of Soft-DTW compiled for the host: forward and backward as a backend has."""

import ctypes
import functools
import subprocess
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
LANES = 32


def compile_library(compiler: str, folder: Path) -> Path:
    library = folder / "soft_dtw_host.so"
    source = ROOT / "tests/ops/soft_dtw_host.cpp"
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += [f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


class HostBackend:
    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    @functools.cache  # noqa: B019
    def _function(self, what: str, dtype: torch.dtype):
        function = self.library[f"{what}_{'f32' if dtype == torch.float32 else 'f64'}"]
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

    def forward(self, x, y, cost, lengths_x, lengths_y, opts, keep):
        given, call = self._call(x, y, cost, lengths_x, lengths_y, opts)
        batch, rows, columns = call[5:8]
        strips, blocks = -(-rows // LANES), -(-columns // LANES)
        h = given.new_empty(batch, strips, blocks * LANES)
        states = given.new_empty(batch, strips, blocks + 1, 2, LANES) if keep else None
        value = given.new_empty(batch)
        call += map(_pointer, (h, states, value))
        self._function("forward", given.dtype)(*call)
        return value, (h, states) if keep else ()

    def backward(
        self, grad, x, y, cost, lengths_x, lengths_y, saved, opts, need_x=True, need_y=True
    ):
        given, call = self._call(x, y, cost, lengths_x, lengths_y, opts)
        grads = tuple(None if t is None else torch.zeros_like(t) for t in (x, y, cost))
        call += map(_pointer, (*saved, grad, *grads))
        self._function("backward", given.dtype)(*call)
        return grads


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()
