"""Peak memory of an op, as PyTorch's allocator on the CPU reports it."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def growth(prepare: Callable[[int], Callable[[], torch.Tensor]], size: int) -> list[float]:
    """Peak at ``2 * size`` by the peak at ``size``: of a loss, and of its backward.

    ``prepare`` makes the inputs of a size and returns what computes the loss.
    """
    small, large = peaks(prepare(size)), peaks(prepare(2 * size))
    return [b / a for a, b in zip(small, large, strict=True)]


def peaks(loss: Callable[[], torch.Tensor]) -> tuple[int, int]:
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
