"""contrastive_idm: shapes, inputs, providers, floors."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseq
from benchmarks import contrastive_idm_peers as peers
from benchmarks.case import Case, Provider
from benchmarks.contrastive_idm_peers import window
from benchmarks.floors import Work

MODES = ("forward", "backward", "both")
# The last CPU shape is measured for memory only; times are taken up to TIMED_PAIRS.
SHAPES = {
    "cpu": [(8, 20, 128), (8, 240, 128), (2, 2048, 128), (1, 4096, 128), (1, 8192, 128)],
    "cuda": [
        (8, 20, 128),
        (8, 240, 128),
        (8, 480, 128),
        (8, 1024, 128),
        (4, 4096, 128),
        (1, 16384, 128),
        (1, 65536, 128),
    ],
}
TIMED_PAIRS = {"cpu": 4096**2, "cuda": 1 << 40}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["bf16", "fp16", "tf32", "fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq torch", "cuda": "fastseq triton"}
CALLED = {"cpu": ["fastseq torch", "eager"], "cuda": ["fastseq triton", "fastseq torch", "eager"]}


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random directions, whose distances are close to the margin as those of embeddings are, and
    sorted times as shares of the video: one random frame out of each of T chunks of 12.
    """
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(case.n, case.t, case.d, generator=generator), dim=-1)
    t = 12 * torch.arange(case.t) + torch.randint(12, (case.n, case.t), generator=generator)
    z = z.to(case.device, case.dtype)
    return z.requires_grad_(), (t / (12 * case.t)).to(case.device)


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64, computed by the backend that the tests compare with the
    reference. The reference itself would form T x T x D numbers.
    """
    z = args[0].detach().double().requires_grad_()
    loss = _fastseq("torch", case)(z, args[1])
    return loss.detach(), *torch.autograd.grad(loss, z)


def _fastseq(backend: str, case: Case):
    return partial(fastseq.contrastive_idm, window=window(case), backend=backend)


def _square_matrices(alive: int, case: Case) -> int:
    return alive * 4 * case.pairs


def _differences(case: Case) -> int:
    """Bytes of z_i - z_j, its square and their gradients, each N x T x T x D."""
    return 4 * 4 * case.pairs * case.d


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["triton", "torch"] if device == "cuda" else ["torch"]
    return [
        *(Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours),
        Provider("eager", peers.build_eager, partial(_square_matrices, 8)),
        Provider("torch.compile", peers.build_compiled, partial(_square_matrices, 4)),
        Provider("released", peers.build_released, _differences, cpu_pairs=1 << 19),
    ]


def work(case: Case, mode: str) -> Work:
    """Forward: the distances of half of the pairs. Backward: the distances of all pairs and the
    product of the gradient, since each program owns its rows. One reciprocal for each distance.
    """
    flop = 2 * case.pairs * case.d
    products, divisions = {"forward": (0.5, 0.5), "backward": (2, 1), "both": (2.5, 1.5)}[mode]
    tensors = {"forward": 1, "backward": 2, "both": 2}[mode]  # z in; its gradient out
    moved = tensors * case.n * case.t * case.d * case.dtype.itemsize
    return Work(products * flop, divisions * case.pairs, moved)


def least_flop(case: Case, mode: str) -> int:
    """Products that no method can avoid: half of the distances, and in the backward the
    gradient.
    """
    halves = {"forward": 1, "backward": 2, "both": 3}[mode]
    return halves * case.pairs * case.d
