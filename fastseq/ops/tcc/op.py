"""tcc_loss: checks, choice of backend, autograd, torch.library registration."""

import functools
import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import (
    choose_triton_or_torch,
    gradient,
    no_autocast,
    refuse_forward_mode,
    refuse_transforms,
)
from fastseq.ops.common.lengths import prepare_duration, prepare_times, prepare_valid
from fastseq.ops.common.validate import (
    check_bool,
    check_choice,
    check_embeddings,
    check_nonnegative,
    check_pair,
    check_positive,
)
from fastseq.ops.tcc.options import LOSS_TYPES, REDUCTIONS, SIMILARITIES, TCCOptions
from fastseq.ops.tcc.reference import tcc_reference

Lengths = Tensor | Sequence[int] | int | None
Durations = Tensor | Sequence[float] | float | None


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
    temperature: float = 0.1,
    variance_lambda: float = 0.001,
    label_smoothing: float = 0.1,
    huber_delta: float = 0.1,
    normalize_indices: bool = True,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Temporal cycle-consistency (Dwibedi et al., 2019): frames of u that go to v and come back.

    For each ordered pair (u, v) of sequences and each real frame i of u::

        sim(a, b) = -||a - b||^2 / D / temperature          or  <a, b> / D / temperature
        nn_i      = sum_j softmax_j(sim(u_i, v_j)) v_j      the soft nearest neighbour in v
        beta_i    = softmax_k(sim(nn_i, u_k))               where in u the cycle ends
        pred_i    = sum_k beta_ik t_k,  var_i = sum_k beta_ik (t_k - pred_i)^2

        regression_mse_var  (pred_i - t_i)^2 / var_i + variance_lambda log var_i
        regression_mse      (pred_i - t_i)^2
        regression_huber    the same below huber_delta, beyond it linear, as in torch.nn.HuberLoss
        classification      cross-entropy of beta_i with label i, smoothed by label_smoothing

    The value is that of the released code with its deterministic matching. Memory grows with N T,
    not with T^2, except with ``backend="reference"``.

    Args:
        x: embeddings (N, T, D); float64, float32, bfloat16 or float16. Without y, all N (N - 1)
            ordered pairs of its sequences are compared (TCC; one sequence alone gives 0).
        y: (N, Ty, D), then each pair (x_n, y_n) is compared in both directions (LAV). For one pair
            (T, D) and (Ty, D) will do.
        tx, ty: times (T,) or (N, T), any unit; with y both or neither. Default: the frame index.
            Constants: no gradient.
        duration_x, duration_y: lengths of the videos in the units of t, (N,) or one for all:
            "seq_lens" of the released code. Default as there: the number of (real) frames.
        loss_type: as above. Default: the released configuration.
        similarity: "l2" or "cosine", which is the released code's name for a plain product;
            normalise the embeddings for a cosine. Both are divided by the number of channels:
            unit vectors of 128 channels at temperature 0.1 give scores in [-0.31, 0] and next to
            uniform softmaxes.
        temperature, variance_lambda, label_smoothing, huber_delta: 0.1, 0.001, 0.1, 0.1: the
            released configuration. Smoothing only concerns the classification.
        normalize_indices: divide times by the duration first, so that errors are fractions of the
            video.
        lengths_x, lengths_y: (N,) integers, frames that are real (a prefix). Padding never
            matters, not even NaN.
        reduction: "none": (N,), the sum over cycles: of both directions of a pair, or without y
            of those that start in sequence n; "sum": its sum; "mean": that divided by the number
            of cycles, that is of real frames over all ordered pairs (released code).
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device) or "reference"
            (dense; the only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) with ``reduction="none"``: float64 for float64 inputs, otherwise float32.
        Gradients have the dtypes of x and y.

    A variance counts as at least 1e-12 squared durations: where a softmax has collapsed to one
    frame the released code divides by 0. Pairs with an empty sequence contribute nothing; without
    any pair the result is 0 with zero gradients. Nothing keeps an encoder from counting frames
    (positional encodings, recurrence): then the loss is small and means nothing.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend asked for by name cannot serve the call (it never falls back), or
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
                "sequence has no other to be compared with"
            )
        given = {"ty": ty, "duration_y": duration_y, "lengths_y": lengths_y}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{op}: {', '.join(extra)} given without y")
    else:
        check_pair(op, "x", x, "y", y)
        if (tx is None) != (ty is None):
            raise ValueError(f"{op}: give both tx and ty or neither")
    opts = check_options(
        op,
        loss_type,
        similarity,
        temperature,
        variance_lambda,
        label_smoothing,
        huber_delta,
        normalize_indices,
        reduction,
    )
    unbatched = x.dim() == 2
    if unbatched:
        x, y = x[None], y[None]
    if y is not None and x.dtype != y.dtype:
        wider = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(wider), y.to(wider)
    sides = [
        _frames(op, *one, x.device)
        for one in (
            ("x", x, tx, lengths_x, duration_x),
            ("y", y, ty, lengths_y, duration_y),
        )
    ]
    tensors = (x, y, *(pair for both in zip(*sides, strict=True) for pair in both))
    name, _ = resolve_backend(backend, x.device.type, x.dtype)
    if name == "reference":
        with no_autocast(x.device.type):
            loss = tcc_reference(*tensors, opts)
    else:
        refuse_transforms(op, name)
        keep = torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in (x, y))
        if torch.compiler.is_compiling():
            loss = _forward_op(*tensors, name, *opts, keep)[0]
        else:
            loss = _TCC.apply(*tensors[:2], tensors[2:], name, opts, keep)
    return loss[0] if unbatched and reduction == "none" else loss


