"""lav_loss: combines soft_dtw and contrastive_idm, in the paper's form and the released one."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import call_as, choose_backend, no_autocast
from fastseq.ops.common.lengths import (
    Durations,
    Lengths,
    compact,
    nonempty_pairs,
    prepare_duration,
    prepare_times,
    prepare_valid,
)
from fastseq.ops.common.validate import check_pair
from fastseq.ops.contrastive_idm.op import contrastive_idm
from fastseq.ops.lav.options import LAVOptions
from fastseq.ops.lav.reference import lav_reference
from fastseq.ops.soft_dtw.op import soft_dtw


def lav_loss(
    x: Tensor,
    y: Tensor,
    tx: Tensor | None = None,
    ty: Tensor | None = None,
    *,
    duration_x: Durations = None,
    duration_y: Durations = None,
    gamma: float = 0.1,
    alpha: float = 0.5,
    window: float = 10.0,
    margin: float = 2.0,
    form: str = "paper",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    cost: str = "sqeuclidean",
    divergence: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""LAV's loss of pairs of videos of the same action (eq. 8).

    With :func:`fastseq.soft_dtw` and the sum I of :func:`fastseq.contrastive_idm` (eq. 7)::

        paper:   soft_dtw(x, y) + alpha (I(x) + I(y))
        code:    (soft_dtw(x, y) + alpha (I(x) + I(y))) / T, where I has near weights 1, times
                 t / duration and window / duration

    Args:
        x, y: embeddings (N, T, D) and (N, S, D), or (T, D) and (S, D) for one pair; float64,
            float32, bfloat16 or float16. The paper's margin and gamma assume embeddings of norm 1.
        tx, ty: times (T,) or (N, T). Default: the frame index. For "code": raw frame indices.
        duration_x, duration_y: for "code", the videos' lengths in the unit of t (frames): a number
            or (N,). Unused with "paper".
        gamma: smoothing of Soft-DTW. Default 0.1: the released code.
        alpha: weight of the regularisation, 0 or more. Default 0.5: the released code. With 0 the
            embeddings collapse (the paper's Table 1).
        window, margin: see :func:`fastseq.contrastive_idm`; window in the unit of t.
        form: "paper", or "code" for the loss of the released code: weights between 1 and 2, so
            that both terms have one scale. T is the mean of both sequences' real lengths. Times and
            window are divided in float32 as there, which decides whether a gap equals the window;
            where that matters compare raw frames (:func:`fastseq.contrastive_idm`).
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Padding
            is ignored, even if it contains NaN.
        cost: cost of Soft-DTW, "sqeuclidean" or "cosine".
        divergence: Soft-DTW's divergence instead of its value (the released SDTW_NORMALIZE).
        reduction: "none": (N,); "sum"; or "mean", over the pairs where both lengths are > 0.
        backend: "auto" (picked for each part), "torch" (any device) or "reference" (dense; the
            only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) with ``reduction="none"`` (a scalar for one pair): float64 for float64
        inputs, otherwise float32. Gradients have the dtypes of x and y. A pair with a length 0 has
        value 0 and gradient 0.

    With "paper" and times in frames the regularisation grows like T^4, Soft-DTW like T: above
    128 frames a warning states this once.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value, or "code" without
            durations. RuntimeError: a backend named in the call does not support it.

    Example:
        >>> import torch, fastseq
        >>> x = torch.nn.functional.normalize(torch.randn(2, 20, 128), dim=-1)
        >>> y = torch.nn.functional.normalize(torch.randn(2, 20, 128), dim=-1)
        >>> tx, ty = (torch.rand(2, 2, 20) * 300).long().sort(2).values
        >>> loss = fastseq.lav_loss(x, y, tx, ty, duration_x=300, duration_y=300, form="code")
        >>> loss.shape
        torch.Size([])
    """
    op = "lav_loss"
    check_pair(op, "x", x, "y", y)
    opts = LAVOptions.checked(op, gamma, alpha, window, margin, form, cost, divergence, reduction)
    name, _ = choose_backend(op, backend, {"auto": None, "torch": None, "reference": None})
    unbatched = x.dim() == 2
    if unbatched:
        x, y = x[None], y[None]
    (num, frames_x, _), frames_y, device = x.shape, y.shape[1], x.device
    tx = prepare_times(op, "tx", tx, num, frames_x, device)
    ty = prepare_times(op, "ty", ty, num, frames_y, device)
    valid_x = prepare_valid(op, "_x", lengths_x, valid_x, num, frames_x, device)
    valid_y = prepare_valid(op, "_y", lengths_y, valid_y, num, frames_y, device)
    x, tx, real_x = compact(x, tx, valid_x)
    y, ty, real_y = compact(y, ty, valid_y)
    pairs = nonempty_pairs(num, frames_x, frames_y, real_x, real_y, device)
    if pairs is not None:  # drop both sides of a pair if one of them is empty
        real_x = torch.where(pairs, frames_x if real_x is None else real_x, 0)
        real_y = torch.where(pairs, frames_y if real_y is None else real_y, 0)

    windows: tuple[Tensor | None, Tensor | None] = (None, None)
    if form == "code":
        tx, window_x = _shares(op, "duration_x", duration_x, tx, opts.window, num, frames_x, device)
        ty, window_y = _shares(op, "duration_y", duration_y, ty, opts.window, num, frames_y, device)
        windows = window_x, window_y
    if name == "reference":
        sides = x, y, tx, ty, real_x, real_y
        with no_autocast(device.type):
            values = lav_reference(*sides, windows, opts)
    else:
        options = {"margin": opts.margin, "weights": form, "reduction": "none", "backend": name}
        values = call_as(
            op,
            soft_dtw,
            x,
            y,
            gamma=opts.gamma,
            cost=cost,
            lengths_x=real_x,
            lengths_y=real_y,
            divergence=divergence,
            backend=name,
        )
        for z, t, lengths, own in ((x, tx, real_x, windows[0]), (y, ty, real_y, windows[1])):
            within = opts.window if own is None else own
            idm = call_as(op, contrastive_idm, z, t, window=within, lengths=lengths, **options)
            values = values + opts.alpha * idm
    if form == "code":
        sizes = [
            frames if lengths is None else lengths.clamp(0, frames)
            for lengths, frames in ((real_x, frames_x), (real_y, frames_y))
        ]
        total = sizes[0] + sizes[1]
        values = 2 * values / (max(total, 1) if isinstance(total, int) else total.clamp(min=1))
    if reduction == "none":
        return values[0] if unbatched else values
    if reduction == "mean":
        count = max(num, 1) if pairs is None else pairs.sum().clamp(min=1)
        return values.sum() / count
    return values.sum()


def _shares(op, name, duration, t, window, num, frames, device) -> tuple[Tensor, Tensor]:
    """Times and window as fractions of each video, in float32 as in the released code."""
    durations = prepare_duration(op, name, duration, num, device)
    if durations is None:
        raise ValueError(
            f"{op}: form='code' needs {name}, the length of each video in the unit of its times: "
            "pass a number or (N,)"
        )
    durations = durations.float()
    if t is None:
        t = torch.arange(frames, device=device).expand(num, frames)
    return t.float() / durations[:, None], window / durations
