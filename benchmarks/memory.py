"""Peak memory of one forward and backward above the inputs and gradients, in MB."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.case import Case, build, op_benchmark
from benchmarks.timing import gradients

ROOT = Path(__file__).parents[1]


def cuda_peak_mb(fn: Callable[..., Tensor], args: tuple[Tensor, ...], upstream: float) -> float:
    """Peak of the caching allocator during the call, above its level before the call."""
    gradients(fn(*args), args, upstream)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients(fn(*args), args, upstream)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - gradient_bytes(args)) / 1e6


def cpu_peak_mb(op: str, case: Case, provider: str) -> float:
    """Measured in a fresh child process, the only way to get the memory of this provider alone."""
    # Return freed blocks to the system at once. If kept for reuse, they would already count in the
    # RSS before the call.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.memory", op, provider, *map(str, case)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise RuntimeError(f"memory of {provider} at {case}: {last}")
    return float(child.stdout.split()[-1])


def _measure(op: str, case: Case, provider: str) -> float:
    module = op_benchmark(op)
    found = next(p for p in module.providers(case.device) if p.name == provider)
    fn, args = build(found, case), module.inputs(case)
    gradients(fn(*args), args, case.upstream)
    before = status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the recorded peak
    gradients(fn(*args), args, case.upstream)
    peak = (status_kib("VmHWM") - before) * 1024
    return max(0.0, (peak - gradient_bytes(args)) / 1e6)


def gradient_bytes(args: tuple[Tensor, ...]) -> int:
    return sum(x.numel() * x.element_size() for x in args if x.requires_grad)


def status_kib(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(x.split()[1]) for x in file if x.startswith(name + ":"))


def main(argv: list[str]) -> None:
    op, provider, n, t, d, precision, device = argv
    case = Case(int(n), int(t), int(d), precision, device)
    with contextlib.redirect_stdout(sys.stderr):  # KeOps prints a greeting on stdout
        peak = _measure(op, case, provider)
    print(peak)


if __name__ == "__main__":
    main(sys.argv[1:])
