"""tcc_loss as a torch.library op: opcheck, torch.compile in one graph, compiled equals eager."""

import pytest
import torch

import fastseq
from fastseq.ops.tcc.op import FUSED
from ops.tcc.cases import loss_and_grads, randn

pytestmark = pytest.mark.compile

OPTIONS = ("torch", "regression_mse_var", "l2", 0.1, 0.001, 0.1, 0.1, True)


def _inputs(pair=True, reduction="mean", keep=True):
    x = randn(2, 7, 4, dtype=torch.float32).requires_grad_()
    y = randn(2, 5, 4, dtype=torch.float32, seed=1).requires_grad_() if pair else None
    lengths, duration = torch.tensor([7, 3]), torch.tensor([9.0, 4.0])
    needs = [keep, keep and pair, False]
    return x, y, None, None, None, lengths, None, duration, None, *OPTIONS, reduction, needs


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(pair, reduction, keep):
    args = _inputs(pair, reduction, keep)
    if not keep:
        # Without the tensors that the backward needs, there is no gradient to check.
        args = [z.detach() if isinstance(z, torch.Tensor) else z for z in args]
    torch.library.opcheck(FUSED.forward_op, args)
    loss, dx, dy = (out.detach() for out in FUSED.forward_op(*args))
    kept = dx if dx.numel() else None, dy if dy.numel() else None
    assert (kept[0] is not None) == (keep and (pair or reduction == "mean"))
    x, y = (None if z is None else z.detach() for z in args[:2])
    grad = torch.ones_like(loss)
    # Also with nothing kept, as when the forward ran without autograd.
    rest = *args[9:-1], [True, pair, False]
    torch.library.opcheck(FUSED.backward_op, (grad, x, y, *args[2:9], *kept, *rest))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("pair", [True, False])
def test_compiled_equals_eager(pair, autocast):
    x = randn(2, 9, 4, dtype=torch.float32)
    y = randn(2, 11, 4, dtype=torch.float32, seed=1) if pair else None
    t = torch.arange(11)

    def train(a, b):
        times = (t[:9], None) if b is None else (t[:9], t)
        return fastseq.tcc_loss(a * 2, b, *times, lengths_x=[9, 4], duration_x=[20.0, 10.0])

    def both(function):
        inputs = [z.clone().requires_grad_() for z in (x, y) if z is not None]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = function(inputs[0], inputs[1] if pair else None)
        return (loss, *torch.autograd.grad(loss, inputs))

    torch._dynamo.reset()
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    for want, got in zip(both(train), both(compiled), strict=True):
        assert torch.equal(want, got)


def test_compiled_reference_is_one_graph():
    x = randn(2, 9, 4)
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.tcc_loss, fullgraph=True, backend="aot_eager")
    kw = {"loss_type": "classification", "backend": "reference"}
    torch.testing.assert_close(compiled(x, **kw), fastseq.tcc_loss(x, **kw))


def test_compiled_with_only_one_gradient():
    x, y = randn(2, 5, 3).requires_grad_(), randn(2, 6, 3, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.tcc_loss, fullgraph=True, backend="aot_eager")
    (dx,) = torch.autograd.grad(compiled(x, y), x)
    assert torch.equal(dx, loss_and_grads(x, y)[1])


def test_compiled_with_other_lengths_and_temperatures():
    """Another T compiles once more; after that, no T does. A schedule of the temperature is
    traced.
    """
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.tcc_loss, fullgraph=True, backend=counter)
    for frames in (5, 8, 11, 14):
        x = randn(2, frames, 3)
        assert torch.equal(compiled(x), fastseq.tcc_loss(x))
    assert counter.frame_count == 2
    for temperature in (0.2, 0.3, 0.4):
        got = compiled(x, temperature=temperature)
        # torch.compile treats a changing number as a tensor, which divides the embeddings instead.
        same = temperature, torch.tensor(temperature, dtype=torch.float64)
        assert any(torch.equal(got, fastseq.tcc_loss(x, temperature=t)) for t in same)
        want = fastseq.tcc_loss(x, temperature=temperature)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


def test_compiled_twice_differentiated_raises():
    x = randn(2, 5, 3).requires_grad_()
    loss = FUSED.forward_op(x, *[None] * 8, *OPTIONS, "mean", [True, False, False])[0]
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dx.sum().backward()
