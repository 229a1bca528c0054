"""The definition of a call with ``group=``: the ranks' tensors are joined on every rank."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.scl.reference import scl_reference
from fastseq.ops.scl.ring.options import RingOptions
from fastseq.ops.scl.ring.parts import Parts


def ring_reference(z1, z2, tau, var, t1, t2, valid1, valid2, opts: RingOptions) -> Tensor:
    """Dense, with the memory of all ranks' frames on every rank; differentiable twice."""
    inputs = z1, z2, tau
    needed = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    parts = Parts(*inputs, var, t1, t2, valid1, valid2, opts, "all at once", needed)
    along = 1 if opts.split == "frames" else 0
    z, t, valid = [], [], []
    for view, (given, side) in enumerate(zip((z1, z2), parts.mine.views, strict=True)):
        shapes = [(n, frames[view]) for n, *frames in parts.sizes]
        mask = valid_mask(side.valid, *side.z.shape[:2], z1.device)
        # Padding may contain NaN, which a sum over ranks would spread.
        given = torch.where(mask[..., None], given, 0)
        z.append(_joined(given, shapes, along, parts))
        t.append(_joined(side.t, shapes, along, parts))
        valid.append(_joined(mask.to(torch.uint8), shapes, along, parts).bool())
    loss = scl_reference(*z, tau, var, *t, *valid, opts.scl)
    if opts.split == "videos" and opts.reduction == "none":
        before = sum(n for n, *_ in parts.sizes[: parts.ring.rank])
        loss = loss[before : before + len(z1)]
    return loss


def _joined(x: Tensor, shapes: list[tuple[int, int]], along: int, parts: Parts) -> Tensor:
    """The ranks' tensors (N, T, ...), whose ``shapes`` begin so, one after the other: the sum of
    the ranks' tensors at their places, as its gradient can be differentiated again."""
    sizes = [max(shape[k] for shape in shapes) for k in (0, 1)]
    sizes[along] = sum(shape[along] for shape in shapes)
    start = sum(shape[along] for shape in shapes[: parts.ring.rank])
    whole = x.new_zeros(*sizes, *x.shape[2:])
    place = [slice(0, x.shape[0]), slice(0, x.shape[1])]
    place[along] = slice(start, start + x.shape[along])
    whole[tuple(place)] = x
    return parts.ring.summed(whole)
