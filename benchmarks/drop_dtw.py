"""drop_dtw: shapes, inputs, providers, floors. A case is N pairs of D steps and T frames."""

from functools import partial

import torch
from torch import Tensor

import fastseq
from benchmarks.case import Case, Provider
from benchmarks.drop_dtw_peers import GAMMA, released
from benchmarks.floors import Work

MODES = ("forward", "both")
SHAPES = {
    "cpu": [(1, 64, 10), (8, 2000, 10)],
    "cuda": [(1, 64, 10), (8, 2000, 10)],
}
# A case has N T D cells, far fewer than its `pairs`: every case is timed.
TIMED_PAIRS = {"cpu": 1 << 62, "cuda": 1 << 62}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq numba", "cuda": "fastseq torch"}
CALLED = {"cpu": ["fastseq numba"], "cuda": ["fastseq torch"]}


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Costs in [0, 1); a frame is dropped if all of its matches cost more than about 0.3."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(case.n, case.d, case.t, generator=generator)
    drop_cost = 0.2 + 0.2 * torch.rand(case.n, case.t, generator=generator)
    cost, drop_cost = (z.to(case.device, case.dtype).requires_grad_() for z in (cost, drop_cost))
    return cost, drop_cost


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Value and gradients in float64, by a backend that the tests compare with the reference."""
    args = tuple(z.detach().double().requires_grad_() for z in args)
    value = _fastseq("torch", case)(*args)
    return (value.detach(), *torch.autograd.grad(value, args))


def _fastseq(backend: str, case: Case):
    kwargs = {"gamma": GAMMA, "softmin": "prob", "reduction": "sum", "backend": backend}
    return partial(fastseq.drop_dtw, **kwargs)


def _released(case: Case):
    return lambda cost, drop_cost: released(cost, drop_cost).sum()


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["torch"] if device == "cuda" else ["numba", "torch"]
    # The loop keeps its table in float32: at T = 2000 its gradient has an error of 1 %.
    loop = Provider("released loop", _released, gradient_tolerance=0.05, graph=False)
    found = [*(Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours), loop]
    return [provider._replace(cpu_pairs=1 << 62) for provider in found]


def work(case: Case, mode: str) -> Work:
    """Two minima for each cell, formed again and differentiated backward; costs and their gradients
    move once.
    """
    cells = case.n * case.t * case.d
    exps, tensors = {"forward": (2, 1), "both": (6, 3)}[mode]
    return Work(least_flop(case, mode), exps * cells, tensors * cells * case.dtype.itemsize)


def least_flop(case: Case, mode: str) -> int:
    """No product: the additions of the two costs, and of their gradients."""
    return {"forward": 2, "both": 4}[mode] * case.n * case.t * case.d
