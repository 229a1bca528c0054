"""Turns an op's backends into one differentiable PyTorch function, eager and under torch.compile.

An op describes itself in one :class:`FusedLoss`; its backends are modules that implement
:class:`Backend`. This module owns everything that PyTorch requires: an autograd.Function for eager
calls; a custom operator with its fake and its gradient for torch.compile (the operator boundary
costs 15 to 60 us a call, so eager calls bypass it); and errors where no backend could return a
right answer: second derivatives, torch.func, forward mode.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import called_op, inside_custom_op, no_autocast
from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.common.packing import pack, unpack

Tensors = Sequence[Tensor | None]


class Backend(Protocol):
    """``fastseq/ops/<op>/<backend>.py``: takes and returns tensors, validates nothing.

    ``needs`` states for each differentiable input whether its gradient is needed. Autocast is off.
    """

    def forward(self, *inputs_opts_needs: Any) -> Tensors:
        """``forward(*inputs, opts, needs)``: the value, then the tensors ``backward`` needs."""

    def backward(
        self, grad: Tensor, *inputs_and_kept: Tensor | None, opts: Any, needs: Sequence[bool]
    ) -> Tensors:
        """The gradient of each differentiable input, None where it is not needed. The last
        ``forward_only`` inputs are not passed."""


class FusedLoss:
    """One op as PyTorch sees it, called with a backend's name, options and checked inputs.

    Args:
        op: name of the public function, for error messages.
        package: package of the backends, for example "fastseq.ops.scl".
        inputs: names of the tensors, the differentiable ones first; "t1?" may be None.
        differentiable: number of inputs that can have a gradient.
        options: the NamedTuple passed to backends, with fields of float, bool, str or int | None.
        reference: ``reference(*inputs, opts)``, the definition, which autograd differentiates.
        kept: number of tensors that a forward keeps for the backward, including those that are
            None in some calls. None: only the backend knows, and the value is (N,) in the inputs'
            dtype.
        shapes: ``shapes(*inputs, backend, opts, needs)`` returns the shape of the value and of each
            kept tensor, None for one not kept in such a call. All have the accumulator's dtype.
        forward_only: number of inputs, counted from the last, that ``backward`` does not receive:
            the caller may change them once the forward has returned.
        contiguous: True: differentiable inputs are made contiguous for the backends. False: their
            kernels accept any strides.
        stem: prefix of the operators' names, "fastseq::<stem>_forward"; default: the package's
            last part.
    """

    def __init__(
        self,
        op: str,
        package: str,
        *,
        inputs: tuple[str, ...],
        differentiable: int,
        options: Any,
        reference: Callable[..., Tensor],
        kept: int | None = None,
        shapes: Callable[..., Sequence[Sequence[int] | None]] | None = None,
        forward_only: int = 0,
        contiguous: bool = True,
        stem: str | None = None,
    ) -> None:
        self.op, self.package, self.inputs = op, package, inputs
        self.differentiable, self.saved = differentiable, len(inputs) - forward_only
        self.options, self.reference = options, reference
        self.kept, self.shapes = kept, shapes
        self.arrange = _contiguous if contiguous else list
        self.function = _function(self)
        self.forward_op, self.backward_op = _operators(self, stem or package.rpartition(".")[2])

    def __call__(self, name: str, opts: Any, *inputs: Tensor | None) -> Tensor:
        """The value computed by backend ``name``."""
        if name == "reference":
            with no_autocast(_device_type(inputs)):
                return self.reference(*inputs, opts)
        refuse_transforms(self.op, name)
        given = inputs[: self.differentiable]
        for z in given:
            # By name: importing DTensor takes longer than this whole package.
            if type(z).__name__ == "DTensor":
                raise TypeError(
                    f"{self.op}: got a DTensor, whose parts are on several ranks; expected a plain "
                    "tensor. To fix: z.to_local() for the part of this rank, or z.full_tensor()"
                )
        if torch.is_grad_enabled():
            needs = [z is not None and z.requires_grad for z in given]
        else:
            needs = [False] * self.differentiable
        if torch.compiler.is_compiling():
            return self.forward_op(*inputs, name, *opts, needs)[0]
        # As few arguments as possible: each costs up to 2 us.
        return self.function.apply((name, opts, needs), inputs[self.differentiable :], *given)

    def forward(self, name: str, opts: Any, needs: Sequence[bool], *inputs) -> Tensors:
        with no_autocast(_device_type(inputs)):
            return _backend(self.package, name).forward(*inputs, opts, needs)

    def backward(self, grad: Tensor, name: str, opts: Any, needs: Sequence[bool], *saved):
        with no_autocast(grad.device.type):
            backend = _backend(self.package, name)
            return tuple(backend.backward(grad, *saved, opts=opts, needs=needs))


@functools.cache
def _backend(package: str, name: str) -> Backend:
    return importlib.import_module(f"{package}.{name}")


def _device_type(inputs: Tensors) -> str:
    for z in inputs:
        if z is not None:
            return z.device.type
    raise ValueError("no tensor among the inputs")


def _contiguous(inputs: Tensors) -> Tensors:
    return [z if z is None else z.contiguous() for z in inputs]


def _function(loss: FusedLoss) -> type[torch.autograd.Function]:
    """The autograd.Function of eager calls."""

    class Gradient(torch.autograd.Function):
        """A separate node, so that differentiating the gradient raises an error."""

        @staticmethod
        def forward(ctx, op, grad, name, opts, needs, *saved):
            ctx.op = op
            return loss.backward(grad, name, opts, needs, *saved)

        @staticmethod
        def backward(ctx, *grads):
            raise _twice(ctx.op)

    class Value(torch.autograd.Function):
        jvp = refuse_forward_mode(loss.op)

        @staticmethod
        def forward(ctx, call, constants, *given):
            inputs = *loss.arrange(given), *constants
            value, *kept = loss.forward(*call, *inputs)
            ctx.save_for_backward(*inputs[: loss.saved], *kept)
            ctx.call, ctx.op = call, called_op(loss.op)
            return value

        @staticmethod
        def backward(ctx, grad):
            # Autograd is on in a backward only under create_graph=True. Otherwise the gradient
            # cannot be differentiated, and its node would cost 15 us for nothing.
            saved = *ctx.call, *ctx.saved_tensors
            if torch.is_grad_enabled():
                return None, None, *Gradient.apply(ctx.op, grad, *saved)
            return None, None, *loss.backward(grad, *saved)

    return type(loss.op, (Value,), {})  # grad_fn and profilers show this name


def _twice(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}: this backend cannot be differentiated twice (gradient penalties, "
        f'Hessian-vector products); to fix: {op}(..., backend="reference")'
    )


_SCHEMA = {float: "float", bool: "bool", str: "str", int | None: "int?"}


def _operators(loss: FusedLoss, stem: str) -> tuple[Callable, Callable]:
    """The operators of torch.compile: fastseq::<stem>_forward and fastseq::<stem>_backward.

    An operator cannot return None: an empty tensor stands for a missing one. Tensors whose number
    and shapes only the backend knows cross the boundary as bytes, with their layout beside them.
    """
    fields = loss.options.__annotations__
    differentiable, tail = loss.differentiable, len(fields) + 2

    def split(args):
        """Return the tensors of a call, and (name, opts, needs)."""
        name, *opts, needs = args[-tail:]
        return args[:-tail], (name, loss.options(*opts), needs)

    inputs = [f"Tensor{'?' * i.endswith('?')} {i.rstrip('?')}" for i in loss.inputs]
    options = ["str backend", *(f"{_SCHEMA[kind]} {name}" for name, kind in fields.items())]
    call = ", ".join([*options, "bool[] needs"])
    kept = ["packed", "layout"] if loss.kept is None else [f"kept{i}" for i in range(loss.kept)]
    saved = [*inputs[: loss.saved], *(f"Tensor? {name}" for name in kept)]

    @torch.library.custom_op(
        f"fastseq::{stem}_forward",
        mutates_args=(),
        schema=f"({', '.join(inputs)}, {call}) -> ({', '.join(['Tensor'] * (1 + len(kept)))})",
    )
    def forward_op(*args):
        inputs, call = split(args)
        inputs = *loss.arrange(inputs[:differentiable]), *inputs[differentiable:]
        with inside_custom_op():
            value, *kept = loss.forward(*call, *inputs)
        if loss.kept is None:
            return value, *pack(kept, value.device)
        return value, *(value.new_empty(0) if k is None else k for k in kept)

    @forward_op.register_fake
    def _(*args):
        inputs, (name, opts, needs) = split(args)
        like = next(z for z in inputs if z is not None)
        if loss.kept is not None:
            dtype = accumulator(like.dtype)
            shapes = loss.shapes(*inputs, backend=name, opts=opts, needs=needs)
            return tuple(like.new_empty((0,) if s is None else s, dtype=dtype) for s in shapes)
        sizes = [0, 0]
        if any(needs):
            context = torch.library.get_ctx()
            sizes = [context.new_dynamic_size(), context.new_dynamic_size()]
        return (
            like.new_empty(like.shape[0]),
            like.new_empty(sizes[0], dtype=torch.uint8),
            torch.empty(sizes[1], dtype=torch.int64, device="cpu"),
        )

    @torch.library.custom_op(
        f"fastseq::{stem}_backward",
        mutates_args=(),
        schema=f"(Tensor grad, {', '.join(saved)}, {call}) -> "
        f"({', '.join(['Tensor'] * differentiable)})",
    )
    def backward_op(grad, *args):
        saved, call = split(args)
        given, constants = saved[:differentiable], saved[differentiable : loss.saved]
        kept = saved[loss.saved :]
        if loss.kept is None:
            kept = unpack(*kept)
        grads = loss.backward(grad, *call, *loss.arrange(given), *constants, *kept)
        needs = call[-1]
        grads = [g if n else grad.new_empty(0) for g, n in zip(grads, needs, strict=True)]
        return grads[0] if differentiable == 1 else tuple(grads)

    @backward_op.register_fake
    def _(grad, *args):
        saved, (_, _, needs) = split(args)
        given = zip(saved[:differentiable], needs, strict=True)
        grads = [z.new_empty(z.shape) if n else grad.new_empty(0) for z, n in given]
        return grads[0] if differentiable == 1 else tuple(grads)

    def setup_context(ctx, inputs, output):
        kept = output[1:]
        if loss.kept is not None:
            tensors, (name, opts, needs) = split(inputs)
            _, *shapes = loss.shapes(*tensors, backend=name, opts=opts, needs=needs)
            kept = [None if s is None else k for k, s in zip(kept, shapes, strict=True)]
        ctx.save_for_backward(*inputs[: loss.saved], *kept)
        ctx.call = inputs[len(loss.inputs) :]

    def gradients(ctx, grad, *unused):
        grads = backward_op(grad, *ctx.saved_tensors, *ctx.call)
        grads = [grads] if differentiable == 1 else grads
        grads = [g if n else None for g, n in zip(grads, ctx.call[-1], strict=True)]
        return *grads, *[None] * (len(loss.inputs) - differentiable + tail)

    def raise_twice(ctx, *grads):
        raise _twice(loss.op)

    forward_op.register_autograd(gradients, setup_context=setup_context)
    backward_op.register_autograd(raise_twice)
    return forward_op, backward_op


def transforms_active() -> bool:
    """Whether a torch.func transform is active. PyTorch has no public function for this."""
    return torch._C._are_functorch_transforms_active()


def refuse_transforms(op: str, name: str) -> None:
    """RuntimeError inside torch.func's transforms, which backends with kernels do not support."""
    if transforms_active():
        raise RuntimeError(
            f"{op}: backend {name!r} does not work inside torch.func transforms (grad, vmap, "
            f'jvp); to fix: {op}(..., backend="reference")'
        )


def refuse_forward_mode(op: str) -> staticmethod:
    """The ``jvp`` of an autograd.Function, which only forward-mode differentiation calls."""

    def jvp(ctx, *tangents):
        raise RuntimeError(
            f"{op}: this backend does not work under forward-mode differentiation "
            f'(torch.autograd.forward_ad); to fix: {op}(..., backend="reference")'
        )

    return staticmethod(jvp)
