"""contrastive_idm as a torch.library op: opcheck, torch.compile in one graph, equal to eager."""

import pytest
import torch
import torch._dynamo.testing

import fastseq
from fastseq.ops.common import short
from fastseq.ops.contrastive_idm.op import FUSED
from ops.contrastive_idm.cases import loss_and_grad

pytestmark = pytest.mark.compile

OPTIONS = ("torch", 3.0, 2.0, "contrastive", "paper", "sqeuclidean")


def inputs(reduction="mean"):
    z = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tensors = z, torch.arange(14).view(2, 7), torch.tensor([7, 3]), torch.tensor([2.0, 1.0])
    return *tensors, *OPTIONS, reduction, [True]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck_forward(reduction):
    z, t, lengths, windows, *options = inputs(reduction)
    torch.library.opcheck(FUSED.forward_op, (z, t, lengths, windows, *options))
    torch.library.opcheck(FUSED.forward_op, (z, None, None, None, *options))


def test_opcheck_backward():
    z, *rest = inputs()
    loss, coef, kept = (x.detach() for x in FUSED.forward_op(z, *rest))
    assert kept.shape == (2, 7, 7)
    for last in (kept, None):  # of a short call; of a long one
        args = (torch.ones_like(loss), z.detach(), *rest[:3], coef, last, *rest[3:])
        torch.library.opcheck(FUSED.backward_op, args)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("window", [4.0, torch.tensor([2.0, 5.0])])
def test_compiled_equals_eager(autocast, window):
    z = torch.randn(2, 140, 4, generator=torch.Generator().manual_seed(0))
    t = torch.arange(140) * 2

    def train(x):
        return fastseq.contrastive_idm(x * 2, t, lengths=[140, 4], window=window, margin=9.0)

    def both(function):
        x = z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = function(x)
        return (loss, *torch.autograd.grad(loss, x))

    torch._dynamo.reset()
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    for want, got in zip(both(train), both(compiled), strict=True):
        assert torch.equal(want, got)


def test_compiled_with_other_lengths():
    """Another T compiles once more; after that, no T does."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.contrastive_idm, fullgraph=True, backend=counter)
    for frames in (5, 8, 11, 14):
        z = torch.randn(2, frames, 3)
        assert torch.equal(compiled(z), fastseq.contrastive_idm(z))
    assert counter.frame_count == 2


def test_compiled_short_and_long_calls(monkeypatch):
    """One graph where slopes are kept, another where they are not."""
    monkeypatch.setattr(short, "KEPT_BYTES", 4 * 2 * 9 * 9)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.contrastive_idm, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for frames in (5, 8, 9, 10, 14, 7):
        z = torch.randn(2, frames, 3)
        x = z.clone().requires_grad_()
        loss = compiled(x)
        got = loss, *torch.autograd.grad(loss, x)
        assert all(map(torch.equal, got, loss_and_grad(z)))
        counts.append(counter.frame_count - counts[0] if counts else counter.frame_count)
    assert counts[1:] == [0, 0, 1, 1, 1]


def test_compiled_twice_differentiated_is_an_error():
    z = torch.randn(2, 5, 3, requires_grad=True)

    def penalty(x):
        (dx,) = torch.autograd.grad(fastseq.contrastive_idm(x), x, create_graph=True)
        return dx.square().sum()

    with pytest.raises(RuntimeError, match='backend="reference"'):
        penalty(z).backward()
    opts = ("torch", 10.0, 2.0, "contrastive", "paper", "sqeuclidean", "mean", [True])
    loss, *_ = FUSED.forward_op(z, None, None, None, *opts)
    (dz,) = torch.autograd.grad(loss, z, create_graph=True)
    assert torch.equal(dz, loss_and_grad(z)[1])
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dz.square().sum().backward()
