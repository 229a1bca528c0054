"""Costs of pairing frames. All of them are squared Euclidean distances."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask

NORM_EPS = 1e-12  # as torch.nn.functional.normalize


def full_precision(t: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 are unchanged."""
    return t if t.dtype == torch.float64 else t.float()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(..., T, S) of x (..., T, D) and y (..., S, D); not meant to be differentiated."""
    # From differences, not products: no digits are lost, however large the norms.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


def cosine_frames(z: Tensor, lengths: Tensor | None, side: int) -> Tensor:
    """Frames (N, T, D + 2) of x (side 0) or y (1) whose squared distances are 1 - cos(x, y).

    These are unit vectors divided by sqrt(2). A frame without direction becomes 0 and is marked by
    1 / sqrt(2) in one of the two last channels, one per side: its distance from all others is 1.
    """
    # Padding becomes 0: the gradient of a NaN norm is NaN, even if it is not needed.
    if lengths is not None:
        z = torch.where(valid_mask(lengths, *z.shape[:2], z.device)[..., None], z, 0)
    flat = torch.linalg.vector_norm(z.detach(), dim=-1, keepdim=True) < NORM_EPS
    safe = torch.where(flat, 1, z)
    unit = torch.where(flat, 0, safe / torch.linalg.vector_norm(safe, dim=-1, keepdim=True))
    mark = flat.to(z.dtype)
    other = torch.zeros_like(mark)
    return torch.cat([unit, *((mark, other) if side == 0 else (other, mark))], -1) * 0.5**0.5


def softmax_frames(
    x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Frames whose squared distances are (1 - cos(x, y)) / temperature."""
    factor = temperature**-0.5
    return factor * cosine_frames(x, lengths_x, 0), factor * cosine_frames(y, lengths_y, 1)


def softmax_bias(x: Tensor, y: Tensor, lengths_x: Tensor | None, backend: str) -> Tensor:
    """(N, S): log sum_i exp(-|x_i - y_j|^2) over the real frames of x; differentiable.

    With `softmax_frames` |x_i - y_j|^2 + bias_j = -log softmax_i(cos(x_i, y_j) / temperature).
    """
    d = (x[:, :, None] - y[:, None]).square().sum(-1)
    real = valid_mask(lengths_x, *x.shape[:2], x.device)
    return torch.where(real[:, :, None], -d, -torch.inf).logsumexp(1)
