"""queue_nce: shapes, inputs, providers, floors. A case is N queries with 3 positives each against a
queue of T rows.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseq
from benchmarks import queue_nce_peers as peers
from benchmarks.case import Case, Provider
from benchmarks.floors import Work

POSITIVES = 3
MODES = ("forward", "both")
# VCLR trains with 32 queries per GPU; 512 is their number on all its GPUs.
SHAPES = {
    "cpu": [(32, 16384, 128), (32, 131072, 128), (512, 131072, 128)],
    "cuda": [(32, 16384, 128), (32, 131072, 128), (512, 131072, 128), (4096, 131072, 128)],
}
# There are few pairs of queries and rows compared with the pairs of other ops, so every case is
# timed.
TIMED_PAIRS = {"cpu": 1 << 62, "cuda": 1 << 62}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["bf16", "fp16", "tf32", "fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq torch", "cuda": "fastseq triton"}
CALLED = {
    "cpu": ["fastseq torch", "shared lse"],
    "cuda": ["fastseq triton", "fastseq torch", "shared lse"],
}


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random directions. Positives come from a momentum encoder and need no gradient."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        z = F.normalize(torch.randn(*shape, case.d, generator=generator), dim=-1)
        return z.to(case.device, case.dtype)

    return unit(case.n).requires_grad_(), unit(case.n, POSITIVES), unit(case.t)


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64, by the backend that the tests compare with the reference, in
    which each positive has its own logits.
    """
    q, *others = (z.detach().double() for z in args)
    loss = _fastseq("torch", case)(q.requires_grad_(), *others)
    return loss.detach(), *torch.autograd.grad(loss, q)


def _fastseq(backend: str, case: Case):
    # All inputs have norm 1, for fastseq and for the peers.
    kwargs = {"temperature": peers.TEMPERATURE, "normalize": False, "backend": backend}
    return partial(fastseq.queue_nce, **kwargs)


def _matrices(alive: int, case: Case) -> int:
    """Bytes of an (N, T) matrix in float32."""
    return alive * 4 * case.n * case.t


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["triton", "torch"] if device == "cuda" else ["torch"]
    found = [
        *(Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours),
        Provider("released", lambda case: peers.released, partial(_matrices, 5 * POSITIVES)),
        Provider("logits once", lambda case: peers.once, partial(_matrices, 3 + 2 * POSITIVES)),
        Provider("shared lse", lambda case: peers.shared_lse, partial(_matrices, 4)),
        Provider("torch.compile", peers.build_compiled, partial(_matrices, 3)),
        Provider("FlexAttention", peers.build_flex),
    ]
    return [provider._replace(cpu_pairs=1 << 62) for provider in found]


def work(case: Case, mode: str) -> Work:
    """The scores and, in the same pass, the mean that the backward needs. The backward itself takes
    negligible time. The queue is read once.
    """
    flop = 2 * case.n * case.t * case.d
    return Work(2 * flop, case.n * case.t, case.t * case.d * case.dtype.itemsize)


def least_flop(case: Case, mode: str) -> int:
    """The same two products, which no method with a gradient can avoid."""
    return (2 if mode == "forward" else 4) * case.n * case.t * case.d
