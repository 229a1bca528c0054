"""Costs of pairing frames: squared Euclidean distances, and for "softmax" a bias of each column."""

import torch
from torch import Tensor

from fastseq.ops.column_lse.op import backend_beside, column_lse
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
    return _marked(*_unit_frames(z, lengths), side, 0.5**0.5)


def softmax_cost(
    x: Tensor,
    y: Tensor,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames x' and y' and a bias (N, S) with |x'_i - y'_j|^2 + bias_j =
    -log softmax_i(cos(x_i, y_j) / temperature), the softmax over the real frames of x.

    The squared distance is (1 - cos) / temperature, as that of `cosine_frames`; the bias is log
    sum_i exp(-squared distance), which `column_lse` forms for ``backend`` of soft_dtw. A frame
    without direction has cos 0 with every frame.
    """
    (u, flat_x), (v, flat_y) = _unit_frames(x, lengths_x), _unit_frames(y, lengths_y)
    beside = backend_beside(backend, x.device.type, x.dtype)
    bias = column_lse(u, v, lengths_x, lengths_y, 1 / temperature, beside)
    factor = (2 * temperature) ** -0.5
    return _marked(u, flat_x, 0, factor), _marked(v, flat_y, 1, factor), bias


def _unit_frames(z: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, T, D) unit vectors, 0 for frames without direction; and which those are (N, T, 1)."""
    # Padding becomes 0: the gradient of a NaN norm is NaN, even if it is not needed.
    if lengths is not None:
        z = torch.where(valid_mask(lengths, *z.shape[:2], z.device)[..., None], z, 0)
    flat = torch.linalg.vector_norm(z.detach(), dim=-1, keepdim=True) < NORM_EPS
    safe = torch.where(flat, 1, z)
    return torch.where(flat, 0, safe / torch.linalg.vector_norm(safe, dim=-1, keepdim=True)), flat


def _marked(unit: Tensor, flat: Tensor, side: int, factor: float) -> Tensor:
    mark = flat.to(unit.dtype)
    other = torch.zeros_like(mark)
    return torch.cat([unit, *((mark, other) if side == 0 else (other, mark))], -1) * factor
