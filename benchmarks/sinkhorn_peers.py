"""VAVA's transport written without fastseq: x, y (N, T, D) and the share phi of the first prior."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRUCTURE, EPSILON, FAR, VIRTUAL_COST, WIDTH, UPDATES = 1.0, 0.1, 5.0, 0.5, 2.0, 21


def _scaled(n: int, m: int) -> tuple[float, float]:
    """Weights of the structure term and of the divergence for n and m frames."""
    return STRUCTURE * (n + m), EPSILON * n * m / 4


def eager(x: Tensor, y: Tensor, phi: float) -> Tensor:
    """Vectorised, in the log domain: (T + 1, T + 1) matrices of all pairs, differentiated by
    autograd.
    """
    x, y = x.float(), y.float()
    structure, epsilon = _scaled(x.shape[1], y.shape[1])
    norms = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None]
    cost = norms - 2 * torch.bmm(x, y.mT)
    n, m = x.shape[1] + 1, y.shape[1] + 1
    found = cost.detach().argmin(2) + 1
    centres = F.pad(found, (1, 0), value=1)[..., None] / m
    i = torch.arange(1, n + 1, device=x.device)[:, None] / n
    j = torch.arange(1, m + 1, device=x.device) / m
    rate = 0.5 / (WIDTH**2 * (1 / n**2 + 1 / m**2))
    gaps = (i - j).square()[None], (centres - j).square()
    shares = phi, 1 - phi
    log_prior = torch.logaddexp(
        *(math.log(s) - rate * gap for s, gap in zip(shares, gaps, strict=True))
    )
    inside = structure * sum(s / (gap + 1) for s, gap in zip(shares, gaps, strict=True))
    weights = log_prior + inside / epsilon
    far = (3 * FAR / (n + m)) ** 2
    one = torch.zeros(n, m, dtype=torch.bool, device=x.device)
    one[0, 1:], one[1:, 0] = True, True
    weights = weights.masked_fill(one, structure / (far + 1) / epsilon - rate * far)
    cost = F.pad(cost, (1, 0, 1, 0), value=VIRTUAL_COST)
    scores = weights - cost / epsilon
    f = x.new_full((len(x), n), -math.log(n))
    for _ in range(UPDATES):
        g = -math.log(m) - torch.logsumexp(scores + f[:, :, None], 1)
        f = -math.log(n) - torch.logsumexp(scores + g[:, None], 2)
    plan = torch.exp(scores + f[:, :, None] + g[:, None])
    return ((plan * cost).sum((1, 2)) / (n * m * (n - 1) * (m - 1))).mean()


def released(x: Tensor, y: Tensor, phi: float) -> Tensor:
    """As the released code and its port compute it: loops over all cells, one pair at a time."""
    return torch.stack([_released(a, b, phi) for a, b in zip(x, y, strict=True)]).mean()


def _released(x: Tensor, y: Tensor, phi: float) -> Tensor:
    structure, epsilon = _scaled(len(x), len(y))
    found = ((x[:, None] - y[None]) ** 2).mean(2).argmin(1).tolist()
    n, m = len(x) + 1, len(y) + 1
    unit = math.sqrt(1 / n**2 + 1 / m**2)
    far = torch.tensor(3 * FAR / (n + m))
    prior, inside = torch.zeros(n, m), torch.zeros(n, m)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            centre = (found[i - 2] + 1) / m if i > 1 else 1 / m
            gaps = torch.tensor(i / n - j / m), torch.tensor(centre - j / m)
            shares = phi, 1 - phi
            if (i == 1 or j == 1) and i != j:
                gaps, shares = (far,), (1.0,)
            for share, gap in zip(shares, gaps, strict=True):
                prior[i - 1, j - 1] += share * torch.exp(-((gap / unit) ** 2) / (2 * WIDTH**2))
                inside[i - 1, j - 1] += share * structure / (gap**2 + 1)
    cost = (x**2).sum(1, keepdim=True) + (y**2).sum(1)[None] - 2 * x @ y.T
    cost = F.pad(cost, (1, 0, 1, 0), value=VIRTUAL_COST)
    kernel = prior.to(x.device) * torch.exp((inside.to(x.device) - cost) / epsilon)
    u = torch.full((n, 1), 1 / n, device=x.device)
    for _ in range(UPDATES):
        v = 1 / m / (kernel.T @ u)
        u = 1 / (n * kernel @ v)
    return (u * ((kernel * cost) @ v)).sum() / (n * m) / (len(x) * len(y))
