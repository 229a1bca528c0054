"""ae2_loss: Soft-DTW with softmax costs, and a hinge against the reversed video."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import call_as
from fastseq.ops.common.lengths import Lengths, reorder, valid_mask
from fastseq.ops.gta.options import AE2Options
from fastseq.ops.gta.sides import prepare_sides, real_frames, reduce_pairs
from fastseq.ops.soft_dtw.op import soft_dtw


def ae2_loss(
    x: Tensor,
    y: Tensor,
    *,
    gamma: float = 0.1,
    temperature: float = 0.1,
    softmin: str = "prob",
    margin: float = 0.0,
    ratio: float = 1.0,
    scale: float = 0.01,
    subset_x: Tensor | None = None,
    subset_y: Tensor | None = None,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""AE2's loss of pairs of videos of the same action (Xue and Grauman, NeurIPS 2023), as
    released: alignment, and a hinge against one of the videos in reverse.

    With D = ``scale`` times :func:`fastseq.soft_dtw` with ``cost="softmax"``, and u, v the frames
    of x and y in their subsets::

        loss = (D(x, y) + D(u, v)) / 2 + ratio max(0, D(u, v) - D(u, v reversed) + margin)

    Without subsets u = x and v = y, and the first term is D(x, y). Memory is that of
    :func:`fastseq.soft_dtw`: a small share of T S, except with ``backend="reference"``.

    Args:
        x, y: embeddings (N, T, D) and (N, S, D), or (T, D) and (S, D) for one pair; float64,
            float32, bfloat16 or float16. T and S may differ. They are normalised here; the released
            code compares unnormalised embeddings by their product.
        gamma: smoothing of Soft-DTW, in the units of the cost. Default 0.1: the released code.
        temperature: divisor of the cosine similarities. Default 0.1: the released code.
        softmin: "prob" (the released default), "logsumexp" (the released minGamma) or "sparse":
            see :func:`fastseq.soft_dtw`.
        margin: the released dtw_beta, in the units of D, 0 or more. Default 0: the released code.
        ratio: weight of the hinge, the released dtw_ratio, 0 or more. Default 1: the released code
            (its data sets use 1, 2 and 4).
        scale: factor of all Soft-DTW values, the released dtw_scale_factor. Default 0.01: the
            released code.
        subset_x, subset_y: (N, T) and (N, S) bool, True = frame that the hinge compares. Default:
            all real frames. The released code draws 30 of 32, 16 of 32 or 10 of 20 frames, with
            the confidence of hand and object boxes as the probability; and one half of them, the
            first or the second, for actions that return to their first pose.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Padding
            is ignored, even if it contains NaN.
        reduction: "none": (N,); "sum"; or "mean", over the pairs where both lengths are > 0.
        backend: "auto" or a backend of :func:`fastseq.soft_dtw`. Only "reference" can be
            differentiated twice.

    Returns:
        A scalar, or (N,) with ``reduction="none"`` (a scalar for one pair): float64 for float64
        inputs, otherwise float32. Gradients have the dtypes of x and y. A pair with a length 0 has
        value 0 and gradient 0. A pair whose subset is empty on either side has D(u, v) = 0.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it, or a backend other than
            "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> x, y = torch.randn(4, 32, 128), torch.randn(4, 32, 128)
        >>> fastseq.ae2_loss(x, y, ratio=2.0, lengths_y=[32, 32, 20, 7]).shape
        torch.Size([])
    """
    op = "ae2_loss"
    opts = AE2Options.checked(op, gamma, temperature, softmin, margin, ratio, scale, reduction)
    *sides, unbatched = prepare_sides(op, x, y, (lengths_x, lengths_y), (valid_x, valid_y))
    full = [real_frames(*side) for side in sides]
    u, v = (
        whole if subset is None else _subset(op, name, *side, subset)
        for name, whole, side, subset in zip(
            ("subset_x", "subset_y"), full, sides, (subset_x, subset_y), strict=True
        )
    )
    pairs = [(u, v), (u, _reversed(*v))]
    if subset_x is not None or subset_y is not None:
        pairs.append((full[0], full[1]))
    # One call: on a GPU it takes hardly longer than that of the longest pair.
    (frames_x, real_x), (frames_y, real_y) = (
        tuple(torch.cat(parts) for parts in zip(*side, strict=True))
        for side in zip(*pairs, strict=True)
    )
    values = call_as(
        op,
        soft_dtw,
        frames_x,
        frames_y,
        gamma=opts.gamma,
        cost="softmax",
        temperature=opts.temperature,
        softmin=softmin,
        lengths_x=real_x,
        lengths_y=real_y,
        backend=backend,
    )
    aligned, against, *whole = (opts.scale * values).view(len(pairs), len(u[0])).unbind()
    hinge = (aligned - against + opts.margin).clamp(min=0)
    terms = (whole[0] + aligned) / 2 if whole else aligned
    values = terms + opts.ratio * hinge
    return reduce_pairs(values, full[0][1], full[1][1], reduction, unbatched)


def _subset(op: str, name: str, z: Tensor, valid: Tensor | None, subset: Tensor):
    """Embeddings with the real frames of the subset first, and their number (N,)."""
    if not isinstance(subset, Tensor) or subset.dtype != torch.bool:
        what = subset.dtype if isinstance(subset, Tensor) else type(subset).__name__
        raise TypeError(f"{op}: {name} must be a bool tensor (True = in the hinge), got {what}")
    num, frames, _ = z.shape
    if subset.dim() == 1 and num == 1:
        subset = subset[None]
    if subset.shape != (num, frames):
        raise ValueError(f"{op}: {name} must have shape {(num, frames)}, got {tuple(subset.shape)}")
    return real_frames(z, valid_mask(valid, num, frames, z.device) & subset.to(z.device))


def _reversed(z: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The first ``lengths`` frames of each sequence in reverse; padding stays behind them."""
    place = torch.arange(z.shape[1], device=z.device).expand(z.shape[:2])
    order = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return reorder(z, order), lengths
