"""Values and gradients of a backend as PyTorch operations: autograd and torch.library."""

import functools
import importlib

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import gradient, no_autocast, refuse_forward_mode
from fastseq.ops.soft_dtw.costs import squared_distances
from fastseq.ops.soft_dtw.options import SoftDTWOptions


def values(x, y, cost, lengths_x, lengths_y, name: str, opts: SoftDTWOptions) -> Tensor:
    """(B,) values of soft_dtw by backend ``name``, of inputs that op.py has checked."""
    given = (x, y) if cost is None else (cost,)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if torch.compiler.is_compiling():
        return _forward_op(x, y, cost, lengths_x, lengths_y, name, *opts, keep)[0]
    return _SoftDTW.apply(x, y, cost, (lengths_x, lengths_y), name, opts, keep)


def alignment(x, y, lengths_x, lengths_y, name: str, opts: SoftDTWOptions) -> Tensor:
    """(B, N, M) expected alignment by backend ``name``."""
    if torch.compiler.is_compiling():
        return _alignment_op(x, y, lengths_x, lengths_y, name, *opts)
    return _Alignment.apply(x, y, lengths_x, lengths_y, name, opts)


@functools.cache
def _backend(name: str):
    return importlib.import_module(f"fastseq.ops.soft_dtw.{name}")


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.contiguous() for t in tensors]


def _forward(x, y, cost, lengths_x, lengths_y, name, opts, keep):
    with no_autocast((x if cost is None else cost).device.type):
        return _backend(name).forward(x, y, cost, lengths_x, lengths_y, opts, keep)


def _backward(grad, x, y, cost, lengths_x, lengths_y, saved, name, opts, need_x, need_y):
    with no_autocast(grad.device.type):
        return _backend(name).backward(
            grad.contiguous(), x, y, cost, lengths_x, lengths_y, saved, opts, need_x, need_y
        )


def _align(x, y, lengths_x, lengths_y, name, opts) -> Tensor:
    with no_autocast(x.device.type):
        cost = squared_distances(x, y)
        value, saved = _forward(None, None, cost, lengths_x, lengths_y, name, opts, True)
        ones = torch.ones_like(value)
        return _backward(
            ones, None, None, cost, lengths_x, lengths_y, saved, name, opts, True, False
        )[2]


class _SoftDTW(torch.autograd.Function):
    """Eager path: no torch.library boundary, which costs 15 to 60 us a call."""

    jvp = refuse_forward_mode("soft_dtw", "soft_dtw_from_cost")

    @staticmethod
    def forward(ctx, x, y, cost, lengths, name, opts, keep):
        x, y, cost = _dense(x, y, cost)
        value, saved = _forward(x, y, cost, *lengths, name, opts, keep)
        ctx.save_for_backward(x, y, cost, *lengths, *saved)
        ctx.name, ctx.opts = name, opts
        return value

    @staticmethod
    def backward(ctx, grad):
        need_x, need_y, need_cost = ctx.needs_input_grad[:3]
        need = need_x or need_cost, need_y
        grads = gradient(_SoftDTWBackward, grad, ctx.name, ctx.opts, *need, *ctx.saved_tensors)
        return *grads, None, None, None, None


class _SoftDTWBackward(torch.autograd.Function):
    """The gradient as a node of its own, so that differentiating it again is an error."""

    @staticmethod
    def forward(ctx, grad, name, opts, need_x, need_y, *tensors):
        inputs, saved = tensors[:5], tensors[5:]
        return _backward(grad, *inputs, saved, name, opts, need_x, need_y)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(_TWICE)


class _Alignment(torch.autograd.Function):
    jvp = refuse_forward_mode("soft_dtw_alignment")

    @staticmethod
    def forward(ctx, x, y, lengths_x, lengths_y, name, opts):
        return _align(x, y, lengths_x, lengths_y, name, opts)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(_ALIGNMENT)


_TWICE = (
    "soft_dtw: this backend cannot be differentiated twice (gradient penalties, Hessian-vector "
    'products); to fix: soft_dtw(..., backend="reference")'
)
_ALIGNMENT = (
    "soft_dtw_alignment: this backend's alignment cannot be differentiated; to fix: "
    'soft_dtw_alignment(..., backend="reference")'
)

# Under torch.compile the calls cross the torch.library boundary instead. What a backend saves
# crosses it as bytes, with its layout beside it: how much that is only the backend knows.
_INPUTS = "Tensor? x, Tensor? y, Tensor? cost, Tensor? lengths_x, Tensor? lengths_y"
_OPTS = "str backend, float gamma, int? bandwidth"
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8)


