"""scl_loss with an identity target (row i belongs to row i alone): batch-wide InfoNCE as in CLIP,
beside packages that compute only that.
"""

from functools import partial

import torch
from torch import Tensor

import fastseq
from benchmarks import scl
from benchmarks import scl_identity_peers as peers
from benchmarks.case import Case, Provider
from benchmarks.scl import CALLED, MODES, OURS, TIMED_PAIRS, least_flop, work

__all__ = ["CALLED", "MODES", "OURS", "TIMED_PAIRS", "least_flop", "work"]

SHAPES = {
    "cpu": [(1, 1024, 128), (1, 4096, 128)],
    # The last is the shape of memeff's published time.
    "cuda": [(1, 4096, 128), (1, 16384, 128), (1, 65536, 128), (1, 65536, 384)],
}
# Without fp16, in which memeff rounds the weight of each pair times the gradient's scale to fp16.
# At T = 16384 more than half of these products are 0, and at 65536 the gate would refuse it.
PRECISIONS = {"cpu": ["fp32"], "cuda": ["bf16", "tf32", "fp32"]}
# Below 1 / 206 the next frame is out of reach, so the target is exactly the identity.
OPTIONS = {"variance": 0.004, "objective": "ce", "temperature": peers.TEMPERATURE}


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings of `benchmarks.scl`. The default times are the rows' numbers."""
    z1, z2, _, _ = scl.inputs(case, seed)
    return z1, z2


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients in float64, by the reference or, where its matrices do not fit in memory,
    by the blockwise backend.
    """
    z1, z2 = (z.detach().double().requires_grad_() for z in args)
    backend = "reference" if scl.dense(case) else "torch"
    loss = fastseq.scl_loss(z1, z2, backend=backend, **OPTIONS)
    return loss.detach(), *torch.autograd.grad(loss, (z1, z2))


def _fastseq(backend: str, case: Case):
    return partial(fastseq.scl_loss, backend=backend, **OPTIONS)


def _matrices(alive: int, case: Case) -> int:
    return alive * 4 * case.pairs


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["triton", "torch"] if device == "cuda" else ["torch"]
    return [
        *(Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours),
        Provider("eager", lambda case: peers.eager, partial(_matrices, 6)),
        Provider("torch.compile", peers.build_compiled, partial(_matrices, 4)),
        Provider("FlexAttention", peers.build_flex),
        Provider("memeff", peers.build_memeff),
    ]
