"""Peak memory of an op, as PyTorch's CPU allocator reports it."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from fastseq.ops.common import short

Loss = Callable[[], torch.Tensor]
T = 1024


def assert_linear(prepare: Callable[[int, str], Loss], frames: int = T) -> None:
    """Backend "torch" needs twice as much for twice the frames, and less than one float32 matrix.

    ``prepare(t, backend)`` makes inputs of t frames and returns a function that computes their
    loss.
    """
    assert max(peaks(prepare(2 * T, "torch"))) < 4 * (2 * T) ** 2
    # An additional matrix of one byte per pair would make the ratio at least 2.26.
    assert max(growth(lambda n: prepare(n, "torch"), frames)) < 2.2
    # The measurement does detect matrices.
    assert min(growth(lambda n: prepare(n, "reference"), T // 4)) > 3.5


def assert_kept(prepare: Callable[[int, str], Loss], matrices: int, monkeypatch) -> None:
    """A short call needs at most ``matrices`` float32 matrices more than a long one would, and
    keeps one of them for the backward. A long one keeps none.
    """
    matrix, limit = 4 * T**2, short.KEPT_BYTES
    assert matrix < limit
    assert kept(prepare(T, "torch")) > matrix
    most = max(peaks(prepare(T, "torch")))
    monkeypatch.setattr(short, "KEPT_BYTES", matrix - 1)
    without = max(peaks(prepare(T, "torch")))
    assert without + matrix // 2 < most < without + matrices * matrix
    assert kept(prepare(T, "torch")) < matrix // 2


def kept(loss: Loss) -> int:
    """Bytes that a loss keeps for its backward, including the inputs."""
    found = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss()
    return sum(found.values())


def growth(prepare: Callable[[int], Loss], size: int) -> list[float]:
    """Peak at ``2 * size`` divided by the peak at ``size``: of a loss, and of its backward."""
    small, large = peaks(prepare(size)), peaks(prepare(2 * size))
    return [b / a for a, b in zip(small, large, strict=True)]


def peaks(loss: Loss) -> tuple[int, int]:
    """Peak of the loss, and of its backward."""
    kept = []
    return peak(lambda: kept.append(loss())), peak(lambda: kept[0].backward())


def peak(call: Callable[[], object]) -> int:
    """The largest number of bytes held at once, beyond those held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda one: one[0]):  # stable sort: in the order recorded
        held += change
        most = max(most, held)
    return most
