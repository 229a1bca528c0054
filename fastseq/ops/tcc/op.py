"""tcc_loss: argument checks, choice of backend, and the link from its backends to PyTorch."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import choose_triton_or_torch, constant_under_compile
from fastseq.ops.common.fused import FusedLoss
from fastseq.ops.common.lengths import (
    Durations,
    Lengths,
    compact,
    prepare_duration,
    prepare_times,
    prepare_valid,
)
from fastseq.ops.common.validate import check_embeddings, check_pair, check_scalar
from fastseq.ops.tcc.options import TCCOptions
from fastseq.ops.tcc.reference import tcc_reference


def tcc_loss(
    x: Tensor,
    y: Tensor | None = None,
    tx: Tensor | None = None,
    ty: Tensor | None = None,
    *,
    duration_x: Durations = None,
    duration_y: Durations = None,
    loss_type: str = "regression_mse_var",
    similarity: str = "l2",
    temperature: float | Tensor = 0.1,
    variance_lambda: float = 0.001,
    label_smoothing: float = 0.1,
    huber_delta: float = 0.1,
    normalize_indices: bool = True,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Temporal cycle-consistency (Dwibedi et al., 2019): cycles from u to v and back to u.

    For each ordered pair (u, v) of sequences and each real frame i of u::

        sim(a, b) = -||a - b||^2 / D / temperature          or  <a, b> / D / temperature
        nn_i      = sum_j softmax_j(sim(u_i, v_j)) v_j      the soft nearest neighbour in v
        beta_i    = softmax_k(sim(nn_i, u_k))               the position in u where the cycle ends
        pred_i    = sum_k beta_ik t_k,  var_i = sum_k beta_ik (t_k - pred_i)^2

        regression_mse_var  (pred_i - t_i)^2 / var_i + variance_lambda log var_i
        regression_mse      (pred_i - t_i)^2
        regression_huber    (pred_i - t_i)^2 / 2 up to huber_delta, linear beyond (nn.HuberLoss)
        classification      cross-entropy of beta_i with label i, smoothed by label_smoothing

    The value is that of the released code with its deterministic matching. Memory grows with N T,
    not with N T^2, except with ``backend="reference"``.

    Args:
        x: embeddings (N, T, D); float64, float32, bfloat16 or float16. Without y, all N (N - 1)
            ordered pairs of its sequences are compared (TCC; a single sequence returns 0).
        y: (N, S, D); each pair (x_n, y_n) is compared in both directions (LAV). A single pair may
            be (T, D) and (S, D).
        tx, ty: times (T,) or (N, T) of integers or floats, in any unit. With y, pass both or
            neither. Default: the frame index. No gradient is computed for them.
        duration_x, duration_y: lengths of the videos in the units of t, (N,) or a number for all:
            "seq_lens" of the released code. Default as there: the number of (real) frames. Pass
            it with a mask that has gaps: the default times then reach up to T - 1.
        loss_type: one of the above. Default: the released configuration.
        similarity: "l2" or "cosine", which is the released code's name for a plain product;
            normalise the embeddings for a cosine. Both are divided by the number of channels. Unit
            vectors of 128 channels at temperature 0.1 then have scores in [-0.31, 0] and nearly
            uniform softmaxes.
        temperature, variance_lambda, label_smoothing, huber_delta: defaults 0.1, 0.001, 0.1, 0.1:
            the released configuration. Smoothing applies to the classification only. The
            temperature may be a floating 0-dim tensor on the device of x or on the CPU; it is
            differentiated if it requires a gradient. torch.compile compiles once for all its
            values. It is never read from a GPU or under torch.compile: if it is not positive and
            finite there, every loss is NaN.
        normalize_indices: divide times by the duration first, so that errors are fractions of the
            video.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Padding
            is ignored, even if it contains NaN.
        reduction: "none": (N,), the sum over cycles: with y, of both directions of a pair; without
            y, of the cycles that start in sequence n. "sum": the sum of that. "mean": the sum
            divided by the number of cycles, i.e. of real frames over all ordered pairs (released
            code).
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device) or "reference"
            (dense; the only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) with ``reduction="none"``: float64 for float64 inputs, otherwise float32.
        Gradients have the dtypes of x and y.

    A variance counts as at least 1e-12 squared durations; the released code divides by 0 where a
    softmax has collapsed to one frame. Pairs with an empty sequence contribute nothing; without
    any pair the result is 0 with zero gradients. An encoder that can count frames (positional
    encodings, recurrence) can make the loss small without learning the content.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it (it is never replaced), or
            a backend other than "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> x = torch.eye(4)
        >>> round(fastseq.tcc_loss(x, x, temperature=0.2).item(), 4)
        0.2265
    """
    op = "tcc_loss"
    if y is None:
        check_embeddings(op, "x", x)
        if x.dim() != 3:
            raise ValueError(
                f"{op}: without y, x must have shape (N, T, D), got {tuple(x.shape)}; a single "
                "sequence has no other sequence to be compared with"
            )
        given = {"ty": ty, "duration_y": duration_y, "lengths_y": lengths_y, "valid_y": valid_y}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{op}: {', '.join(extra)} passed without y")
    else:
        check_pair(op, "x", x, "y", y)
        if (tx is None) != (ty is None):
            raise ValueError(f"{op}: pass both tx and ty or neither")
    number, tau = check_scalar(op, "temperature", temperature, x.device)
    opts = TCCOptions.checked(
        op,
        loss_type,
        similarity,
        number,
        variance_lambda,
        label_smoothing,
        huber_delta,
        normalize_indices,
        reduction,
    )
    unbatched = x.dim() == 2
    if unbatched:
        x, y = x[None], None if y is None else y[None]
    if y is not None and x.dtype != y.dtype:
        wider = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(wider), y.to(wider)
    sides = [
        _frames(op, *one, x.device)
        for one in (
            ("x", x, tx, lengths_x, valid_x, duration_x),
            ("y", y, ty, lengths_y, valid_y, duration_y),
        )
    ]
    x, y, *constants = (tensor for both in zip(*sides, strict=True) for tensor in both)
    name, _ = resolve_backend(backend, x.device.type, x.dtype)
    loss = FUSED(name, opts, x, y, tau, *constants)
    return loss[0] if unbatched and reduction == "none" else loss


