"""tcc_loss: shapes, inputs, providers, floors. A case is N pairs of T frames each."""

from functools import partial

import torch
from torch import Tensor

import fastseq
from benchmarks import tcc_peers as peers
from benchmarks.case import Case, Provider
from benchmarks.floors import Work

# fastseq's forward also forms the gradients, so timing the passes separately would mislead.
MODES = ("both",)
# The last CPU shape is measured for memory only; times are taken up to TIMED_PAIRS.
SHAPES = {
    "cpu": [(8, 40, 128), (8, 240, 128), (1, 2048, 128), (1, 8192, 128)],
    "cuda": [(8, 40, 128), (8, 240, 128), (8, 1024, 128), (4, 4096, 128), (1, 16384, 128)],
}
TIMED_PAIRS = {"cpu": 2048**2, "cuda": 1 << 40}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["bf16", "tf32", "fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq torch", "cuda": "fastseq triton"}
CALLED = {"cpu": ["fastseq torch", "eager"], "cuda": ["fastseq triton", "fastseq torch", "eager"]}
# Standard deviation of a channel, chosen so that a cycle returns to tens of frames rather than to
# one frame or to all.
SPREAD = 0.5


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def frames() -> Tensor:
        z = SPREAD * torch.randn(case.n, case.t, case.d, generator=generator)
        return z.to(case.device, case.dtype).requires_grad_()

    return frames(), frames()


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64, by the reference. Where its matrices do not fit in memory, by
    the blockwise backend, which the tests compare with the reference.
    """
    dense = case.pairs <= (1 << 22 if case.device == "cpu" else 1 << 27)
    x, y = (z.detach().double().requires_grad_() for z in args)
    loss = fastseq.tcc_loss(x, y, backend="reference" if dense else "torch")
    return (loss.detach(), *torch.autograd.grad(loss, (x, y)))


def _fastseq(backend: str, case: Case):
    return partial(fastseq.tcc_loss, backend=backend)


def _square_matrices(alive: int, case: Case) -> int:
    return alive * 4 * case.pairs


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["triton", "torch"] if device == "cuda" else ["torch"]
    return [
        *(Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours),
        Provider("eager", lambda case: peers.eager, partial(_square_matrices, 16)),
        Provider("torch.compile", peers.build_compiled, partial(_square_matrices, 10)),
        # It computes the variance as a difference of means.
        Provider("attention", lambda case: peers.attention, tolerance=0.05),
    ]


def work(case: Case, mode: str) -> Work:
    """Both directions: scores, nearest neighbours and logits, and twice as much for their
    gradients; an exp for each score and each logit. No method without a T x T matrix needs less.
    """
    moved = 4 * case.n * case.t * case.d * case.dtype.itemsize  # x, y in; gradients out
    return Work(least_flop(case, mode), 2 * 2 * case.pairs, moved)


def least_flop(case: Case, mode: str) -> int:
    return 9 * 2 * 2 * case.pairs * case.d
