"""A simulated GPU: Triton compiles for it, and every launch is recorded instead of run.

Inside ``pretend(90)`` the ops run with ``backend="triton"`` on CPU tensors. The checks, autograd,
Triton's argument binder and its compiler are the real ones. The outputs that the kernels would
write keep the content of newly allocated memory. soft_dtw runs with ``backend="cuda"`` up to its
extension; nothing is compiled or recorded for it. Not available under TRITON_INTERPRET=1, which
replaces Triton's compiler.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common import dispatch, launch
from fastseq.ops.soft_dtw import cuda as soft_dtw_cuda
from fastseq.ops.soft_dtw import op as soft_dtw

OPS = ("scl", "contrastive_idm", "tcc", "queue_nce")
DEVICE = -1  # returned by get_device() of CPU tensors


class Binary(NamedTuple):
    """What the driver would load."""

    name: str
    cubin: bytes
    shared: int


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    binary: Binary
    types: dict[str, str]  # type of each argument in Triton's spelling, including "constexpr"
    constants: dict[str, Any]  # by name, including absent tensors (None)
    metadata: Any  # of the compilation: num_warps, num_stages, maxnreg, target, ...


class _Launcher:
    """Triton creates one for each compiled kernel; it is called in place of the C launcher."""

    def __init__(self, source, metadata) -> None:
        names = source.fn.arg_names
        self.name, self.types, self.metadata = source.fn.__name__, source.signature, metadata
        self.constants = {names[path[0]]: value for path, value in source.constants.items()}

    def __call__(self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *args):
        if _noted is not None:
            grid = (x, y, z)
            _noted.append(
                Launch(self.name, grid, function, self.types, self.constants, self.metadata)
            )


class _Utils:
    def __init__(self, arch: int) -> None:
        # Kernels for sm_80 are launched with this limit too, so that they also run on sm_86 and
        # sm_89.
        self.shared = 101_376 if arch < 90 else 232_448

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int):
        return self, Binary(name, cubin, shared), 0, 0, 1024  # registers, spills, most threads


class _Extension:
    """Replaces fastseq._C and torch's current stream."""

    cuda_stream = 0
    SoftDTWCall = SimpleNamespace

    @staticmethod
    def soft_dtw_forward(*args) -> None: ...

    @staticmethod
    def soft_dtw_backward(*args) -> None: ...


class _Driver:
    launcher_cls = _Launcher

    def __init__(self, arch: int) -> None:
        self.arch, self.utils = arch, _Utils(arch)

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0


def _ticket(like: Tensor) -> Tensor:
    """The stream's ticket, which is kept between calls as on a GPU."""
    return _tickets[like.get_device(), 0]


_tickets = {(DEVICE, 0): torch.zeros(1, dtype=torch.int32)}
_noted: list[Launch] | None = None
_arch: int | None = None  # of this process, since Triton keys what it has compiled by device alone


@contextlib.contextmanager
def pretend(arch: int = 90, *, note: bool = True) -> Iterator[list[Launch]]:
    """Simulate a GPU of compute capability ``arch`` (90 for 9.0). Yields the list of launches,
    which grows as ops are called unless ``note`` is False. One capability per process.
    """
    global _arch, _noted
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise RuntimeError("pretend() needs Triton's compiler: unset TRITON_INTERPRET")
    if _arch not in (None, arch):
        raise RuntimeError(f"this process has compiled for sm_{_arch}: start one for sm_{arch}")
    _arch = arch
    for op in OPS:
        importlib.import_module(f"fastseq.ops.{op}.triton")
    from triton.runtime import driver

    launches: list[Launch] = []
    outer, _noted = _noted, launches if note else None
    before = driver._active
    driver.set_active(_Driver(arch))
    with (
        _replaced(launch, "architecture", lambda device: arch),
        _replaced(launch, "ticket", _ticket),
        _replaced(dispatch, "_why_not_triton", lambda device_type, dtype: None),
        _replaced(soft_dtw, "_elsewhere", lambda name, device_type: None),
        _replaced(soft_dtw, "unavailable", lambda name: None),
        _replaced(soft_dtw_cuda, "_build", lambda: _Extension),
        _replaced(soft_dtw_cuda.torch.cuda, "current_stream", lambda device: _Extension),
    ):
        try:
            yield launches
        finally:
            _noted = outer
            driver._active = before


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
