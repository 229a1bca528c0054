"""tcc_loss on a real GPU: the gate before any benchmark. Error is judged against plain PyTorch."""

import pytest
import torch

import fastseq
from fastseq.ops.tcc.options import LOSS_TYPES

pytestmark = pytest.mark.gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def inputs(n, frames, channels, dtype=torch.float32):
    make = torch.Generator("cuda").manual_seed(0)
    z = 0.5 * torch.randn(2, n, frames, channels, device="cuda", generator=make)
    return z[0].to(dtype), (z[1] + z[0]).to(dtype)


def loss_and_grads(x, y=None, **kwargs):
    inputs = [z.detach().requires_grad_() for z in (x, y) if z is not None]
    loss = fastseq.tcc_loss(*inputs, **kwargs)
    return (loss, *torch.autograd.grad(loss.sum(), inputs))


def relative(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("shape", [(8, 40, 128), (2, 1000, 200), (1, 4096, 128)])
def test_error_is_that_of_plain_torch(shape, loss_type, dtype):
    x, y = inputs(*shape, DTYPES[dtype])
    kw = {"loss_type": loss_type}
    want = loss_and_grads(x.double(), y.double(), backend="reference", **kw)
    plain, got = (loss_and_grads(x, y, backend=b, **kw) for b in ("reference", "torch"))
    floor = 1e-5 if dtype == "fp32" else torch.finfo(DTYPES[dtype]).eps
    for a, p, b in zip(got, plain, want, strict=True):
        assert relative(a, b) <= 2 * relative(p, b) + floor


def test_all_ordered_pairs():
    x, _ = inputs(6, 300, 64)
    want = loss_and_grads(x.double(), backend="reference")
    for a, b in zip(loss_and_grads(x), want, strict=True):
        assert relative(a, b) < 1e-5


def test_same_bits_twenty_times():
    x, y = inputs(4, 1000, 128)
    first = loss_and_grads(x, y)
    for _ in range(20):
        again = loss_and_grads(x, y)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_host_never_waits(reduction):
    x, y = inputs(2, 300, 128)
    lengths = torch.tensor([300, 200], device="cuda")
    calls = (
        (x, y, {"lengths_x": lengths, "duration_y": lengths}),
        (x, None, {"lengths_x": lengths, "loss_type": "classification"}),
    )
    for a, b, kwargs in calls:
        loss_and_grads(a, b, reduction=reduction, **kwargs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for a, b, kwargs in calls:
            loss_and_grads(a, b, reduction=reduction, **kwargs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replays_new_values():
    x, y = inputs(2, 300, 128)
    lengths = torch.tensor([300, 200], device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_grads(x, y, lengths_x=lengths)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = loss_and_grads(x, y, lengths_x=lengths)
    x.copy_(0.5 * torch.randn_like(x))
    lengths.copy_(torch.tensor([7, 299]))
    graph.replay()
    want = loss_and_grads(x, y, lengths_x=lengths)
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 1e-6


def test_memory_is_linear():
    x, y = (z.requires_grad_() for z in inputs(1, 32768, 128))
    fastseq.tcc_loss(x[:, :64], y[:, :64]).backward()
    x.grad = y.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fastseq.tcc_loss(x, y).backward()
    torch.cuda.synchronize()
    gradients = x.grad.nbytes + y.grad.nbytes
    assert torch.cuda.max_memory_allocated() - before - gradients < 250e6  # one matrix: 4.3 GB
