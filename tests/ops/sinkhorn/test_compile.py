"""sinkhorn_alignment as a torch.library op: opcheck, torch.compile in one graph, equals eager."""

import pytest
import torch

import fastseq
from fastseq.ops.sinkhorn.op import FUSED
from ops.sinkhorn.cases import general, units

pytestmark = pytest.mark.compile


@pytest.mark.parametrize("virtual", [True, False])
def test_opcheck(virtual):
    inputs, opts = general(dtype=torch.float32, virtual=virtual, centres=virtual)
    args = (*inputs, "torch", *opts, [True, True])
    torch.library.opcheck(FUSED["sinkhorn_alignment"].forward_op, args)
    value, f, g = (out.detach() for out in FUSED["sinkhorn_alignment"].forward_op(*args))
    x, y = (z.detach() for z in inputs[:2])
    rest = (x, y, *inputs[2:], f, g, "torch", *opts, [True, True])
    torch.library.opcheck(FUSED["sinkhorn_alignment"].backward_op, (torch.ones_like(value), *rest))


@pytest.mark.parametrize("loss", [fastseq.sinkhorn_alignment, fastseq.vava_loss])
def test_compiled_equals_eager(loss):
    x, y = units(2, 9, 4, dtype=torch.float32), units(2, 7, 4, dtype=torch.float32, seed=1)
    kw = {"phi": 0.5} if loss is fastseq.vava_loss else {"virtual_cost": 0.5, "cost": "cosine"}

    def train(a, b):
        return loss(a * 2, b, lengths_x=[9, 4], reduction="mean", **kw)

    def both(function):
        inputs = [z.clone().requires_grad_() for z in (x, y)]
        value = function(*inputs)
        return (value, *torch.autograd.grad(value, inputs))

    torch._dynamo.reset()
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    for want, got in zip(both(train), both(compiled), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
