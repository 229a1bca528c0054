"""Entropic transport: shapes, inputs, providers, floors. The function is VAVA's transport."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseq
from benchmarks import sinkhorn_peers as peers
from benchmarks.case import Case, Provider
from benchmarks.floors import Work

MODES = ("forward", "backward", "both")
# The last CPU shape is measured for memory only; times are taken up to TIMED_PAIRS.
SHAPES = {
    "cpu": [(8, 20, 128), (1, 64, 128), (8, 240, 128), (2, 1024, 128), (1, 2048, 128)],
    "cuda": [(8, 20, 128), (8, 240, 128), (8, 1024, 128), (4, 4096, 128), (1, 16384, 128)],
}
TIMED_PAIRS = {"cpu": 2 * 1024**2, "cuda": 1 << 40}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["bf16", "fp16", "tf32", "fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq torch", "cuda": "fastseq triton"}
CALLED = {"cpu": ["fastseq torch", "eager"], "cuda": ["fastseq triton", "fastseq torch", "eager"]}
PHI = 0.6  # both priors take part


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random directions: distances of about 2, as between unrelated frames."""
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(2, case.n, case.t, case.d, generator=generator), dim=-1)
    x, y = z.to(case.device, case.dtype)
    return x.requires_grad_(), y.requires_grad_()


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients in float64, computed by the backend that the tests compare with the
    reference. The reference itself would form T x T x D numbers.
    """
    x, y = (z.detach().double().requires_grad_() for z in args)
    loss = _fastseq("torch", case)(x, y)
    return loss.detach(), *torch.autograd.grad(loss, (x, y))


def _fastseq(backend: str, case: Case):
    options = {"phi": PHI, "form": "code", "intra": 0.0, "inter": 0.0}
    return partial(fastseq.vava_loss, backend=backend, **options)


def _square_matrices(alive: int, case: Case) -> int:
    return alive * 4 * case.pairs


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["triton", "torch"] if device == "cuda" else ["torch"]
    build = {
        name: lambda case, run=run: lambda x, y: run(x, y, PHI)
        for name, run in (("eager", peers.eager), ("released", peers.released))
    }
    return [
        *(Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours),
        # Autograd keeps two matrices for each half of an iteration.
        Provider("eager", build["eager"], partial(_square_matrices, 4 * peers.UPDATES)),
        Provider("released", build["released"], partial(_square_matrices, 12), cpu_pairs=1 << 13),
    ]


def work(case: Case, mode: str) -> Work:
    """Every pass forms the costs again, with one exp for each cell: updates + 1 passes forward, and
    as many backward with the two products of the gradient in the last.
    """
    passes = peers.UPDATES + 1
    products, exps = {
        "forward": (passes, passes),
        "backward": (passes + 2, passes),
        "both": (2 * passes + 2, 2 * passes),
    }[mode]
    tensors = {"forward": 2, "backward": 4, "both": 4}[mode]  # x and y in; their gradients out
    moved = tensors * case.n * case.t * case.d * case.dtype.itemsize
    return Work(products * 2 * case.pairs * case.d, exps * case.pairs, moved)


def least_flop(case: Case, mode: str) -> int:
    """Products that no method can avoid: the costs, and in the backward both gradients."""
    products = {"forward": 1, "backward": 2, "both": 3}[mode]
    return 2 * products * case.pairs * case.d
