"""The definition of contrastive_idm in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.contrastive_idm.options import CIDMOptions, coefficients, pair_times


def contrastive_idm_reference(
    z: Tensor,
    t: Tensor | None,
    lengths: Tensor | None,
    windows: Tensor | None,
    opts: CIDMOptions,
) -> Tensor:
    """Dense contrastive_idm of inputs that op.py has checked. Needs memory for N T T D numbers."""
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    real = valid_mask(lengths, *z.shape[:2], z.device)
    z = torch.where(real[..., None], z, 0).to(dtype)  # padding may contain NaN
    distance = (z[:, :, None] - z[:, None]).square().sum(-1)
    if opts.distance == "euclidean":
        # The distance of a frame to itself has gradient 0, and so does that of equal frames.
        equal = distance == 0
        distance = torch.where(equal, 0, torch.where(equal, 1, distance).sqrt())

    times = pair_times(t, real, dtype)
    gap = (times[:, :, None] - times[:, None, :]).abs()
    window = opts.window if windows is None else windows.to(gap.dtype)[:, None, None]
    far = gap > window
    weight = 1 + gap.to(dtype).square()
    if opts.kind == "idm":
        pairs = -weight * distance
    elif opts.kind == "sfa":
        pairs = torch.where(far, torch.relu(opts.margin - distance), distance)
    else:
        near = distance / weight if opts.weights == "paper" else distance
        pairs = torch.where(far, weight * torch.relu(opts.margin - distance), near)

    pairs = torch.where(real[:, :, None] & real[:, None], pairs, 0)
    loss = coefficients(real, times, opts.reduction, dtype) * pairs.sum((1, 2))
    return loss if opts.reduction == "none" else loss.sum()
