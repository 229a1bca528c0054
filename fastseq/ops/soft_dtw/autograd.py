"""soft_dtw and its alignment as differentiable functions, of inputs that op.py has checked."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import no_autocast
from fastseq.ops.common.fused import FusedLoss, Tensors, refuse_forward_mode
from fastseq.ops.soft_dtw.costs import squared_distances
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from fastseq.ops.soft_dtw.reference import soft_dtw_reference

# One for embeddings and one for caller's costs, so that errors name the function that was called.
FUSED = {
    op: FusedLoss(
        op,
        "fastseq.ops.soft_dtw",
        inputs=("x?", "y?", "cost?", "bias?", "lengths_x?", "lengths_y?", "gammas?", "bands?"),
        differentiable=4,
        options=SoftDTWOptions,
        reference=soft_dtw_reference,
        stem=op,
    )
    for op in ("soft_dtw", "soft_dtw_from_cost", "soft_dtw_cross")
}


def alignment(x, y, bias, constants: Tensors, name: str, opts: SoftDTWOptions) -> Tensor:
    """(N, T, S) expected alignment by backend ``name``. constants: lengths, gammas and bands."""
    if torch.compiler.is_compiling():
        return _alignment_op(x, y, bias, *constants, name, *opts)
    return _Alignment.apply(x, y, bias, constants, name, opts)


def _align(x, y, bias, constants: Tensors, name: str, opts: SoftDTWOptions) -> Tensor:
    """The gradient with respect to the costs."""
    fused, call = FUSED["soft_dtw_from_cost"], (name, opts, (False, False, True, False))
    with no_autocast(x.device.type):
        cost = squared_distances(x, y)
        if bias is not None:
            cost += bias[:, None]
        inputs = None, None, cost, None, *constants
        value, *kept = fused.forward(*call, *inputs)
        return fused.backward(torch.ones_like(value), *call, *inputs, *kept)[2]


class _Alignment(torch.autograd.Function):
    jvp = refuse_forward_mode("soft_dtw_alignment")

    @staticmethod
    def forward(ctx, x, y, bias, constants, name, opts):
        return _align(x, y, bias, constants, name, opts)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(_ALIGNMENT)


_ALIGNMENT = (
    "soft_dtw_alignment: this backend's alignment cannot be differentiated; to fix: "
    'soft_dtw_alignment(..., backend="reference")'
)


@torch.library.custom_op(
    "fastseq::soft_dtw_alignment",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor? bias, Tensor? lengths_x, Tensor? lengths_y, "
    "Tensor? gammas, Tensor? bands, str backend, float gamma, int? bandwidth, bool begin_free, "
    "bool end_free, float warp_penalty, str softmin) -> Tensor",
)
def _alignment_op(x, y, bias, lengths_x, lengths_y, gammas, bands, backend, *options):
    constants = lengths_x, lengths_y, gammas, bands
    return _align(x, y, bias, constants, backend, SoftDTWOptions(*options))


@_alignment_op.register_fake
def _(x, y, *rest):
    return x.new_empty(*x.shape[:2], y.shape[1])


@torch.library.custom_op(
    "fastseq::soft_dtw_alignment_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor y) -> (Tensor, Tensor)",
)
def _alignment_backward_op(grad, x, y):
    # An op, because the gradient is traced for all inputs that require one, even if never called.
    raise RuntimeError(_ALIGNMENT)


@_alignment_backward_op.register_fake
def _(grad, x, y):
    return torch.empty_like(x), torch.empty_like(y)


def _alignment_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _alignment_autograd(ctx, grad):
    return *_alignment_backward_op(grad, *ctx.saved_tensors), *[None] * 12


_alignment_op.register_autograd(_alignment_autograd, setup_context=_alignment_context)
