"""contrastive_idm written without fastseq: z (N, T, D) and sorted times t (N, T)."""

import torch
from torch import Tensor

from benchmarks.case import Case

MARGIN = 2.0


def window(case: Case) -> float:
    """Ten and a half frames as a share of the video; the half keeps any gap from equalling the
    window.
    """
    return 10.5 / (12 * case.t)


def _loss(distance: Tensor, t: Tensor, width: float) -> Tensor:
    gap = (t[:, :, None] - t[:, None]).abs()
    weight = 1 + gap.square()
    pairs = torch.where(gap > width, weight * torch.relu(MARGIN - distance), distance / weight)
    return pairs.mean()


def eager(z: Tensor, t: Tensor, width: float) -> Tensor:
    """Vectorised: distances from one product of the embeddings, a (T, T) matrix for each
    sequence.
    """
    norms = z.float().square().sum(2)
    product = torch.bmm(z, z.mT).float()
    return _loss(norms[:, :, None] + norms[:, None] - 2 * product, t, width)


def released(z: Tensor, t: Tensor, width: float) -> Tensor:
    """Distances as LAV's released code forms them: from (T, T, D) differences, one sequence at a
    time.
    """
    parts = []
    for z_n, t_n in zip(z.float(), t, strict=True):
        distance = (z_n[:, None] - z_n[None]).pow(2).sum(2)
        parts.append(_loss(distance[None], t_n[None], width))
    return torch.stack(parts).mean()


def build_eager(case: Case):
    return lambda z, t: eager(z, t, window(case))


def build_compiled(case: Case):
    return torch.compile(build_eager(case), dynamic=False, fullgraph=True)


def build_released(case: Case):
    return lambda z, t: released(z, t, window(case))
