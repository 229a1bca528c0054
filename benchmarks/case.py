"""Cases (one shape, one precision, one device) and providers: the parts of every op's benchmark."""

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
        """Gradient of the loss. In fp16 it is the initial scale of GradScaler, which keeps
        gradients from underflowing.
        """
        return 65536.0 if self.precision == "fp16" else 1.0

    def __str__(self) -> str:
        return f"{self.n}x{self.t}x{self.d}-{self.precision}"


class Unavailable(Exception):
    """A provider cannot run this case on this machine; the message says why."""


class Provider(NamedTuple):
    """One way to compute an op.

    Attributes:
        build: takes a case and returns a function from the op's inputs to the scalar loss; raises
            Unavailable where it cannot run.
        bytes_needed: peak memory of a case in bytes; a case that does not fit is left out.
        tolerance: added to the tolerance of the case's precision.
        gradient_tolerance: added to that of the gradients only.
        cpu_pairs: cases with more pairs take too long on a CPU and are left out.
        graph: whether to try to capture it in a CUDA graph.
        own_process: whether it loads a second OpenMP runtime and therefore runs in its own process.
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
    """A module that benchmarks one op, ``benchmarks/<op>.py``. The keys of its dicts are cpu and
    cuda.

    Attributes:
        MODES: the modes that are timed, out of "forward", "backward" and "both".
        SHAPES: N, T, D of the cases.
        TIMED_PAIRS: cases with more `pairs` are measured for memory only.
        PRECISIONS: names of `PRECISIONS`.
        OURS: fastseq's provider, which the ratios are relative to.
        CALLED: the providers whose calls are short enough for pytest-benchmark to repeat.
    """

    __name__: str
    MODES: tuple[str, ...]
    SHAPES: dict[str, list[tuple[int, int, int]]]
    TIMED_PAIRS: dict[str, int]
    PRECISIONS: dict[str, list[str]]
    OURS: dict[str, str]
    CALLED: dict[str, list[str]]

    def inputs(self, case: Case, seed: int = 0) -> tuple[Tensor, ...]:
        """Arguments of the providers' functions. Those that require a gradient get one."""
        ...

    def expected(self, case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Loss and gradients in float64."""
        ...

    def providers(self, device: str) -> list[Provider]:
        """All providers, fastseq's own first."""
        ...

    def work(self, case: Case, mode: str) -> Work:
        """The least work that the op requires of a GPU, for the floor."""
        ...

    def least_flop(self, case: Case, mode: str) -> float:
        """Floating-point operations of the products that no method can avoid, for the floor on a
        CPU.
        """
        ...


def op_benchmark(op: str) -> OpBenchmark:
    return cast(OpBenchmark, importlib.import_module(f"benchmarks.{op}"))


def available_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as file:
        return next(int(x.split()[1]) for x in file if x.startswith("MemAvailable:")) * 1024


def build(provider: Provider, case: Case) -> Callable[..., Tensor]:
    """Return provider.build(case); raise Unavailable for a case that takes too much time or
    memory.
    """
    if case.device == "cpu" and case.pairs > provider.cpu_pairs:
        raise Unavailable(f"takes too long on a CPU at T = {case.t}")
    need, have = provider.bytes_needed(case), available_bytes(case.device)
    if need > 0.8 * have:
        raise Unavailable(f"needs about {need / 1e9:.0f} GB, {have / 1e9:.0f} GB are free")
    return provider.build(case)
