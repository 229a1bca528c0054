"""queue_nce as a torch.library op: opcheck, torch.compile in one graph, equal to eager."""

import pytest
import torch

import fastseq
from fastseq.ops.queue_nce.op import FUSED
from ops.queue_nce.cases import inputs, loss_and_grads

pytestmark = pytest.mark.compile

OPTIONS = ("torch", 0.1, True)  # and the reduction


def tensors(grad=True):
    q, positives, queue = inputs(4, 2, 9, 5, dtype=torch.float32)
    return q.requires_grad_(grad), positives.requires_grad_(grad), queue


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck_forward(keep, reduction):
    q, positives, queue = tensors()
    if not keep:
        q = q.detach()
    options = *OPTIONS, reduction, [keep, True, False]
    torch.library.opcheck(FUSED.forward_op, (q, positives, None, queue, *options))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_opcheck_backward(needs):
    (q, positives, queue), options = tensors(grad=False), (*OPTIONS, "mean", (*needs, False))
    loss, lack, mean = FUSED.forward_op(q, positives, None, queue, *options)
    mean = mean if needs[0] else None
    torch.library.opcheck(
        FUSED.backward_op, (torch.ones_like(loss), q, positives, None, lack, mean, *options)
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_equals_eager(autocast, reduction):
    q, positives, queue = inputs(6, 3, 600, 8, dtype=torch.float32)

    def train(q, positives):
        return fastseq.queue_nce(q * 2, positives, queue, reduction=reduction).sum()

    def both(function):
        leaves = q.clone().requires_grad_(), positives.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = function(*leaves)
        return (loss, *torch.autograd.grad(loss, leaves))

    torch._dynamo.reset()
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    for want, got in zip(both(train), both(compiled), strict=True):
        assert torch.equal(want, got)


def test_compiled_step_with_its_queue():
    """Loss, then enqueue, in one graph: the loss uses the queue before the enqueue."""
    torch.manual_seed(0)
    queue = fastseq.nn.FeatureQueue(64, 8)
    twin = fastseq.nn.FeatureQueue(64, 8)
    twin.load_state_dict(queue.state_dict())
    q, keys, _ = inputs(6, 1, 1, 8, dtype=torch.float32)
    keys = keys[:, 0]

    def step(q, bank):
        loss = fastseq.queue_nce(q, keys, bank.features)
        bank.enqueue(keys)
        return loss

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        pair = []
        for function, bank in ((step, queue), (compiled, twin)):
            leaf = q.clone().requires_grad_()
            loss = function(leaf, bank)
            pair.append((loss, *torch.autograd.grad(loss, leaf), bank.features, bank.pointer))
        assert all(map(torch.equal, *pair))
    assert int(queue.pointer) == 18


def test_compiled_with_other_numbers_of_queries():
    """Another N compiles once more; after that, no N does."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.queue_nce, fullgraph=True, backend=counter)
    queue = torch.randn(30, 4)
    for n in (5, 8, 11, 14):
        q = torch.randn(n, 4)
        assert torch.equal(compiled(q, q, queue), fastseq.queue_nce(q, q, queue))
    assert counter.frame_count == 2


def test_compiled_twice_differentiated_is_an_error():
    q, positives, queue = tensors()
    loss, *_ = FUSED.forward_op(q, positives, None, queue, *OPTIONS, "sum", (True, True, False))
    (dq,) = torch.autograd.grad(loss, q, create_graph=True)
    assert torch.equal(dq, loss_and_grads(q, positives, queue, reduction="sum")[1])
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dq.square().sum().backward()
