"""What every op's benchmark is made of: cases (one shape, one precision, one device), providers."""

import importlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from benchmarks.floors import Work

# Precision of a case: dtype of the inputs, and torch's float32 matmul precision.
PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}


class Case(NamedTuple):
    n: int
    t: int
    d: int
    precision: str = "fp32"
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    @property
    def pairs(self) -> int:
        return self.n * self.t * self.t

    @property
    def upstream(self) -> float:
        """Gradient of the loss; in fp16 what a GradScaler starts from, for the same reason."""
        return 65536.0 if self.precision == "fp16" else 1.0

    def __str__(self) -> str:
        return f"{self.n}x{self.t}x{self.d}-{self.precision}"


class Unavailable(Exception):
    """A provider cannot serve this case here; the message says why."""


class Provider(NamedTuple):
    """One way to compute an op.

    build(case) returns a function of the op's inputs that gives the scalar loss, or raises
    Unavailable. bytes_needed(case): its peak, for leaving out what does not fit. tolerance is
    added to that of the case's precision, gradient_tolerance to that of the gradients alone.
    graph: CUDA graphs may be tried on it. own_process: it brings an OpenMP runtime besides
    PyTorch's.
    """

    name: str
    build: Callable[[Case], Callable[..., Tensor]]
    bytes_needed: Callable[[Case], int] = lambda case: 0
    tolerance: float = 0.0
    gradient_tolerance: float = 0.0
    cpu_pairs: int = 1 << 40
    graph: bool = True
    own_process: bool = False


class OpBenchmark(Protocol):
    """A module that benchmarks one op, ``benchmarks/<op>.py``. Dicts have the keys cpu and cuda.

    Attributes:
        MODES: what is timed, of "forward", "backward" and "both".
        SHAPES: N, T, D of the cases.
        TIMED_PAIRS: cases with more `pairs` are there for their memory.
        PRECISIONS: names of `PRECISIONS`.
        OURS: the provider that the ratios are relative to.
        CALLED: the providers whose calls are short enough to be repeated one by one.
    """

    __name__: str
    MODES: tuple[str, ...]
    SHAPES: dict[str, list[tuple[int, int, int]]]
    TIMED_PAIRS: dict[str, int]
    PRECISIONS: dict[str, list[str]]
    OURS: dict[str, str]
    CALLED: dict[str, list[str]]

    def inputs(self, case: Case, seed: int = 0) -> tuple[Tensor, ...]:
        """What the providers' functions take; gradients are those of all that require one."""
        ...

    def expected(self, case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Loss and gradients in float64."""
        ...

    def providers(self, device: str) -> list[Provider]:
        """Ours first."""
        ...

    def work(self, case: Case, mode: str) -> Work:
        """What the op costs a GPU at least, for the floor."""
        ...

    def least_flop(self, case: Case, mode: str) -> float:
        """Of the products that no method can avoid, for the floor on a CPU."""
        ...


def op_benchmark(op: str) -> OpBenchmark:
    return cast(OpBenchmark, importlib.import_module(f"benchmarks.{op}"))


def available_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as file:
        return next(int(x.split()[1]) for x in file if x.startswith("MemAvailable:")) * 1024


def build(provider: Provider, case: Case) -> Callable[..., Tensor]:
    """provider.build(case), after a look at what the case would take."""
    if case.device == "cpu" and case.pairs > provider.cpu_pairs:
        raise Unavailable(f"takes too long on a CPU at T = {case.t}")
    need, have = provider.bytes_needed(case), available_bytes(case.device)
    if need > 0.8 * have:
        raise Unavailable(f"needs about {need / 1e9:.0f} GB, {have / 1e9:.0f} GB are free")
    return provider.build(case)
