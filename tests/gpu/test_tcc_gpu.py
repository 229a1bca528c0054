"""tcc_loss on a real GPU, to be passed before any benchmark. Errors are compared with those of
plain PyTorch.
"""

import pytest
import torch
from tolerance import as_accurate_as, relative

import fastseq
from fastseq.ops.tcc.op import resolve_backend
from fastseq.ops.tcc.options import LOSS_TYPES

pytestmark = pytest.mark.gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BACKENDS = ["triton", "torch"]


def inputs(n, frames, channels, dtype=torch.float32, device="cuda"):
    make = torch.Generator(device).manual_seed(0)
    z = 0.5 * torch.randn(2, n, frames, channels, device=device, generator=make)
    return z[0].to(dtype), (z[1] + z[0]).to(dtype)


def loss_and_grads(x, y=None, **kwargs):
    inputs = [z.detach().requires_grad_() for z in (x, y) if z is not None]
    loss = fastseq.tcc_loss(*inputs, **kwargs)
    return (loss, *torch.autograd.grad(loss.sum(), inputs))


def check_error(got, plain, want, dtype):
    """In fp32: three products in sequence, each of three tf32 products, and two softmaxes.

    In halves, everything but the products of frames is rounded to tf32 several times before the
    result. This is far less than bf16's own rounding, but as much as fp16's, which has no more
    bits.
    """
    loss, grad = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 1e-3)}.get(dtype, (2e-3, None))
    as_accurate_as(got[0], plain[0], want[0], floor=loss)
    as_accurate_as(got[1:], plain[1:], want[1:], floor=grad, what=("dx", "dy"))


def test_auto_takes_the_kernels():
    assert resolve_backend("auto", "cuda", torch.bfloat16)[0] == "triton"
    assert resolve_backend("auto", "cuda", torch.float64)[0] == "torch"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(8, 40, 128), (2, 1000, 200), (1, 4096, 128)])
def test_error_is_that_of_plain_torch(shape, backend, loss_type, dtype):
    x, y = inputs(*shape, DTYPES[dtype])
    kw = {"loss_type": loss_type}
    want = loss_and_grads(x.double(), y.double(), backend="reference", **kw)
    plain, got = (loss_and_grads(x, y, backend=b, **kw) for b in ("reference", backend))
    check_error(got, plain, want, DTYPES[dtype])


@pytest.mark.parametrize("channels", [16, 17, 32, 64, 256, 512])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", ["l2", "cosine"])
def test_channels(similarity, dtype, channels):
    """Every configuration of tiles."""
    x, y = inputs(2, 97, channels, DTYPES[dtype])
    kw = {"similarity": similarity, "lengths_x": [97, 33]}
    want = loss_and_grads(x.double(), y.double(), backend="reference", **kw)
    plain, got = (loss_and_grads(x, y, backend=b, **kw) for b in ("reference", "triton"))
    check_error(got, plain, want, DTYPES[dtype])


