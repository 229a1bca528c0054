"""queue_nce: checks, choice of backend, autograd, torch.library registration."""

import functools
import importlib

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import (
    choose_triton_or_torch,
    gradient,
    no_autocast,
    refuse_forward_mode,
    refuse_transforms,
)
from fastseq.ops.common.validate import FLOAT_DTYPES, check_bool, check_choice, check_positive
from fastseq.ops.queue_nce.options import REDUCTIONS, QueueNCEOptions, accumulator
from fastseq.ops.queue_nce.reference import queue_nce_reference


def queue_nce(
    q: Tensor,
    positives: Tensor,
    queue: Tensor,
    *,
    temperature: float = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""InfoNCE of each query and each of its positives against a queue of negatives (VCLR, eq. 1, 2
    and 6; MoCo).

    With tau the temperature::

        s_np    = <q_n, positives_np> / tau
        lse_n   = log sum_k exp(<q_n, queue_k> / tau)
        loss_np = -log( exp(s_np) / (exp(s_np) + exp(lse_n)) ) = log(1 + exp(lse_n - s_np))

    One pass over the queue serves all positives of a query, and the (N, 1 + K) logits never exist,
    except with ``backend="reference"``. The backward does not read the queue: it may be changed
    (:meth:`fastseq.nn.FeatureQueue.enqueue`) as soon as this call returns.

    Args:
        q: queries (N, D); float64, float32, bfloat16 or float16.
        positives: (N, D), or (N, P, D) for P positives of each query: P losses, no positive being
            a negative of another. From the momentum encoder they need no gradient; they may.
        queue: negatives (K, D), no gradient. Rows are taken as they are: normalised if q is meant
            to be, as those of :class:`fastseq.nn.FeatureQueue` are. K may be 0.
        temperature: tau. 0.1: VCLR's released code; MoCo v2 has 0.2.
        normalize: divide q and positives by their L2 norms first (VCLR, appendix A.1). It does
            no harm to what is normalised already.
        reduction: "none": the losses, of the shape of positives without D; "sum"; or "mean" over
            all N P of them (the paper averages the losses of several positives).
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device) or "reference"
            (dense; the only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) or (N, P) with ``reduction="none"``: float64 when an input is float64,
        otherwise float32. Gradients have the dtypes of q and positives. Inputs of several dtypes
        are multiplied in the widest. N = 0: 0 with gradient 0. K = 0: every loss is 0.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value, or a queue that
            requires a gradient. RuntimeError: a backend asked for by name cannot serve the call
            (it never falls back), or a backend other than "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> q, queue = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(fastseq.queue_nce(q, q, queue).item(), 6)  # log(1 + 2 exp(-10))
        9.1e-05
    """
    op = "queue_nce"
    check_inputs(op, q, positives, queue)
    opts = QueueNCEOptions(check_positive(op, "temperature", temperature), normalize)
    check_bool(op, "normalize", normalize)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    single = positives.dim() == 2
    if single:
        positives = positives[:, None]
    wide = q.dtype
    if not wide == positives.dtype == queue.dtype:
        wide = torch.promote_types(torch.promote_types(wide, positives.dtype), queue.dtype)
        q, positives = q.to(wide), positives.to(wide)
    name, _ = resolve_backend(backend, q.device.type, wide)
    if name == "reference":
        with no_autocast(q.device.type):
            losses = queue_nce_reference(q, positives, queue, opts)
    else:
        refuse_transforms(op, name)
        # What the backward of q needs has to be gathered while the queue is read.
        keep = torch.is_grad_enabled() and q.requires_grad
        if not torch.compiler.is_compiling():
            count = _count(positives, reduction)
            losses = _QueueNCE.apply(q, positives, queue, name, opts, keep, count)
            return losses[:, 0] if single and count is None else losses
        losses = _forward_op(q, positives, queue, name, *opts, keep)[0]
    if reduction == "none":
        return losses[:, 0] if single else losses
    return losses.sum() / _count(positives, reduction)


def _count(positives: Tensor, reduction: str) -> int | None:
    """What the sum of the losses is divided by; None: they are not added up."""
    if reduction == "none":
        return None
    return max(1, positives.shape[0] * positives.shape[1]) if reduction == "mean" else 1


def check_inputs(op: str, q: Tensor, positives: Tensor, queue: Tensor) -> None:
    for name, z in (("q", q), ("positives", positives), ("queue", queue)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(z).__name__}")
        if z.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{op}: {name} must be float64, float32, bfloat16 or float16, got {z.dtype}"
            )
        if z.device != q.device:
            raise ValueError(
                f"{op}: q, positives and queue must be on one device, got q on {q.device} and "
                f"{name} on {z.device}"
            )
    if q.dim() != 2 or q.shape[1] == 0:
        raise ValueError(f"{op}: q must have shape (N, D) with D >= 1, got {tuple(q.shape)}")
    n, d = q.shape
    fits = positives.dim() == 2 or (positives.dim() == 3 and positives.shape[1] > 0)
    if not fits or positives.shape[0] != n or positives.shape[-1] != d:
        raise ValueError(
            f"{op}: positives must have shape {(n, d)} or ({n}, P, {d}) with P >= 1, got "
            f"{tuple(positives.shape)}"
        )
    if queue.dim() != 2 or queue.shape[1] != d:
        raise ValueError(
            f"{op}: queue must have shape (K, {d}), got {tuple(queue.shape)}"
            + ("; to fix: queue.mT" if queue.dim() == 2 and queue.shape[0] == d else "")
        )
    if queue.requires_grad:
        raise ValueError(
            f"{op}: queue requires a gradient, which is not computed; to fix: queue.detach()"
        )


def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend that serves such a call, and why. Reads nothing but its arguments and the
    environment."""
    return choose_triton_or_torch("queue_nce", requested, device_type, dtype)


