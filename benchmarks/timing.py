"""Times of several providers in seconds, taken in turns so that noise affects all of them
equally.
"""

import math
import time
from collections.abc import Callable
from functools import lru_cache
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Sample = dict[str, float]  # mode -> seconds
GRAPH_BELOW_S = 2e-3  # longer calls keep the GPU busy without a graph


def interleave(
    calls: dict[str, Callable[[], Sample]],
    budget_s: float,
    companions: tuple[str, ...] = (),
    min_rounds: int = 5,
) -> dict[str, list[Sample]]:
    """Rounds with one sample of each provider; sample k of each list belongs to round k.

    A provider is dropped when its share of the budget is spent and min_rounds are done, or as soon
    as it alone has spent half the budget. Companions, with which the others are compared, are in
    every round and use none of the budget. The order rotates, so that no provider always runs after
    the same one.
    """
    samples = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    # Without others, a companion is treated like any other provider.
    active = [name for name in calls if name not in companions] or list(calls)
    share = budget_s / len(active)
    k = 0
    while active:
        order = [name for name in calls if name in active or name in companions]
        for name in order[k % len(order) :] + order[: k % len(order)]:
            start = time.perf_counter()
            samples[name].append(calls[name]())
            spent[name] += time.perf_counter() - start
        k += 1
        active = [
            name
            for name in active
            if spent[name] < budget_s / 2 and (k < min_rounds or spent[name] < share)
        ]
    return samples


def gradients(loss: Tensor, args: tuple[Tensor, ...], upstream: float) -> tuple[Tensor, ...]:
    wanted = [x for x in args if x.requires_grad]
    return torch.autograd.grad(loss, wanted, _upstream(upstream, loss.dtype, loss.device))


@lru_cache
def _upstream(value: float, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Created once: filling it in each call would launch a kernel. None on a CPU, where filling is
    cheap, while passing a tensor makes PyTorch import sympy to check it (a second per process).
    """
    if device.type == "cpu" and value == 1:
        return None
    return torch.tensor(value, dtype=dtype, device=device)


class CPUCall:
    def __init__(self, fn, args: tuple[Tensor, ...], upstream: float):
        self.fn, self.args, self.upstream = fn, args, upstream

    def __call__(self) -> Sample:
        start = time.perf_counter()
        loss = self.fn(*self.args)
        middle = time.perf_counter()
        gradients(loss, self.args, self.upstream)
        stop = time.perf_counter()
        return {"forward": middle - start, "backward": stop - middle, "both": stop - start}


def elapsed(run: Callable[[], object]) -> float:
    """Seconds of GPU time."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def captured(run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """run() captured as a CUDA graph, warmed up on a side stream, and the result that replays
    write.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def rotation(bytes_per_call: int, cache_bytes: int, limit: int) -> int:
    """The number of input sets that together exceed three times the cache."""
    return max(1, min(limit, math.ceil(3 * cache_bytes / max(bytes_per_call, 1))))


class GPUCall:
    """GPU time of forward, and of forward and backward; backward is the difference.

    Short calls are captured into CUDA graphs, one call per input set, to exclude the gaps between
    launches. Long calls, and calls that cannot be captured, are timed with events.
    """

    def __init__(self, fn, sets: list[tuple[Tensor, ...]], upstream: float, graph: bool):
        self.fn, self.sets, self.upstream = fn, sets, upstream
        self.timer = "events"
        self.run = {"forward": self._forward, "both": self._both}
        self._both()
        # Long calls evict the cache by themselves and need few sets.
        if self._events("both") > GRAPH_BELOW_S:
            del self.sets[2:]
        elif graph:
            self._capture()

    def _forward(self) -> None:
        for args in self.sets:
            self.fn(*args)

    def _both(self) -> None:
        for args in self.sets:
            gradients(self.fn(*args), args, self.upstream)

    def _capture(self) -> None:
        try:
            graphs = {mode: captured(run)[0] for mode, run in self.run.items()}
        except RuntimeError:
            torch.cuda.synchronize()
            return
        self.timer = "graph"
        self.run = {mode: graph.replay for mode, graph in graphs.items()}

    def _events(self, mode: str) -> float:
        torch.cuda.synchronize()
        return elapsed(self.run[mode]) / len(self.sets)

    def __call__(self) -> Sample:
        forward, both = self._events("forward"), self._events("both")
        return {"forward": forward, "backward": both - forward, "both": both}

    def wall(self, seconds: float = 0.05) -> float:
        """Seconds per forward and backward in a training loop, with launches and Python. The host
        runs ahead of the GPU.
        """

        def several(count: int) -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            for k in range(count):
                args = self.sets[k % len(self.sets)]
                gradients(self.fn(*args), args, self.upstream)
            torch.cuda.synchronize()
            return (time.perf_counter() - start) / count

        count = max(3, int(seconds / several(3)))
        return median(several(count) for _ in range(5))


def quartile_range(values: list[float]) -> float:
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return at(0.75) - at(0.25)


def paired_ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over the rounds that both were in: a slow moment of the machine affects both and
    cancels.
    """
    return median(a / b for a, b in zip(theirs, ours, strict=False))
