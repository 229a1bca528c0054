"""gta_loss: shapes, inputs, providers, floors."""

from functools import partial

import torch
from torch import Tensor

import fastseq
from benchmarks import gta_peers as peers
from benchmarks import soft_dtw
from benchmarks.case import Case, Provider
from benchmarks.floors import Work

MODES = ("forward", "both")
# The first is the released batch of GTA: 3 pairs of 20 frames.
SHAPES = {
    "cpu": [(3, 20, 128), (2, 32, 128), (4, 240, 128), (4, 480, 128)],
    "cuda": [(3, 20, 128), (2, 32, 128), (4, 240, 128), (4, 480, 128), (1, 2048, 128)],
}
TIMED_PAIRS = {"cpu": 4096**2, "cuda": 1 << 40}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq numba", "cuda": "fastseq torch"}
CALLED = {"cpu": ["fastseq numba"], "cuda": ["fastseq torch"]}
# The released form takes minutes above this many cells.
RELEASED_CELLS = 1 << 11

inputs = soft_dtw.inputs


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients in float64, by a backend that the tests compare with the released
    formula.
    """
    x, y = (z.detach().double().requires_grad_() for z in args)
    loss = fastseq.gta_loss(x, y, backend="torch")
    return (loss.detach(), *torch.autograd.grad(loss, (x, y)))


def _fastseq(backend: str, case: Case):
    return partial(fastseq.gta_loss, backend=backend)


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["numba", "torch"] if device == "cpu" else ["torch"]
    return [
        *(Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours),
        Provider(
            "released",
            lambda case: peers.released_gta,
            cpu_pairs=RELEASED_CELLS,
            gradient_tolerance=1e-3,  # R in float32
            graph=False,
        ),
    ]


def work(case: Case, mode: str) -> Work:
    """Two tables, whose costs share one product; and the product of the softmaxes, T x T x T."""
    one = soft_dtw.work(case, mode)
    exps, clocks = 2 * one.exps + 5 * case.pairs, 2 * one.clocks
    return Work(least_flop(case, mode), exps, one.moved, clocks)


def least_flop(case: Case, mode: str) -> int:
    """Products that no method can avoid: the similarities and the cycles, and in the backward the
    gradients of both.
    """
    return {"forward": 1, "both": 3}[mode] * 2 * case.pairs * (case.d + case.t)
