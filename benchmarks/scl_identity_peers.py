"""scl_loss with an identity target, written without fastseq: InfoNCE in both directions.

All functions accept z1, z2 (N, T, D) and compare row i of one with all T rows of the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Unavailable
from benchmarks.scl_peers import TEMPERATURE, flex_lse, unit


def eager(z1: Tensor, z2: Tensor) -> Tensor:
    scores = torch.bmm(unit(z1), unit(z2).mT).float() / TEMPERATURE
    label = torch.arange(z1.shape[1], device=z1.device).expand(z1.shape[:2])
    return (F.cross_entropy(scores.mT, label) + F.cross_entropy(scores, label)) / 2


def build_compiled(case: Case):
    return torch.compile(eager, dynamic=False, fullgraph=True)


def flex(z1: Tensor, z2: Tensor, lse=flex_lse) -> Tensor:
    z1, z2 = unit(z1), unit(z2)
    right = (z1.float() * z2.float()).sum(2) / TEMPERATURE
    return ((lse(z1, z2) + lse(z2, z1)) / 2 - right).mean()


def build_flex(case: Case):
    if case.device != "cuda":
        raise Unavailable("FlexAttention has no backward on the CPU")
    return torch.compile(flex, dynamic=False)


def build_memeff(case: Case):
    """memeff's CLIP loss, with the gradient of its formula (stable=True multiplies it)."""
    if case.device != "cuda":
        raise Unavailable("memeff accepts only CUDA tensors")
    if case.n > 1:
        raise Unavailable("memeff compares all rows with each other: only N = 1")
    try:
        import memeff
        from memeff import _common
    except ImportError:
        raise Unavailable('memeff is not installed: pip install "fastseq[bench]"') from None
    # Read from the environment when memeff is imported, so one process has one precision.
    wanted = {"fp32": "ieee", "tf32": "tf32"}.get(case.precision, _common.INPUT_PRECISION)
    if wanted != _common.INPUT_PRECISION:
        raise Unavailable(
            f"memeff multiplies float32 in {_common.INPUT_PRECISION}; for {case.precision} set "
            f"MEMEFF_INPUT_PRECISION={wanted}"
        )
    loss = memeff.MemoryEfficientCLIPLoss(temperature=TEMPERATURE, stable=False)
    return lambda z1, z2: loss(z1[0], z2[0])
