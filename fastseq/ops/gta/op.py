"""gta_loss: Soft-DTW both ways and global cycle consistency."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.common.dispatch import call_as, no_autocast
from fastseq.ops.common.lengths import Lengths, valid_mask
from fastseq.ops.gta.options import GTAOptions
from fastseq.ops.gta.sides import prepare_sides, real_frames, reduce_pairs
from fastseq.ops.soft_dtw.costs import cosine_frames
from fastseq.ops.soft_dtw.op import soft_dtw
from fastseq.ops.soft_dtw.table import soft_dtw_table_from_cost

ALIGNMENT_WEIGHT = 0.1  # released code


def gta_loss(
    x: Tensor,
    y: Tensor,
    *,
    gamma: float = 0.1,
    temperature: float = 0.1,
    softmin: str = "prob",
    consistency: bool = True,
    label_smoothing: float = 0.1,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Global temporal alignment and cycle consistency (GTA, Hadji et al., CVPR 2021), as released.

    With R(x, y) the table of Soft-DTW for the cost -log softmax_i(cos(x_i, y_j) / temperature)::

        P(x, y)  = softmax over i of -R(x, y)                  (T, S)
        Z        = (P(x, y) P(y, x))^T                         (T, T), rows sum to 1
        loss     = CE(Z, identity) + 0.1 (R_TS(x, y) + R_ST(y, x))
        CE       = mean_b -sum_a u_ba log softmax_a(Z_b)_a
        u        = (1 - label_smoothing) identity + label_smoothing / T

    As in the released code, CE applies a softmax to Z, although Z contains probabilities. Without
    label smoothing CE therefore lies between log(T - 1 + e) - 1 and log(T - 1 + e).

    Memory: about 140 bytes for each of N max(T, S)^2 pairs of frames, since every cell of both
    tables has a gradient; with ``consistency=False`` that of :func:`fastseq.soft_dtw`.

    Args:
        x, y: embeddings (N, T, D) and (N, S, D), or (T, D) and (S, D) for one pair; float64,
            float32, bfloat16 or float16. T and S may differ. They are normalised here.
        gamma: smoothing of Soft-DTW, in the units of the cost. Default 0.1: the released code.
        temperature: divisor of the cosine similarities. Default 0.1: the released code.
        softmin: "prob" (the released default), "logsumexp" (the released minGamma) or "sparse":
            see :func:`fastseq.soft_dtw`.
        consistency: False leaves out the cross-entropy.
        label_smoothing: share of the target spread over all frames of x, at least 0 and below 1.
            Default 0.1: the released code.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Padding
            is ignored, even if it contains NaN.
        reduction: "none": (N,); "sum"; or "mean", over the pairs where both lengths are > 0.
        backend: "auto", "numba" (CPU), "torch" (any device) or "reference"; with
            ``consistency=False`` a backend of :func:`fastseq.soft_dtw`. Only "reference" can be
            differentiated twice.

    Returns:
        A scalar, or (N,) with ``reduction="none"`` (a scalar for one pair): float64 for float64
        inputs, otherwise float32. Gradients have the dtypes of x and y. A pair with a length 0 has
        value 0 and gradient 0.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it, or a backend other than
            "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> x, y = torch.randn(4, 20, 128), torch.randn(4, 24, 128)
        >>> fastseq.gta_loss(x, y, lengths_x=[20, 12, 20, 7]).shape
        torch.Size([])
    """
    op = "gta_loss"
    opts = GTAOptions.checked(
        op, gamma, temperature, softmin, consistency, label_smoothing, reduction
    )
    *sides, unbatched = prepare_sides(op, x, y, (lengths_x, lengths_y), (valid_x, valid_y))
    (x, real_x), (y, real_y) = (real_frames(*side) for side in sides)
    if not (x.shape[1] and y.shape[1]):
        values = x.sum((1, 2)) + y.sum((1, 2))  # 0 once reduced, with a gradient
    elif consistency:
        values = _consistent(op, x, y, real_x, real_y, opts, backend)
    else:
        shared = {"gamma": opts.gamma, "temperature": opts.temperature, "softmin": softmin}
        shared |= {"cost": "softmax", "backend": backend}
        there = call_as(op, soft_dtw, x, y, lengths_x=real_x, lengths_y=real_y, **shared)
        back = call_as(op, soft_dtw, y, x, lengths_x=real_y, lengths_y=real_x, **shared)
        values = ALIGNMENT_WEIGHT * (there + back)
    return reduce_pairs(values, real_x, real_y, reduction, unbatched)


def _consistent(op, x, y, real_x, real_y, opts: GTAOptions, backend: str) -> Tensor:
    """(N,) of sequences with the real frames first; anything finite for a pair with an empty
    side."""
    with no_autocast(x.device.type):
        num, size, device = len(x), max(x.shape[1], y.shape[1]), x.device
        u, v = (
            F.pad(cosine_frames(z, real, side), (0, 0, 0, size - z.shape[1]))
            for side, (z, real) in enumerate(((x, real_x), (y, real_y)))
        )
        # Both ways in one batch: x with y, then y with x.
        real, other = torch.cat([real_x, real_y]), torch.cat([real_y, real_x])
        rows, columns = (valid_mask(n, 2 * num, size, device) for n in (real, other))
        similar = torch.cat([u, v]) @ torch.cat([v, u]).mT  # cos / 2
        table = call_as(
            op,
            soft_dtw_table_from_cost,
            -_log_softmax(similar.double() * (2 / opts.temperature), rows),
            gamma=opts.gamma,
            softmin=opts.softmin,
            lengths_x=real,
            lengths_y=other,
            backend=backend,
        )
        each = torch.arange(2 * num, device=device)
        ends = table[each, (real - 1).clamp(min=0), (other - 1).clamp(min=0)]
        soft = _log_softmax(-table, rows).exp()
        soft = torch.where(rows[:, :, None] & columns[:, None], soft, 0)
        there, back = soft.view(2, num, size, size).unbind()
        # Column b of the product, [N, T, T]: where a cycle that starts at frame b of x ends.
        log_p, rows = _log_softmax(there @ back, rows[:num]), rows[:num]
        count = real_x.clamp(min=1)
        own = log_p.diagonal(dim1=1, dim2=2)
        uniform = torch.where(rows[:, :, None], log_p, 0).sum(1) / count[:, None]
        entropy = -(1 - opts.label_smoothing) * own - opts.label_smoothing * uniform
        entropy = torch.where(rows, entropy, 0).sum(1) / count
        return (entropy + ALIGNMENT_WEIGHT * ends.view(2, num).sum(0)).to(x.dtype)


def _log_softmax(t: Tensor, rows: Tensor) -> Tensor:
    """Log of the softmax of t (N, T, S) over dimension 1, of the ``rows`` (N, T) only; other rows
    hold large finite numbers."""
    return torch.where(rows[:, :, None], t, torch.finfo(t.dtype).min / 4).log_softmax(1)
