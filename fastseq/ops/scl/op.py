"""scl_loss: checks, choice of backend, autograd, torch.library registration."""

import functools
import importlib

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import (
    choose_triton_or_torch,
    gradient,
    inside_custom_op,
    no_autocast,
    refuse_forward_mode,
    refuse_transforms,
)
from fastseq.ops.common.lengths import prepare_times, prepare_valid
from fastseq.ops.common.validate import check_bool, check_choice, check_pair, check_positive
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS, SCLOptions
from fastseq.ops.scl.reference import scl_reference


def scl_loss(
    z1: Tensor,
    z2: Tensor,
    t1: Tensor | None = None,
    t2: Tensor | None = None,
    *,
    lengths1: Tensor | list[int] | int | None = None,
    lengths2: Tensor | list[int] | int | None = None,
    valid1: Tensor | None = None,
    valid2: Tensor | None = None,
    variance: float = 10.0,
    temperature: float = 0.1,
    normalize: bool = True,
    objective: str = "kl",
    negatives: str = "cross",
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Sequence contrastive loss between two views of each video (CARL, eq. 1 to 3).

    With cosine similarity ``sim``, timestamps ``t`` and both directions alike::

        w_ij = exp(-(t1_i - t2_j)^2 / (2 variance)),  0 beyond sqrt(206 variance), rows sum to 1
        p_ij = exp(sim(z1_i, z2_j) / temperature) / sum_k exp(sim(z1_i, z2_k) / temperature)
        row_i = KL(w_i || p_i)          and the same with the views exchanged

    Memory grows with N T, not with T^2, except with ``backend="reference"``.

    Args:
        z1, z2: embeddings (N, T1, D) and (N, T2, D), or (T1, D) and (T2, D) for one video;
            float64, float32, bfloat16 or float16. T1 and T2 may differ.
        t1, t2: timestamps (T,) or (N, T), any unit, any order, duplicates allowed; both or
            neither. Default: the frame index. Constants: no gradient.
        lengths1, lengths2: (N,) integers, frames that are real (a prefix). Or instead
        valid1, valid2: (N, T) bool, True = real frame. Padding never matters, not even NaN.
        variance: sigma^2 of the Gaussian, in squared units of t. 10 frames^2: CARL, section 4.2.
        temperature: tau. 0.1: CARL, section 4.2.
        normalize: divide each embedding by its L2 norm first (the cosine of the paper).
        objective: "kl" as in the released code, or "ce", the cross-entropy of eq. 1: the same
            gradient, the value differs by the entropy of w.
        negatives: what the softmax runs over. "cross": the other view of the same video (the
            paper; released as ``single_noself``); "video": both views of the same video, the row's
            own frame included (``single``); "batch": the other view, and both views of the other
            videos of the batch (``batch_noself``).
        reduction: "none": (N,), the sum over the real rows of both views; "sum": its sum; "mean":
            that divided by the number of real frames of both views in the batch (released code);
            "paper": L1 + L2 with each view's own mean (eq. 3), averaged over videos that have a
            real frame: twice the gradient of "mean" when all lengths are equal.
        backend: "auto", "triton" (NVIDIA GPU, negatives="cross"), "torch" (blockwise, any device)
            or "reference" (dense; the only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) with ``reduction="none"``: float64 for float64 inputs, otherwise float32.
        Gradients have the dtypes of z1 and z2.

    A row with nothing real within reach contributes exactly 0 loss and gradient and still counts
    in the mean, as in the released code. Without any real row the result is 0 with zero gradients.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend asked for by name cannot serve the call (it never falls back).

    Example:
        >>> import torch, fastseq
        >>> z = torch.eye(4)
        >>> round(fastseq.scl_loss(z, z, variance=0.01).item(), 6)
        0.000136
    """
    check_pair("scl_loss", "z1", z1, "z2", z2)
    opts = SCLOptions(
        check_positive("scl_loss", "variance", variance),
        check_positive("scl_loss", "temperature", temperature),
        normalize,
        objective,
        negatives,
        reduction,
    )
    check_bool("scl_loss", "normalize", normalize)
    check_choice("scl_loss", "objective", objective, OBJECTIVES)
    check_choice("scl_loss", "negatives", negatives, NEGATIVES)
    check_choice("scl_loss", "reduction", reduction, REDUCTIONS)
    if (t1 is None) != (t2 is None):
        raise ValueError("scl_loss: give both t1 and t2 or neither")
    unbatched = z1.dim() == 2
    if unbatched:
        z1, z2 = z1[None], z2[None]
    if z1.dtype != z2.dtype:
        wider = torch.promote_types(z1.dtype, z2.dtype)
        z1, z2 = z1.to(wider), z2.to(wider)
    (n, frames1, _), frames2, device = z1.shape, z2.shape[1], z1.device
    times = (
        prepare_times("scl_loss", "t1", t1, n, frames1, device),
        prepare_times("scl_loss", "t2", t2, n, frames2, device),
    )
    valid = (
        prepare_valid("scl_loss", "1", lengths1, valid1, n, frames1, device),
        prepare_valid("scl_loss", "2", lengths2, valid2, n, frames2, device),
    )
    name, _ = resolve_backend(backend, device.type, z1.dtype, negatives)
    if name == "reference":
        with no_autocast(device.type):
            loss = scl_reference(z1, z2, *times, *valid, opts)
    else:
        refuse_transforms("scl_loss", name)
        if torch.compiler.is_compiling():
            loss = _forward_op(z1, z2, *times, *valid, name, *opts)[0]
        else:
            loss = _SCL.apply(z1, z2, (*times, *valid), name, opts)
    return loss[0] if unbatched and reduction == "none" else loss


def resolve_backend(
    requested: str, device_type: str, dtype: torch.dtype, negatives: str
) -> tuple[str, str]:
    """The backend that serves such a call, and why. Reads nothing but its arguments and the
    environment."""
    no_kernel = None
    if negatives != "cross":
        no_kernel = f"no kernel for negatives={negatives!r} yet; to fix: backend='torch'"
    return choose_triton_or_torch("scl_loss", requested, device_type, dtype, no_kernel)


# What torch.compiler.assume_constant_result does, without importing torch._dynamo (3 s) for it.
resolve_backend._dynamo_marked_constant = True


@functools.cache
def _backend(name: str):
    return importlib.import_module(f"fastseq.ops.scl.{name}")


def _forward(z1, z2, t1, t2, valid1, valid2, name: str, opts: SCLOptions):
    with no_autocast(z1.device.type):
        return _backend(name).forward(z1, z2, t1, t2, valid1, valid2, opts)


def _backward(grad, z1, z2, t1, t2, valid1, valid2, stats, coef, name, opts, need1, need2):
    with no_autocast(z1.device.type):
        return _backend(name).backward(
            grad, z1, z2, t1, t2, valid1, valid2, stats, coef, opts, need1, need2
        )


class _SCL(torch.autograd.Function):
    """Eager path: no torch.library boundary, which costs 15 to 60 us a call."""

    jvp = refuse_forward_mode("scl_loss")

    @staticmethod
    def forward(ctx, z1, z2, constants, name, opts):
        # Arguments of their own would cost 2 us each, for gradients that times do not have.
        z1, z2 = z1.contiguous(), z2.contiguous()
        loss, stats, coef = _forward(z1, z2, *constants, name, opts)
        ctx.save_for_backward(z1, z2, *constants, stats, coef)
        ctx.name, ctx.opts = name, opts
        return loss

    @staticmethod
    def backward(ctx, grad):
        need1, need2 = ctx.needs_input_grad[:2]
        dz1, dz2 = gradient(
            _SCLBackward, grad, *ctx.saved_tensors, ctx.name, ctx.opts, need1, need2
        )
        return dz1, dz2, None, None, None


class _SCLBackward(torch.autograd.Function):
    """The gradient as a node of its own, so that differentiating it again is an error."""

    @staticmethod
    def forward(ctx, grad, z1, z2, t1, t2, valid1, valid2, stats, coef, name, opts, need1, need2):
        return _backward(
            grad, z1, z2, t1, t2, valid1, valid2, stats, coef, name, opts, need1, need2
        )

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(_TWICE)


_TWICE = (
    "scl_loss: this backend cannot be differentiated twice (gradient penalties, Hessian-vector "
    'products); to fix: scl_loss(..., backend="reference")'
)

# Under torch.compile the calls cross the torch.library boundary instead.
_INPUTS = "Tensor z1, Tensor z2, Tensor? t1, Tensor? t2, Tensor? valid1, Tensor? valid2"
_OPTS = (
    "str backend, float variance, float temperature, bool normalize, str objective, "
    "str negatives, str reduction"
)


@torch.library.custom_op(
    "fastseq::scl_forward",
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTS}) -> (Tensor, Tensor, Tensor)",
)
def _forward_op(z1, z2, t1, t2, valid1, valid2, backend, *opts):
    opts = SCLOptions(*opts)
    with inside_custom_op():
        return _forward(z1.contiguous(), z2.contiguous(), t1, t2, valid1, valid2, backend, opts)


@_forward_op.register_fake
def _(z1, z2, t1, t2, valid1, valid2, backend, *opts):
    n, frames = z1.shape[0], z1.shape[1] + z2.shape[1]
    dtype = torch.float64 if z1.dtype == torch.float64 else torch.float32
    shape = (n,) if SCLOptions(*opts).reduction == "none" else ()
    return (
        z1.new_empty(shape, dtype=dtype),
        z1.new_empty((3, n, frames), dtype=dtype),
        z1.new_empty((2, n), dtype=dtype),
    )


@torch.library.custom_op(
    "fastseq::scl_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor stats, Tensor coef, {_OPTS}, bool need1, bool need2)"
    " -> (Tensor, Tensor)",
)
def _backward_op(grad, z1, z2, t1, t2, valid1, valid2, stats, coef, backend, *rest):
    *opts, need1, need2 = rest
    z1, z2 = z1.contiguous(), z2.contiguous()
    dz1, dz2 = _backward(
        grad, z1, z2, t1, t2, valid1, valid2, stats, coef, backend, SCLOptions(*opts), need1, need2
    )
    # An op cannot return None: an empty tensor stands for a gradient nobody asked for.
    return z1.new_empty(0) if dz1 is None else dz1, z2.new_empty(0) if dz2 is None else dz2


@_backward_op.register_fake
def _(grad, z1, z2, t1, t2, valid1, valid2, stats, coef, backend, *rest):
    need1, need2 = rest[-2:]
    return z1.new_empty(z1.shape if need1 else 0), z2.new_empty(z2.shape if need2 else 0)


def _setup_context(ctx, inputs, output):
    _, stats, coef = output
    ctx.save_for_backward(*inputs[:6], stats, coef)
    ctx.options = inputs[6:]


def _autograd(ctx, grad, grad_stats, grad_coef):
    need1, need2 = ctx.needs_input_grad[:2]
    dz1, dz2 = _backward_op(grad, *ctx.saved_tensors, *ctx.options, need1, need2)
    return dz1 if need1 else None, dz2 if need2 else None, *[None] * 11


def _raise_twice(ctx, *grads):
    raise RuntimeError(_TWICE)


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
_backward_op.register_autograd(_raise_twice)
