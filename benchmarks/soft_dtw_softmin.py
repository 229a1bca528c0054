"""``python -m benchmarks.soft_dtw_softmin``: the soft minima of soft_dtw, beside a released loop.

CPU time of the shortest of several calls, in turns, forward and backward, one thread. The loop is
the form that AE2 and GTA released: a table of one pair, cloned for each of its cells.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseq
from fastseq.ops.soft_dtw.options import SOFTMINS

GAMMA = 0.1
TURNS = 9


def released_loop(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the values with softmin="prob" and cost="softmax", x and y (N, T, D) normalised."""
    return torch.stack([_table(*pair)[-1, -1] for pair in zip(x, y, strict=True)]).sum()


def _table(x: Tensor, y: Tensor) -> Tensor:
    cost = -F.log_softmax(x @ y.T / GAMMA, 0)
    n, m = cost.shape
    r = torch.full((n + 1, m + 1), torch.finfo(cost.dtype).max)
    r[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = torch.stack([r[i, j - 1], r[i - 1, j - 1], r[i - 1, j]])
            here = cost[i - 1, j - 1] + (torch.softmax(-before / GAMMA, 0) * before).sum()
            r = r.clone()  # autograd needs the table as each cell has read it
            r[i, j] = here
    return r


def seconds(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    start = time.process_time()
    torch.autograd.grad(call(x, y), (x, y))
    return time.process_time() - start


def frames(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(shape, generator=generator), dim=-1) for _ in range(2))
    return x.requires_grad_(), y.requires_grad_()


def error(kind: str, t: int) -> float:
    """Relative L2 error of dx in float32 against float64, one pair of T x 128."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        value = fastseq.soft_dtw(x, y.to(x.dtype), gamma=GAMMA, softmin=kind, backend="numba")
        return torch.autograd.grad(value.sum(), x)[0]

    x, y = (z.detach() for z in frames(1, t, 128))
    exact = gradient(x.double())
    return ((gradient(x) - exact).norm() / exact.norm()).item()


def softmins(*shape: int) -> None:
    """Time and gradient error of each soft minimum."""
    x, y = frames(*shape)

    def call(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        options = {"gamma": GAMMA, "softmin": kind, "reduction": "sum", "backend": "numba"}
        return lambda x, y: fastseq.soft_dtw(x, y, **options)

    times = {kind: [seconds(call(kind), x, y)] for kind in SOFTMINS}  # the first call compiles
    for _ in range(TURNS):
        for kind in SOFTMINS:
            times[kind].append(seconds(call(kind), x, y))
    print(f"\n{shape}, squared Euclidean\n| softmin | time | error of dx, float32 |\n|---|---|---|")
    for kind in SOFTMINS:
        print(f"| {kind} | {min(times[kind][1:]) * 1e3:.0f} ms | {error(kind, shape[1]):.1e} |")


def beside_the_loop(t: int) -> None:
    """The costs are formed alike on both sides, as the loop forms them."""
    x, y = frames(1, t, 128)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        cost = -F.log_softmax(x @ y.mT / GAMMA, 1)
        options = {"gamma": GAMMA, "softmin": "prob", "reduction": "sum", "backend": "numba"}
        return fastseq.soft_dtw_from_cost(cost, **options)

    want, got = released_loop(x, y).item(), ours(x, y).item()
    if abs(got - want) > 1e-5 * abs(want):
        raise RuntimeError(f"the values differ: {got} and {want}")
    theirs = seconds(released_loop, x, y)
    seconds(ours, x, y)
    own = min(seconds(ours, x, y) for _ in range(TURNS))
    print(f"| {t} | {got:.4f} | {theirs * 1e3:.0f} ms | {own * 1e3:.2f} ms |")


def main() -> None:
    torch.set_num_threads(1)
    softmins(4, 480, 128)
    print('\n| T | value, "prob" | loop | fastseq |\n|---|---|---|---|')
    for t in (32, 64):
        beside_the_loop(t)


if __name__ == "__main__":
    main()
