"""contrastive_idm: argument checks, choice of backend, and the link to PyTorch."""

import functools
import warnings

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import choose_triton_or_torch, constant_under_compile
from fastseq.ops.common.fused import FusedLoss
from fastseq.ops.common.lengths import Lengths, compact, prepare_times, prepare_valid
from fastseq.ops.common.short import kept_pairs
from fastseq.ops.common.validate import check_embeddings, renamed
from fastseq.ops.contrastive_idm.options import CIDMOptions
from fastseq.ops.contrastive_idm.reference import contrastive_idm_reference

# Above this number of frames the squared gaps of eq. 7 outgrow a Soft-DTW of that length.
LARGE_SCALE_FROM = 128


def contrastive_idm(
    z: Tensor,
    t: Tensor | None = None,
    *,
    window: float | Tensor = 10.0,
    margin: float = 2.0,
    kind: str = "contrastive",
    weights: str = "paper",
    distance: str = "sqeuclidean",
    lengths: Lengths = None,
    valid: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    form: str | None = None,
) -> Tensor:
    r"""Contrastive inverse difference moment of each sequence with itself (LAV, eq. 7).

    Frames that are near in time are pulled together; frames further apart than ``window`` are
    pushed apart until their distance reaches ``margin``. With g_ij = |t_i - t_j| and
    D_ij = ||z_i - z_j||^2, over all ordered pairs of real frames::

        contrastive:  sum_ij  D_ij / (g_ij^2 + 1)                     where g_ij <= window
                              (g_ij^2 + 1) max(0, margin - D_ij)      where g_ij > window
        idm:          sum_ij  -(g_ij^2 + 1) D_ij                      (eq. 6; no bound from below)
        sfa:          sum_ij  D_ij, or max(0, margin - D_ij)          (eq. 7 without its weights)

    Memory grows with N T D, not with N T^2, except with ``backend="reference"``.

    Args:
        z: embeddings (N, T, D), or (T, D) for one sequence; float64, float32, bfloat16 or float16.
            They are not normalised here. LAV normalises them, so that D_ij lies between 0 and 4.
        t: times (T,) or (N, T) of integers or floats, in any order; duplicates allowed. Default:
            the frame index. No gradient is computed for them.
        window: sigma, in the unit of t; or a tensor (N,) with one for each sequence. A gap equal to
            the window counts as near. Default 10.0: the released code, in frames of the video.
        margin: lambda, in the unit of D. Default 2.0: the released code, on normalised embeddings.
            At exactly the margin the gradient is 0.
        kind: "contrastive", "idm" or "sfa" as above, the three that LAV's Table 1 compares.
        weights: "paper", or "code": near pairs have weight 1 as in the released code, which also
            divides its times by the video's length (see :func:`fastseq.lav_loss`). No effect on
            "idm" and "sfa".
        distance: "sqeuclidean", or "euclidean": D_ij = ||z_i - z_j||, whose gradient is 0 where
            frames are equal.
        lengths: (N,) integers: the number of real frames at the start of each sequence.
        valid: (N, T) bool, True = real frame; pass this or lengths. Padding is ignored, even if it
            contains NaN.
        reduction: "none": (N,), the sums above; "sum": their sum; "mean": each sum divided by its
            number of pairs, length^2, then averaged over sequences with at least one frame.
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device) or "reference"
            (dense; the only one that can be differentiated twice).
        form: the former name of ``kind``, accepted until version 0.3.

    Returns:
        A scalar, or (N,) with ``reduction="none"`` (a scalar for one sequence): float64 for float64
        inputs, otherwise float32. The gradient has the dtype of z. One frame: 0 with gradient 0.

    With times in frames, eq. 7 grows like T^4: about 6e8 at T = 480, beside a Soft-DTW of about
    600. Above T = 128 a warning states this once if t is missing or integer. Times in seconds or as
    fractions of the video (floats) do not have that scale, nor does kind="sfa".

    Raises:
        TypeError: wrong dtype or type, or form together with another kind. ValueError: wrong shape
            or option value.
        RuntimeError: a backend named in the call does not support it (it is never replaced), or
            a backend other than "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> z = torch.tensor([[0.0], [1.0], [1.5]])
        >>> fastseq.contrastive_idm(z, window=1, margin=4.0, reduction="sum").item()
        18.75
    """
    op = "contrastive_idm"
    if form is not None:
        kind = renamed(op, "form", form, "kind", kind, "contrastive")
    check_embeddings(op, "z", z)
    unbatched = z.dim() == 2
    if unbatched:
        z = z[None]
    num, frames, _ = z.shape
    windows = None
    if isinstance(window, Tensor):
        windows, window = _prepare_windows(op, window, num, z.device), 0.0
    opts = CIDMOptions.checked(op, window, margin, kind, weights, distance, reduction)
    t = prepare_times(op, "t", t, num, frames, z.device)
    valid = prepare_valid(op, "", lengths, valid, num, frames, z.device)
    z, t, lengths = compact(z, t, valid)
    name, _ = resolve_backend(backend, z.device.type, z.dtype)
    grows = kind == "idm" or (kind == "contrastive" and weights == "paper")
    counts = t is None or not t.is_floating_point()
    if grows and counts and frames > LARGE_SCALE_FROM and not torch.compiler.is_compiling():
        _warn_large_scale()
    loss = FUSED(name, opts, z, t, lengths, windows)
    return loss[0] if unbatched and reduction == "none" else loss


def _prepare_windows(op: str, window: Tensor, num: int, device: torch.device) -> Tensor:
    if window.is_complex() or window.dtype == torch.bool:
        raise TypeError(f"{op}: window must be integers or floats, got {window.dtype}")
    if window.shape not in ((num,), ()):
        raise ValueError(
            f"{op}: window must be a number or have shape ({num},), got {tuple(window.shape)}"
        )
    if window.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = [w for w in window.flatten().tolist() if not 0 <= w <= 1e30]
        if wrong:
            raise ValueError(f"{op}: window must be finite and at least 0, got {wrong[0]}")
    if window.dtype not in (torch.float32, torch.float64):
        window = window.float()
    return window.detach().expand(num).to(device=device, copy=True)


@functools.cache
def _warn_large_scale() -> None:
    warnings.warn(
        f"contrastive_idm: with more than {LARGE_SCALE_FROM} frames the weights (gap^2 + 1) of "
        "the paper's form dwarf every other loss (about 6e8 at T = 480 as a sum, beside a Soft-DTW "
        "of about 600); to fix: t in seconds or in fractions of the video, kind='sfa' or "
        "fastseq.lav_loss(form='code')",
        stacklevel=3,
    )


@constant_under_compile
def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend for such a call, and why it was picked. Depends only on the arguments and the
    environment."""
    return choose_triton_or_torch("contrastive_idm", requested, device_type, dtype)


def _shapes(z, t, lengths, windows, backend: str, opts: CIDMOptions, needs):
    """Shapes of the loss, of the reduction's coefficients, and of the numbers that the backend
    "torch" keeps for each pair."""
    loss = z.shape[:1] if opts.reduction == "none" else ()
    return loss, z.shape[:1], kept_pairs(z, z, needs) if backend == "torch" else None


FUSED = FusedLoss(
    "contrastive_idm",
    "fastseq.ops.contrastive_idm",
    inputs=("z", "t?", "lengths?", "windows?"),
    differentiable=1,
    options=CIDMOptions,
    reference=contrastive_idm_reference,
    kept=2,
    shapes=_shapes,
)
