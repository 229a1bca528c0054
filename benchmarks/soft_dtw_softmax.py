"""soft_dtw(cost="softmax"), forward and backward, beside soft_dtw of squared distances and the form
of AE2's released code: time and peak memory.

``python -m benchmarks.soft_dtw_softmax``. Each provider's result is compared with float64 first.
Times are the shortest of several calls, the providers in turns of a tenth of a second or more.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import fastseq
from benchmarks import soft_dtw_peers as peers
from benchmarks.case import Case, Provider, Unavailable, build
from benchmarks.gate import gate
from benchmarks.memory import cpu_peak_mb
from benchmarks.soft_dtw import LOST_DIGITS, inputs
from benchmarks.soft_dtw_peers import GAMMA
from benchmarks.timing import gradients

SHAPES = [(1, 32, 128), (1, 64, 128), (4, 480, 128), (1, 2048, 128)]
TURNS, LEAST_SECONDS = 3, 0.1
OURS, PLAIN = "fastseq", "fastseq, sqeuclidean"
# Tables of (T + 1) x (T + 1) that autograd keeps, one for each cell.
LOOP_CELLS = 64**2


def soft_dtw(x: Tensor, y: Tensor, cost: str) -> Tensor:
    return fastseq.soft_dtw(x, y, gamma=GAMMA, cost=cost, temperature=GAMMA, reduction="sum")


def given_costs(x: Tensor, y: Tensor) -> Tensor:
    cost = peers.softmax_costs(x, y)
    return fastseq.soft_dtw_from_cost(cost, gamma=GAMMA, reduction="sum")


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Value and gradients in float64 through dense costs."""
    x, y = (z.detach().double().requires_grad_() for z in args)
    value = given_costs(x, y)
    return (value.detach(), *torch.autograd.grad(value, (x, y)))


def providers(device: str) -> list[Provider]:
    """All providers, the first one being measured. The others have the same value, but PLAIN."""
    apart = {"gradient_tolerance": LOST_DIGITS}
    return [
        Provider(OURS, lambda case: partial(soft_dtw, cost="softmax")),
        Provider(PLAIN, lambda case: partial(soft_dtw, cost="sqeuclidean")),
        Provider("fastseq, costs given", lambda case: given_costs),
        Provider("cell by cell", lambda case: peers.cell_by_cell, cpu_pairs=LOOP_CELLS, **apart),
        Provider("wavefront", lambda case: wavefront, cpu_pairs=1 << 21, **apart),
    ]


def wavefront(x: Tensor, y: Tensor) -> Tensor:
    return peers.wavefront(x, y, peers.softmax_costs)


def seconds(fn: Callable, args: tuple[Tensor, ...]) -> float:
    """The shortest of the calls that fit LEAST_SECONDS, at least one."""
    times: list[float] = []
    while sum(times) < LEAST_SECONDS:
        start = time.perf_counter()
        gradients(fn(*args), args, 1.0)
        times.append(time.perf_counter() - start)
    return min(times)


def rows(shape: tuple[int, int, int]) -> list[str]:
    """One table row for each provider."""
    case = Case(*shape)
    args, found, lines = inputs(case), [], []
    want = expected(case, args)
    for provider in providers("cpu"):
        try:
            fn = build(provider, case)
        except Unavailable as reason:
            lines.append(f"| {provider.name} | {reason} | | |")
            continue
        if provider.name != PLAIN:  # another function
            gate(provider, case, fn, args, want)
        found.append((provider.name, fn))
    turns = [[seconds(fn, args) for _, fn in found] for _ in range(TURNS)]
    best = [min(times) for times in zip(*turns, strict=True)]
    for (name, _), own in zip(found, best, strict=True):
        peak = cpu_peak_mb("soft_dtw_softmax", case, name)
        lines.append(f"| {name} | {own * 1e3:.2f} ms | {own / best[0]:.2f}x | {peak:.1f} MB |")
    return lines


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    for shape in SHAPES:
        print(f"\n{shape}\n| | forward and backward | ratio | peak memory |\n|---|---|---|---|")
        print("\n".join(rows(shape)), flush=True)


if __name__ == "__main__":
    main()
