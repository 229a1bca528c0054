"""scl_loss as a torch.library op: opcheck, torch.compile in one graph, compiled equals eager."""

import pytest
import torch

import fastseq
from fastseq.ops.scl.op import FUSED
from ops.scl.cases import loss_and_grads

pytestmark = pytest.mark.compile

OPTIONS = ("torch", 10.0, 0.1, True, "kl", "cross")


def _inputs(reduction="mean"):
    g = torch.Generator().manual_seed(0)
    z1 = torch.randn(2, 7, 4, generator=g, requires_grad=True)
    z2 = torch.randn(2, 5, 4, generator=g, requires_grad=True)
    lengths = torch.tensor([7, 3])
    return z1, z2, None, None, lengths, None, *OPTIONS, reduction, [True, True]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck_forward(reduction):
    torch.library.opcheck(FUSED.forward_op, _inputs(reduction))


def test_opcheck_backward():
    z1, z2, *rest = _inputs()
    loss, stats, coef = FUSED.forward_op(z1, z2, *rest)
    tensors = (
        torch.ones_like(loss),
        z1.detach(),
        z2.detach(),
        *rest[:4],
        stats.detach(),
        coef.detach(),
    )
    for needs in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(FUSED.backward_op, (*tensors, *rest[4:-1], needs))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_equals_eager(autocast):
    g = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 2, 9, 4, generator=g)
    t = torch.arange(9)

    def train(a, b):
        return fastseq.scl_loss(a * 2, b, t, t + 1, lengths1=[9, 4], temperature=0.2)

    def both(function):
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = function(a, b)
        return (loss, *torch.autograd.grad(loss, (a, b)))

    torch._dynamo.reset()
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    for want, got in zip(both(train), both(compiled), strict=True):
        assert torch.equal(want, got)


def test_compiled_with_only_one_gradient():
    z1 = torch.randn(2, 5, 3, requires_grad=True)
    z2 = torch.randn(2, 5, 3)
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.scl_loss, fullgraph=True, backend="aot_eager")
    (dz,) = torch.autograd.grad(compiled(z1, z2), z1)
    assert torch.equal(dz, loss_and_grads(z1, z2)[1])


def test_compiled_with_other_lengths_and_temperatures():
    """Another T compiles once more, for all of them; a schedule of the temperature is traced."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.scl_loss, fullgraph=True, backend=counter)
    for frames in (5, 8, 11, 14):
        z1, z2 = torch.randn(2, 2, frames, 3)
        assert torch.equal(compiled(z1, z2), fastseq.scl_loss(z1, z2))
    assert counter.frame_count == 2
    for temperature in (0.2, 0.3, 0.4):
        kw = {"temperature": temperature}
        assert torch.equal(compiled(z1, z2, **kw), fastseq.scl_loss(z1, z2, **kw))


def test_compiled_forward_mode_is_an_error_not_zero():
    z1, z2 = torch.randn(2, 2, 5, 3)

    def tangent(a, b):
        return torch.func.jvp(lambda x: fastseq.scl_loss(x, b), (a,), (b,))[1]

    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match='backend="reference"'):
        torch.compile(tangent, backend="aot_eager")(z1, z2)
