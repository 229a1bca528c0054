"""tcc_loss computed without fastseq: pairs x, y (N, T, D), both directions, l2, regression with
variance, times divided by T.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case

TEMPERATURE, VARIANCE_LAMBDA = 0.1, 0.001


def _both(direction, x: Tensor, y: Tensor) -> Tensor:
    rows = direction(x, y).sum() + direction(y, x).sum()
    return rows / (2 * x.shape[0] * x.shape[1])


def _times(u: Tensor) -> Tensor:
    """In float32 whatever u is: bfloat16 cannot represent 480 distinct times."""
    return torch.arange(u.shape[1], device=u.device, dtype=torch.float32) / u.shape[1]


def _loss(error: Tensor, variance: Tensor) -> Tensor:
    return error.square() / variance + VARIANCE_LAMBDA * variance.log()


def eager(x: Tensor, y: Tensor) -> Tensor:
    """Vectorised over the pairs: (N, T, T) scores and softmaxes, products in the dtype of the
    inputs.
    """
    return _both(_eager_direction, x, y)


def _scores(a: Tensor, b: Tensor) -> Tensor:
    squares = a.float().square().sum(2)[:, :, None] + b.float().square().sum(2)[:, None]
    return (2 * torch.bmm(a, b.mT).float() - squares) / (a.shape[2] * TEMPERATURE)


def _eager_direction(u: Tensor, v: Tensor) -> Tensor:
    alpha = _scores(u, v).softmax(2)
    beta = _scores(torch.bmm(alpha.to(v.dtype), v), u).softmax(2)
    t = _times(u)
    predicted = beta @ t
    variance = (beta * (t - predicted[..., None]).square()).sum(2)
    return _loss(predicted - t, variance)


def build_compiled(case: Case):
    return torch.compile(eager, dynamic=False, fullgraph=True)


def attention(x: Tensor, y: Tensor) -> Tensor:
    """Both softmaxes by scaled_dot_product_attention, linear in memory, in float32.

    -|b|^2 is an additional channel of the keys. The moments are means of t and t^2; where the
    softmax is narrow, their difference has no correct digits.
    """
    return _both(_attention_direction, x.float(), y.float())


def _attention_direction(u: Tensor, v: Tensor) -> Tensor:
    t = _times(u).expand(u.shape[:2])
    nearest = _attend(u, v, v)
    moments = _attend(nearest, u, torch.stack([t, t * t], 2))
    predicted = moments[..., 0]
    return _loss(predicted - t, moments[..., 1] - predicted.square())


def _attend(q: Tensor, k: Tensor, values: Tensor) -> Tensor:
    scale, width = 2 / (q.shape[2] * TEMPERATURE), values.shape[2]
    ones, squares = torch.ones_like(q[..., :1]), k.square().sum(2, keepdim=True)
    # The fused kernels require one width for all three, a multiple of 8.
    channels = -(-(q.shape[2] + 1) // 8) * 8
    q, k, values = (
        F.pad(z, (0, channels - z.shape[2]))[:, None]
        for z in (torch.cat([q, ones], 2), torch.cat([k, -squares / 2], 2), values)
    )
    return F.scaled_dot_product_attention(q, k, values, scale=scale)[:, 0, :, :width]