def _pack(saved: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(bytes, layout) of contiguous tensors; layout on the CPU: dtype, rank and sizes of each."""
    layout = [n for t in saved for n in (_DTYPES.index(t.dtype), t.dim(), *t.shape)]
    # Each begins at a multiple of 8 bytes, as a view of another dtype has to.
    parts = [torch.empty(0, dtype=torch.uint8, device=device)]
    for t in saved:
        raw = t.contiguous().reshape(-1).view(torch.uint8)
        parts += [raw, raw.new_zeros(-raw.numel() % 8)]
    return torch.cat(parts), torch.tensor(layout, dtype=torch.int64)


def _unpack(packed: Tensor, layout: Tensor) -> tuple[Tensor, ...]:
    saved, numbers, start = [], layout.tolist(), 0
    while numbers:
        kind, rank, *numbers = numbers
        shape, numbers = numbers[:rank], numbers[rank:]
        dtype = _DTYPES[kind]
        size = torch.Size(shape).numel() * dtype.itemsize
        saved.append(packed[start : start + size].view(dtype).view(shape))
        start += size + -size % 8
    return tuple(saved)


@torch.library.custom_op(
    "fastseq::soft_dtw_forward",
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTS}, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _forward_op(x, y, cost, lengths_x, lengths_y, backend, gamma, bandwidth, keep):
    x, y, cost = _dense(x, y, cost)
    opts = SoftDTWOptions(gamma, bandwidth)
    value, saved = _forward(x, y, cost, lengths_x, lengths_y, backend, opts, keep)
    return value, *_pack(saved if keep else (), value.device)


@_forward_op.register_fake
def _(x, y, cost, lengths_x, lengths_y, backend, gamma, bandwidth, keep):
    given = x if cost is None else cost
    sizes = [0, 0]
    if keep:
        context = torch.library.get_ctx()
        sizes = [context.new_dynamic_size(), context.new_dynamic_size()]
    return (
        given.new_empty(given.shape[0]),
        given.new_empty(sizes[0], dtype=torch.uint8),
        torch.empty(sizes[1], dtype=torch.int64, device="cpu"),
    )


@torch.library.custom_op(
    "fastseq::soft_dtw_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor packed, Tensor layout, {_OPTS}, bool need_x, "
    "bool need_y) -> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad, x, y, cost, lengths_x, lengths_y, packed, layout, backend, gamma, bandwidth, *need
):
    x, y, cost = _dense(x, y, cost)
    opts, saved = SoftDTWOptions(gamma, bandwidth), _unpack(packed, layout)
    grads = _backward(grad, x, y, cost, lengths_x, lengths_y, saved, backend, opts, *need)
    # An op cannot return None: an empty tensor stands for a gradient nobody asked for.
    return tuple(grad.new_empty(0) if g is None else g for g in grads)


@_backward_op.register_fake
def _(grad, x, y, cost, lengths_x, lengths_y, packed, layout, backend, gamma, bandwidth, *need):
    wanted = need[0] and x is not None, need[1] and y is not None, need[0] and cost is not None
    return tuple(
        grad.new_empty(t.shape if want else 0) for t, want in zip((x, y, cost), wanted, strict=True)
    )


def _setup_context(ctx, inputs, output):
    _, packed, layout = output
    ctx.save_for_backward(*inputs[:5], packed, layout)
    ctx.options = inputs[5:8]


def _autograd(ctx, grad, grad_packed, grad_layout):
    need_x, need_y, need_cost = ctx.needs_input_grad[:3]
    dx, dy, dcost = _backward_op(
        grad, *ctx.saved_tensors, *ctx.options, need_x or need_cost, need_y
    )
    grads = (dx if need_x else None, dy if need_y else None, dcost if need_cost else None)
    return *grads, *[None] * 6


def _raise_twice(ctx, *grads):
    raise RuntimeError(_TWICE)


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
_backward_op.register_autograd(_raise_twice)


@torch.library.custom_op(
    "fastseq::soft_dtw_alignment",
    mutates_args=(),
    schema=f"(Tensor x, Tensor y, Tensor? lengths_x, Tensor? lengths_y, {_OPTS}) -> Tensor",
)
def _alignment_op(x, y, lengths_x, lengths_y, backend, gamma, bandwidth):
    return _align(x, y, lengths_x, lengths_y, backend, SoftDTWOptions(gamma, bandwidth))


@_alignment_op.register_fake
def _(x, y, lengths_x, lengths_y, backend, gamma, bandwidth):
    return x.new_empty(*x.shape[:2], y.shape[1])


@torch.library.custom_op(
    "fastseq::soft_dtw_alignment_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor y) -> (Tensor, Tensor)",
)
def _alignment_backward_op(grad, x, y):
    # As an op, because the gradient is traced for all inputs that want one, called for or not.
    raise RuntimeError(_ALIGNMENT)


@_alignment_backward_op.register_fake
def _(grad, x, y):
    return torch.empty_like(x), torch.empty_like(y)


def _alignment_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _alignment_autograd(ctx, grad):
    return *_alignment_backward_op(grad, *ctx.saved_tensors), *[None] * 5


_alignment_op.register_autograd(_alignment_autograd, setup_context=_alignment_context)
