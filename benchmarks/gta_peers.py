"""GTA's and AE2's losses as the released code computes them: one cell of the table at a time, each
in a copy of the whole table. All functions take x, y (N, T, D), which GTA's encoder normalises,
and return the mean over pairs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GAMMA = TEMPERATURE = SMOOTHING = 0.1
SCALE = 0.01


def released_table(x: Tensor, y: Tensor) -> Tensor:
    """R of one pair, with the released "dtw_prob"."""
    cost = -F.log_softmax(x @ y.T / TEMPERATURE, 0)
    n, m = cost.shape
    table = cost.new_full((n + 1, m + 1), torch.finfo(torch.float32).max)
    table[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = torch.stack([table[i, j - 1], table[i - 1, j - 1], table[i - 1, j]])
            soft = (F.softmax(-before / GAMMA, -1) * before).sum()
            table = table.clone()  # a cell cannot be assigned in place under autograd
            table[i, j] = cost[i - 1, j - 1] + soft
    return table[1:, 1:]


def _mean_over_pairs(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    def mean(x: Tensor, y: Tensor) -> Tensor:
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        return torch.stack([loss(a, b) for a, b in zip(x, y, strict=True)]).mean()

    return mean


def _gta_pair(x: Tensor, y: Tensor) -> Tensor:
    xy, yx = released_table(x, y), released_table(y, x)
    cycle = (F.softmax(-xy, 0) @ F.softmax(-yx, 0)).T
    own = torch.arange(len(cycle), device=x.device)
    entropy = F.cross_entropy(cycle, own, label_smoothing=SMOOTHING)
    return entropy + 0.1 * (xy[-1, -1] + yx[-1, -1])


def _ae2_pair(x: Tensor, y: Tensor) -> Tensor:
    """All frames are in the hinge; the released code aligns the pair twice then."""
    full, aligned, against = (SCALE * released_table(x, z)[-1, -1] for z in (y, y, y.flip(0)))
    return (full + aligned) / 2 + (aligned - against).clamp(min=0)


released_gta = _mean_over_pairs(_gta_pair)
released_ae2 = _mean_over_pairs(_ae2_pair)