def test_tf32_when_allowed():
    x, y = inputs(2, 500, 128)
    want = loss_and_grads(x.double(), y.double(), backend="reference")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        plain, got = (loss_and_grads(x, y, backend=b) for b in ("reference", "triton"))
    finally:
        torch.set_float32_matmul_precision(before)
    check_error(got, plain, want, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_ordered_pairs(backend):
    x, _ = inputs(6, 300, 64)
    want = loss_and_grads(x.double(), backend="reference")
    for a, b in zip(loss_and_grads(x, backend=backend), want, strict=True):
        assert relative(a, b) < 1e-5


def test_many_pairs():
    """More lengths and losses than the kernels process at once."""
    x, y = inputs(150, 20, 32)
    lengths = torch.arange(150) % 21
    want = loss_and_grads(x.double(), y.double(), lengths_x=lengths, backend="reference")
    for a, b in zip(loss_and_grads(x, y, lengths_x=lengths), want, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_alone_and_in_a_batch(dtype):
    x, y = inputs(3, 300, 128, DTYPES[dtype])
    lengths = {"lengths_x": [300, 64, 5], "lengths_y": [200, 300, 65]}
    batch = loss_and_grads(x, y, reduction="none", **lengths)
    for n, (i, j) in enumerate(zip(*lengths.values(), strict=True)):
        alone = loss_and_grads(x[n, :i], y[n, :j], reduction="none")
        want = (batch[0][n], batch[1][n, :i], batch[2][n, :j])
        assert all(torch.equal(a, b) for a, b in zip(alone, want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_twenty_times(backend):
    x, y = inputs(4, 1000, 128)
    first = loss_and_grads(x, y, backend=backend)
    for _ in range(20):
        again = loss_and_grads(x, y, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_host_never_waits(backend, reduction):
    x, y = inputs(2, 300, 128)
    lengths = torch.tensor([300, 200], device="cuda")
    calls = (
        (x, y, {"lengths_x": lengths, "duration_y": lengths}),
        (x, None, {"lengths_x": lengths, "loss_type": "classification"}),
    )
    for a, b, kwargs in calls:
        loss_and_grads(a, b, reduction=reduction, backend=backend, **kwargs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for a, b, kwargs in calls:
            loss_and_grads(a, b, reduction=reduction, backend=backend, **kwargs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_replays_new_values(backend):
    x, y = inputs(2, 300, 128)
    lengths = torch.tensor([300, 200], device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_grads(x, y, lengths_x=lengths, backend=backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = loss_and_grads(x, y, lengths_x=lengths, backend=backend)
    x.copy_(0.5 * torch.randn_like(x))
    lengths.copy_(torch.tensor([7, 299]))
    graph.replay()
    want = loss_and_grads(x, y, lengths_x=lengths, backend=backend)
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pair", [True, False])
def test_a_learned_temperature(pair, backend):
    """On the device it is never read, and a replayed graph uses its new value."""
    x, y = inputs(3, 300, 128)
    lengths = torch.tensor([300, 200, 64], device="cuda")
    tau = torch.tensor(0.1, device="cuda", requires_grad=True)

    def slope(backend=backend, dtype=torch.float32):
        sides = x.to(dtype), y.to(dtype) if pair else None
        leaf = tau if dtype == tau.dtype else tau.detach().to(dtype).requires_grad_()
        loss = fastseq.tcc_loss(*sides, temperature=leaf, lengths_x=lengths, backend=backend)
        return loss.detach(), *torch.autograd.grad(loss, leaf)

    slope()
    torch.cuda.set_sync_debug_mode("error")
    try:
        slope()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        slope()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = slope()
    for value in (0.1, 0.05):
        with torch.no_grad():
            tau.fill_(value)
        graph.replay()
        assert all(map(torch.equal, got, slope()))
        truth, plain = slope("reference", torch.float64), slope("reference")
        # One number, the difference of many: it has fewer correct digits than dx and dy.
        as_accurate_as(got, plain, truth, floor=1e-4, what=("loss", "dtemperature"))
    with torch.no_grad():
        tau.fill_(-1.0)
    assert slope()[0].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_linear(backend):
    x, y = (z.requires_grad_() for z in inputs(1, 32768, 128))
    fastseq.tcc_loss(x[:, :64], y[:, :64], backend=backend).backward()
    x.grad = y.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fastseq.tcc_loss(x, y, backend=backend).backward()
    torch.cuda.synchronize()
    gradients = x.grad.nbytes + y.grad.nbytes
    assert torch.cuda.max_memory_allocated() - before - gradients < 250e6  # one matrix: 4.3 GB


@pytest.mark.timeout(180)  # Inductor alone takes 20 to 40 s, more beside other tests
@pytest.mark.parametrize("pair", [True, False])
def test_compiled_equals_eager(pair):
    x, y = inputs(2, 100, 64)
    args = (x, y) if pair else (x,)
    want = loss_and_grads(*args)
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.tcc_loss, fullgraph=True)
    leaves = [z.detach().requires_grad_() for z in args]
    loss = compiled(*leaves)
    got = (loss, *torch.autograd.grad(loss, leaves))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
