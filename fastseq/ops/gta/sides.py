"""What both losses do with a pair of videos before and after the alignment."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import Lengths, compact, prepare_valid
from fastseq.ops.common.validate import check_pair
from fastseq.ops.soft_dtw.costs import full_precision


def prepare_sides(
    op: str,
    x: Tensor,
    y: Tensor,
    lengths: tuple[Lengths, Lengths],
    valid: tuple[Tensor | None, Tensor | None],
) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None], bool]:
    """Each side's checked embeddings (N, T, D), both in one dtype, float32 or float64, with what
    `prepare_valid` returns for them; and whether the call is for one pair without a batch."""
    check_pair(op, "x", x, "y", y)
    unbatched = x.dim() == 2
    if unbatched:
        x, y = x[None], y[None]
    dtype = torch.promote_types(x.dtype, y.dtype)
    sides: list[tuple[Tensor, Tensor | None]] = []
    for z, suffix, length, mask in zip((x, y), ("_x", "_y"), lengths, valid, strict=True):
        num, frames, _ = z.shape
        mask = prepare_valid(op, suffix, length, mask, num, frames, z.device)
        sides.append((full_precision(z.to(dtype)), mask))
    return sides[0], sides[1], unbatched


def real_frames(z: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Embeddings with the real frames first, and their number (N,)."""
    z, _, lengths = compact(z, None, valid)
    if lengths is None:
        lengths = torch.full((len(z),), z.shape[1], device=z.device)
    return z, lengths.clamp(0, z.shape[1])


def reduce_pairs(
    values: Tensor, lengths_x: Tensor, lengths_y: Tensor, reduction: str, unbatched: bool
) -> Tensor:
    """The values (N,), or their sum, or their mean over pairs with frames on both sides. A pair
    with an empty side has value 0."""
    pairs = (lengths_x > 0) & (lengths_y > 0)
    values = torch.where(pairs, values, 0)
    if reduction == "none":
        return values[0] if unbatched else values
    return values.sum() / (pairs.sum().clamp(min=1) if reduction == "mean" else 1)