def _frames(op, suffix, z, t, lengths, valid, duration, device):
    """(embeddings, times, lengths, durations) of one side."""
    if z is None:
        return None, None, None, None
    num, frames = z.shape[:2]
    t = prepare_times(op, f"t{suffix}", t, num, frames, device)
    valid = prepare_valid(op, f"_{suffix}", lengths, valid, num, frames, device)
    return *compact(z, t, valid), prepare_duration(op, f"duration_{suffix}", duration, num, device)


@constant_under_compile
def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend for such a call, and why it was picked. Depends only on the arguments and the
    environment."""
    return choose_triton_or_torch("tcc_loss", requested, device_type, dtype)


def _shapes(x, y, tau, tx, ty, valid_x, valid_y, duration_x, duration_y, backend: str, opts, needs):
    """Shapes of the loss, and of its gradients with respect to x and y."""
    # Without y each sequence contributes to the losses of all others.
    keep = any(needs) and (y is not None or opts.reduction != "none")
    return (
        x.shape[:1] if opts.reduction == "none" else (),
        x.shape if keep else None,
        y.shape if keep and y is not None else None,
    )


FUSED = FusedLoss(
    "tcc_loss",
    "fastseq.ops.tcc",
    inputs=(
        *("x", "y?", "tau?"),  # must differ from the option's name
        *("tx?", "ty?", "valid_x?", "valid_y?", "duration_x?", "duration_y?"),
    ),
    differentiable=3,
    options=TCCOptions,
    reference=tcc_reference,
    kept=2,
    shapes=_shapes,
    contiguous=False,
)
