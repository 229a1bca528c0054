"""ae2_loss: shapes, inputs, providers, floors."""

from functools import partial

import torch
from torch import Tensor

import fastseq
from benchmarks import gta_peers as peers
from benchmarks import soft_dtw
from benchmarks.case import Case, Provider
from benchmarks.floors import Work
from benchmarks.gta import RELEASED_CELLS

MODES = ("forward", "both")
# The first is the released batch of AE2: 2 pairs of 32 frames.
SHAPES = {
    "cpu": [(2, 32, 128), (4, 240, 128), (4, 480, 128), (1, 4096, 128)],
    "cuda": [(2, 32, 128), (4, 240, 128), (4, 480, 128), (1, 4096, 128)],
}
TIMED_PAIRS = {"cpu": 2048**2, "cuda": 1 << 40}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq numba", "cuda": "fastseq cuda"}
CALLED = {"cpu": ["fastseq numba"], "cuda": ["fastseq cuda"]}

inputs = soft_dtw.inputs


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients in float64, by a backend that the tests compare with the reference."""
    x, y = (z.detach().double().requires_grad_() for z in args)
    loss = fastseq.ae2_loss(x, y, backend="torch")
    return (loss.detach(), *torch.autograd.grad(loss, (x, y)))


def _fastseq(backend: str, case: Case):
    return partial(fastseq.ae2_loss, backend=backend)


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = OURS[device].removeprefix("fastseq ")
    return [
        Provider(OURS[device], partial(_fastseq, ours)),
        Provider("fastseq torch", partial(_fastseq, "torch"), cpu_pairs=soft_dtw.CPU_CELLS),
        Provider(
            "released",
            lambda case: peers.released_ae2,
            cpu_pairs=RELEASED_CELLS,
            gradient_tolerance=1e-3,  # R in float32
            graph=False,
        ),
    ]


def work(case: Case, mode: str) -> Work:
    """Two Soft-DTW values of each pair, side by side."""
    one = soft_dtw.work(case, mode)
    return Work(2 * one.flop, 2 * one.exps, one.moved, one.clocks)


def least_flop(case: Case, mode: str) -> int:
    """Products that no method can avoid. The costs of the reversed video are those of the pair."""
    return soft_dtw.least_flop(case, mode)