def check_options(
    op: str,
    loss_type: str,
    similarity: str,
    temperature: float,
    variance_lambda: float,
    label_smoothing: float,
    huber_delta: float,
    normalize_indices: bool,
    reduction: str,
) -> TCCOptions:
    check_choice(op, "loss_type", loss_type, LOSS_TYPES)
    check_choice(op, "similarity", similarity, SIMILARITIES)
    check_bool(op, "normalize_indices", normalize_indices)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    return TCCOptions(
        loss_type,
        similarity,
        check_positive(op, "temperature", temperature),
        check_nonnegative(op, "variance_lambda", variance_lambda),
        check_nonnegative(op, "label_smoothing", label_smoothing, below=1),
        check_positive(op, "huber_delta", huber_delta),
        normalize_indices,
        reduction,
    )


def _frames(op, suffix, z, t, lengths, duration, device):
    """(times, what is real, durations) of one side."""
    if z is None:
        return None, None, None
    num, frames = z.shape[:2]
    return (
        prepare_times(op, f"t{suffix}", t, num, frames, device),
        prepare_valid(op, f"_{suffix}", lengths, None, num, frames, device),
        prepare_duration(op, f"duration_{suffix}", duration, num, device),
    )


def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend that serves such a call, and why. Reads nothing but its arguments and the
    environment."""
    return choose_triton_or_torch("tcc_loss", requested, device_type, dtype)


# What torch.compiler.assume_constant_result does, without importing torch._dynamo (3 s) for it.
resolve_backend._dynamo_marked_constant = True


@functools.cache
def _backend(name: str):
    return importlib.import_module(f"fastseq.ops.tcc.{name}")


def _forward(tensors, name: str, opts: TCCOptions, keep: bool):
    with no_autocast(tensors[0].device.type):
        return _backend(name).forward(*tensors, opts, keep)


def _backward(grad, tensors, name: str, opts: TCCOptions) -> tuple[Tensor, Tensor | None]:
    with no_autocast(grad.device.type):
        return _backend(name).backward(grad, *tensors, opts)


class _TCC(torch.autograd.Function):
    """Eager path: no torch.library boundary, which costs 15 to 60 us a call."""

    jvp = refuse_forward_mode("tcc_loss")

    @staticmethod
    def forward(ctx, x, y, constants, name, opts, keep):
        # Arguments of their own would cost 2 us each, for gradients that these do not have.
        tensors = (x, y, *constants)
        loss, *kept = _forward(tensors, name, opts, keep)
        ctx.save_for_backward(*tensors, *kept)
        ctx.name, ctx.opts = name, opts
        return loss

    @staticmethod
    def backward(ctx, grad):
        dx, dy = gradient(_TCCBackward, grad, ctx.name, ctx.opts, *ctx.saved_tensors)
        return dx, dy, None, None, None, None


class _TCCBackward(torch.autograd.Function):
    """The gradient as a node of its own, so that differentiating it again is an error."""

    @staticmethod
    def forward(ctx, grad, name, opts, *tensors):
        return _backward(grad, tensors, name, opts)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(_TWICE)


_TWICE = (
    "tcc_loss: this backend cannot be differentiated twice (gradient penalties, Hessian-vector "
    'products); to fix: tcc_loss(..., backend="reference")'
)

# Under torch.compile the calls cross the torch.library boundary instead.
_INPUTS = (
    "Tensor x, Tensor? y, Tensor? tx, Tensor? ty, Tensor? valid_x, Tensor? valid_y, "
    "Tensor? duration_x, Tensor? duration_y"
)
_OPTS = (
    "str backend, str loss_type, str similarity, float temperature, float variance_lambda, "
    "float label_smoothing, float huber_delta, bool normalize_indices, str reduction"
)


@torch.library.custom_op(
    "fastseq::tcc_forward",
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTS}, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _forward_op(*args):
    loss, dx, dy = _forward(args[:8], args[8], TCCOptions(*args[9:-1]), args[-1])
    # An op cannot return None: an empty tensor stands for what is not there.
    return loss, *(loss.new_empty(0) if d is None else d for d in (dx, dy))


@_forward_op.register_fake
def _(*args):
    (x, y), opts, keep = args[:2], TCCOptions(*args[9:-1]), args[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    keep = keep and (y is not None or opts.reduction != "none")
    shapes = (
        x.shape[:1] if opts.reduction == "none" else (),
        x.shape if keep else (0,),
        y.shape if keep and y is not None else (0,),
    )
    return tuple(x.new_empty(shape, dtype=dtype) for shape in shapes)


@torch.library.custom_op(
    "fastseq::tcc_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor? kept_x, Tensor? kept_y, {_OPTS}) -> (Tensor, Tensor)",
)
def _backward_op(grad, *args):
    dx, dy = _backward(grad, args[:10], args[10], TCCOptions(*args[11:]))
    return dx, dx.new_empty(0) if dy is None else dy


@_backward_op.register_fake
def _(grad, x, y, *rest):
    return x.new_empty(x.shape), x.new_empty(0) if y is None else y.new_empty(y.shape)


def _setup_context(ctx, inputs, output):
    y = inputs[1]
    kept_x, kept_y = output[1:]
    keep = inputs[-1] and (y is not None or TCCOptions(*inputs[9:-1]).reduction != "none")
    ctx.save_for_backward(
        *inputs[:8], kept_x if keep else None, kept_y if keep and y is not None else None
    )
    ctx.options = inputs[8:-1]


def _autograd(ctx, grad, *grad_kept):
    dx, dy = _backward_op(grad, *ctx.saved_tensors, *ctx.options)
    return dx, None if ctx.saved_tensors[1] is None else dy, *[None] * 16


def _raise_twice(ctx, *grads):
    raise RuntimeError(_TWICE)


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
_backward_op.register_autograd(_raise_twice)
