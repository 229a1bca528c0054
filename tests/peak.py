"""Peak memory of an op, as PyTorch's allocator on the CPU reports it."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

Loss = Callable[[], torch.Tensor]
T = 1024


def assert_linear(prepare: Callable[[int, str], Loss]) -> None:
    """Backend "torch" takes at 2 T twice what it takes at T, and less than one float32 matrix.

    ``prepare`` makes inputs of so many frames and returns what computes their loss by a backend.
    """
    assert max(peaks(prepare(2 * T, "torch"))) < 4 * (2 * T) ** 2
    # Beside what there is, a matrix of one byte a pair would make it 2.26 at least.
    assert max(growth(lambda n: prepare(n, "torch"), T)) < 2.2
    # The measurement sees matrices.
    assert min(growth(lambda n: prepare(n, "reference"), T // 4)) > 3.5


def growth(prepare: Callable[[int], Loss], size: int) -> list[float]:
    """Peak at ``2 * size`` by the peak at ``size``: of a loss, and of its backward."""
    small, large = peaks(prepare(size)), peaks(prepare(2 * size))
    return [b / a for a, b in zip(small, large, strict=True)]


def peaks(loss: Loss) -> tuple[int, int]:
    """Of the loss, and of its backward."""
    kept = []
    return peak(lambda: kept.append(loss())), peak(lambda: kept[0].backward())


def peak(call: Callable[[], object]) -> int:
    """The most bytes held at once, beyond those held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda one: one[0]):  # stable: as they were recorded
        held += change
        most = max(most, held)
    return most