# What torch.compiler.assume_constant_result does, without importing torch._dynamo (3 s) for it.
resolve_backend._dynamo_marked_constant = True


@functools.cache
def _backend(name: str):
    return importlib.import_module(f"fastseq.ops.queue_nce.{name}")


def _forward(q, positives, queue, name: str, opts: QueueNCEOptions, keep: bool):
    with no_autocast(q.device.type):
        return _backend(name).forward(q, positives, queue, opts, keep)


def _backward(grad, q, positives, lack, mean, name, opts, need_q: bool, need_positives: bool):
    with no_autocast(q.device.type):
        return _backend(name).backward(grad, q, positives, lack, mean, opts, need_q, need_positives)


class _QueueNCE(torch.autograd.Function):
    """Eager path: no torch.library boundary, which costs 15 to 60 us a call."""

    jvp = refuse_forward_mode("queue_nce")

    @staticmethod
    def forward(ctx, q, positives, queue, name, opts, keep, count):
        q, positives = q.contiguous(), positives.contiguous()
        losses, lack, mean = _forward(q, positives, queue, name, opts, keep)
        ctx.save_for_backward(q, positives, lack, mean)
        ctx.name, ctx.opts, ctx.count = name, opts, count
        return losses if count is None else losses.sum() / count

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors  # once: hooks may have to bring them back
        if ctx.count is not None:  # here, and not as autograd's nodes, which cost 40 us
            grad = (grad / ctx.count).expand(saved[1].shape[:2])
        dq, dp = gradient(
            _QueueNCEBackward,
            grad,
            *saved,
            ctx.name,
            ctx.opts,
            *ctx.needs_input_grad[:2],
        )
        return dq, dp, *[None] * 5


class _QueueNCEBackward(torch.autograd.Function):
    """The gradient as a node of its own, so that differentiating it again is an error."""

    @staticmethod
    def forward(ctx, *args):
        return _backward(*args)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(_TWICE)


_TWICE = (
    "queue_nce: this backend cannot be differentiated twice (gradient penalties, Hessian-vector "
    'products); to fix: queue_nce(..., backend="reference")'
)

# Under torch.compile the calls cross the torch.library boundary instead.
_OPTS = "str backend, float temperature, bool normalize"


@torch.library.custom_op(
    "fastseq::queue_nce_forward",
    mutates_args=(),
    schema=f"(Tensor q, Tensor positives, Tensor queue, {_OPTS}, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
)
def _forward_op(q, positives, queue, backend, *rest):
    *opts, keep = rest
    q, positives = q.contiguous(), positives.contiguous()
    losses, lack, mean = _forward(q, positives, queue, backend, QueueNCEOptions(*opts), keep)
    # An op cannot return None: an empty tensor stands for what is not there.
    return losses, lack, losses.new_empty(0) if mean is None else mean


@_forward_op.register_fake
def _(q, positives, queue, backend, *rest):
    kind = {"dtype": accumulator(q.dtype)}
    shape = positives.shape[:2]
    mean = q.new_empty(q.shape if rest[-1] else (0,), **kind)
    return q.new_empty(shape, **kind), q.new_empty(shape, **kind), mean


@torch.library.custom_op(
    "fastseq::queue_nce_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor q, Tensor positives, Tensor lack, Tensor mean, {_OPTS}, "
    "bool need_q, bool need_positives) -> (Tensor, Tensor)",
)
def _backward_op(grad, q, positives, lack, mean, backend, *rest):
    *opts, need_q, need_positives = rest
    q, positives = q.contiguous(), positives.contiguous()
    dq, dp = _backward(
        grad, q, positives, lack, mean, backend, QueueNCEOptions(*opts), need_q, need_positives
    )
    return q.new_empty(0) if dq is None else dq, q.new_empty(0) if dp is None else dp


@_backward_op.register_fake
def _(grad, q, positives, lack, mean, backend, *rest):
    need_q, need_positives = rest[-2:]
    return (
        q.new_empty(q.shape if need_q else (0,)),
        positives.new_empty(positives.shape if need_positives else (0,)),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2], *output[1:])
    ctx.options = inputs[3:-1]


def _autograd(ctx, grad, *unused):
    need_q, need_positives = ctx.needs_input_grad[:2]
    dq, dp = _backward_op(grad, *ctx.saved_tensors, *ctx.options, need_q, need_positives)
    return dq if need_q else None, dp if need_positives else None, *[None] * 5


def _raise_twice(ctx, *grads):
    raise RuntimeError(_TWICE)


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
_backward_op.register_autograd(_raise_twice)
