"""scl_loss as a torch.library op: opcheck, torch.compile in one graph, compiled equals eager."""

import pytest
import torch
import torch._dynamo.testing

import fastseq
from fastseq.ops.common import short
from fastseq.ops.scl.op import FUSED
from ops.scl.cases import loss_and_grads

pytestmark = pytest.mark.compile

OPTIONS = ("torch", 10.0, 0.1, True, "kl", "cross")


def _inputs(reduction="mean"):
    g = torch.Generator().manual_seed(0)
    z1 = torch.randn(2, 7, 4, generator=g, requires_grad=True)
    z2 = torch.randn(2, 5, 4, generator=g, requires_grad=True)
    lengths = torch.tensor([7, 3])
    return z1, z2, *[None] * 4, lengths, None, *OPTIONS, reduction, "gauss", [True, True, False]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck_forward(reduction):
    torch.library.opcheck(FUSED.forward_op, _inputs(reduction))


def test_opcheck_backward():
    z1, z2, *rest = _inputs()
    loss, *kept = FUSED.forward_op(z1, z2, *rest)
    *kept, pairs = (k.detach() for k in kept)
    assert pairs.shape == (2, 7, 5)
    tensors = torch.ones_like(loss), z1.detach(), z2.detach(), *rest[:6], *kept
    for needs in ([True, True, False], [True, False, False], [False, True, False]):
        for last in (pairs, None):  # of a short call; of a long one
            torch.library.opcheck(FUSED.backward_op, (*tensors, last, *rest[6:-1], needs))


@pytest.mark.usefixtures("pairs")
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
    """Another T compiles once more; after that, no T does. A schedule of the temperature is
    traced.
    """
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


def test_compiled_short_and_long_calls(monkeypatch):
    """One graph where pairs are kept, another where they are not."""
    monkeypatch.setattr(short, "KEPT_BYTES", 4 * 2 * 9 * 9)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.scl_loss, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for frames in (5, 8, 9, 10, 14, 7):
        z1, z2 = torch.randn(2, 2, frames, 3)
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        loss = compiled(a, b)
        got = loss, *torch.autograd.grad(loss, (a, b))
        assert all(map(torch.equal, got, loss_and_grads(z1, z2)))
        counts.append(counter.frame_count - counts[0] if counts else counter.frame_count)
    assert counts[1:] == [0, 0, 1, 1, 1]


def test_compiled_forward_mode_is_an_error_not_zero():
    z1, z2 = torch.randn(2, 2, 5, 3)

    def tangent(a, b):
        return torch.func.jvp(lambda x: fastseq.scl_loss(x, b), (a,), (b,))[1]

    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match='backend="reference"'):
        torch.compile(tangent, backend="aot_eager")(z1, z2)
