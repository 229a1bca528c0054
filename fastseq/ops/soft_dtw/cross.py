"""soft_dtw_cross: every x with every y."""

import torch
from torch import Tensor

from fastseq.ops.common.fused import FusedLoss, refuse_transforms
from fastseq.ops.common.lengths import Lengths, prepare_valid, real_first, reorder
from fastseq.ops.common.validate import check_choice, check_embeddings
from fastseq.ops.soft_dtw import chunks
from fastseq.ops.soft_dtw.autograd import FUSED
from fastseq.ops.soft_dtw.costs import cosine_frames, full_precision
from fastseq.ops.soft_dtw.op import _resolve
from fastseq.ops.soft_dtw.options import COSTS, SoftDTWOptions
from fastseq.ops.soft_dtw.per_pair import Gamma, split_gamma
from fastseq.ops.soft_dtw.reference import soft_dtw_reference


def soft_dtw_cross(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Gamma = 1.0,
    cost: str = "sqeuclidean",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    bandwidth: int | None = None,
    begin: str = "fixed",
    end: str = "fixed",
    warp_penalty: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    r"""Soft dynamic time warping of every x with every y: ``value[a, b] = soft_dtw(x[a], y[b])``.

    The values equal those of :func:`fastseq.soft_dtw` on the expanded pairs to the bit, but no
    expanded copy is made: pairs are processed in chunks whose buffers stay under 64 MiB (256 MiB on
    a GPU), or under those of one pair. If one chunk is enough, the forward keeps its results for
    the backward; otherwise it keeps nothing and the backward computes each chunk again.

    Args:
        x, y: embeddings (A, T, D) and (B, S, D); float64, float32, bfloat16 or float16.
        gamma: as in :func:`fastseq.soft_dtw`, one for all pairs: a number, or a tensor of shape ().
        cost, begin, end, warp_penalty: as in :func:`fastseq.soft_dtw`.
        lengths_x, lengths_y: (A,) and (B,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (A, T) and (B, S) bool, True = real frame; pass these or lengths.
        bandwidth: as in :func:`fastseq.soft_dtw`, one for all pairs.
        backend: "auto", "numba" (CPU), "cuda" (NVIDIA GPU), "torch" (any device) or "reference"
            (dense, all pairs at once; the only one that can be differentiated twice).

    Returns:
        (A, B): float64 for float64 inputs, otherwise float32. Gradients have the dtypes of x and y;
        that of a sequence is the sum over its pairs, added in a fixed order. A pair with a
        length 0 has value 0 and gradient 0.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it (it is never replaced), or
            a backend other than "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> x = torch.tensor([[[0.0], [1.0], [2.0]], [[2.0], [1.0], [0.0]]])
        >>> fastseq.soft_dtw_cross(x, x, gamma=0.01).round(decimals=2) + 0.0
        tensor([[0., 8.],
                [8., 0.]])
    """
    op = "soft_dtw_cross"
    if isinstance(gamma, Tensor) and gamma.dim():
        raise ValueError(
            f"{op}: gamma must be a number or a tensor of shape (), one for all pairs; got "
            f"{tuple(gamma.shape)}"
        )
    ends = {"begin": begin, "end": end, "warp_penalty": warp_penalty}
    x, y, real_x, real_y = every_pair(op, x, y, cost, (lengths_x, lengths_y), (valid_x, valid_y))
    gamma, gammas = split_gamma(op, gamma, 1, x.device)
    check_choice(op, "cost", cost, COSTS)
    opts = SoftDTWOptions.checked(op, gamma, bandwidth, cost, **ends)
    name = _resolve(op, backend, x.device.type)
    if name == "reference" or chunks.fits(x, y):
        values = FUSED[op](name, opts, *chunks.expanded(x, y, real_x, real_y, gammas))
        return values.view(x.shape[0], y.shape[0])
    refuse_transforms(op, name)
    return _CHUNKS("chunks", chunks.CrossOptions(name, *opts), x, y, real_x, real_y, gammas)


def every_pair(op: str, x: Tensor, y: Tensor, cost: str, lengths, valid):
    """Checked inputs of both sides: float32 or float64, cost squared Euclidean, real frames first;
    and the number of real frames of each sequence."""
    check_embeddings(op, "x", x)
    check_embeddings(op, "y", y)
    for name, z, letters in (("x", x, "(A, T, D)"), ("y", y, "(B, S, D)")):
        if z.dim() != 3:
            raise ValueError(
                f"{op}: {name} must have shape {letters}, got {tuple(z.shape)}; to fix, for one "
                f"sequence: {name}[None]"
            )
    if x.shape[2] != y.shape[2]:
        raise ValueError(
            f"{op}: x and y must agree in D, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.device != y.device:
        raise ValueError(f"{op}: x and y must be on one device, got {x.device} and {y.device}")
    wider = torch.promote_types(x.dtype, y.dtype)
    sides = []
    for side, (suffix, z) in enumerate((("_x", x), ("_y", y))):
        z = full_precision(z.to(wider))
        real = prepare_valid(op, suffix, lengths[side], valid[side], *z.shape[:2], z.device)
        order, real = real_first(real)
        z = reorder(z, order)
        sides.append((cosine_frames(z, real, side) if cost == "cosine" else z, real))
    (x, real_x), (y, real_y) = sides
    return x, y, real_x, real_y


_CHUNKS = FusedLoss(
    "soft_dtw_cross",
    "fastseq.ops.soft_dtw",
    inputs=("x", "y", "lengths_x?", "lengths_y?", "gammas?"),
    differentiable=2,
    options=chunks.CrossOptions,
    reference=soft_dtw_reference,  # soft_dtw_cross calls it for all pairs at once
    kept=1,  # always None: an operator with one result has another signature
    shapes=lambda x, y, *_, **__: ((x.shape[0], y.shape[0]), None),
    stem="soft_dtw_cross_chunks",
)
