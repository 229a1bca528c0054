"""column_lse and soft_dtw with cost="softmax" as torch.library ops: opcheck, torch.compile in one
graph, compiled equals eager."""

import pytest
import torch

import fastseq
from fastseq.ops.column_lse.op import FUSED
from fastseq.ops.soft_dtw.autograd import FUSED as SOFT_DTW
from fastseq.ops.soft_dtw.autograd import _alignment_op
from ops.column_lse.cases import inputs
from ops.soft_dtw.cases import BACKENDS, backends, randn

pytestmark = pytest.mark.compile


def test_opcheck():
    x, y, _ = inputs(2, 7, 5, 4)
    x.requires_grad_()
    y.requires_grad_()
    constants = torch.tensor([7, 3]), torch.tensor([2, 5]), "torch", 10.0
    torch.library.opcheck(FUSED.forward_op, (x, y, *constants, [True, True]))
    torch.library.opcheck(FUSED.forward_op, (x.detach(), y.detach(), *constants, [False, False]))
    value, *kept = FUSED.forward_op(x, y, *constants, [True, True])
    kept = [k.detach() if k.numel() else None for k in kept]
    saved = x.detach(), y.detach(), *constants[:2], *kept
    for needs in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(
            FUSED.backward_op, (torch.ones_like(value), *saved, *constants[2:], needs)
        )


@backends(BACKENDS)
def test_opcheck_of_a_bias(backend):
    x, y, bias = (randn(*s, seed=k) for k, s in enumerate([(2, 7, 4), (2, 5, 4), (2, 5)]))
    lengths = torch.tensor([7, 3]), None
    options = backend, 0.5, None, True, True, 0.3, "logsumexp"
    inputs = *(t.requires_grad_() for t in (x, y)), None, bias.requires_grad_(), *lengths
    fused, needs = SOFT_DTW["soft_dtw"], [True, True, False, True]
    torch.library.opcheck(fused.forward_op, (*inputs, None, None, *options, needs))
    value, *kept = fused.forward_op(*inputs, None, None, *options, needs)
    saved = *(t if t is None else t.detach() for t in inputs), None, None, *kept
    for needs in ([True, True, False, True], [False, False, False, True]):
        torch.library.opcheck(fused.backward_op, (torch.ones_like(value), *saved, *options, needs))
    alignment = x.detach(), y.detach(), bias.detach(), *lengths, None, None, *options
    torch.library.opcheck(_alignment_op, alignment)


@backends(BACKENDS)
def test_compiled_equals_eager(backend):
    options = {"gamma": 0.2, "cost": "softmax", "lengths_x": [9, 4], "backend": backend}

    def train(a, b):
        return fastseq.soft_dtw(a * 2, b, temperature=0.2, **options)

    def align(a, b):
        return fastseq.soft_dtw_alignment(a, b, **options)

    x, y = randn(2, 9, 4, seed=4), randn(2, 7, 4, seed=5)
    torch._dynamo.reset()
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = wrap(train)(a, b)
        results.append((value, *torch.autograd.grad(value.sum(), (a, b)), wrap(align)(x, y)))
    for want, got in zip(*results, strict=True):
        assert torch.equal(want, got)
