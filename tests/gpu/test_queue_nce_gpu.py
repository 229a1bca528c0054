"""queue_nce on a real GPU, to be passed before any benchmark. Errors are compared with those of
plain PyTorch.
"""

import pytest
import torch
import torch.nn.functional as F
from tolerance import as_accurate_as, relative, rounding

import fastseq

pytestmark = pytest.mark.gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def inputs(n, length, d, dtype, per_query=3, seed=0, device="cuda"):
    make = torch.Generator(device).manual_seed(seed)

    def unit(*shape):
        z = torch.randn(*shape, d, device=device, generator=make)
        return F.normalize(z, dim=-1).to(dtype)

    return unit(n), unit(n, per_query), unit(length)


def loss_and_grads(q, positives, queue, backend="triton", **kwargs):
    q, positives = (z.detach().requires_grad_() for z in (q, positives))
    loss = fastseq.queue_nce(q, positives, queue, backend=backend, **kwargs)
    return loss, *torch.autograd.grad(loss.sum(), (q, positives))


def plain(q, positives, queue, temperature):
    """Typical use. Halves are multiplied in float32."""
    q, positives, queue = (z.float() for z in (q, positives, queue))
    logits = torch.cat(
        [
            torch.cat([(q * k).sum(1, keepdim=True), q @ queue.mT], 1) / temperature
            for k in positives.unbind(1)
        ]
    )
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=q.device))


def check_error(args, temperature, got):
    truth = loss_and_grads(
        *(z.double() for z in args), backend="torch", temperature=temperature, normalize=False
    )
    leaves = [z.detach().requires_grad_() for z in args[:2]]
    peer = plain(*leaves, args[2], temperature)
    peer = (peer, *torch.autograd.grad(peer, leaves))
    # Tensor cores sum in another order and in another width.
    as_accurate_as(
        got[0], peer[0], truth[0], floor=None if args[0].dtype == torch.float32 else 1e-4
    )
    as_accurate_as(got[1:], peer[1:], truth[1:], what=("dq", "dpositives"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(32, 131072, 128), (512, 16384, 200), (65, 1000, 64)])
@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_error_is_that_of_plain_torch(shape, dtype, temperature):
    args = inputs(*shape, DTYPES[dtype])
    check_error(args, temperature, loss_and_grads(*args, temperature=temperature, normalize=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalised_inside(dtype):
    q, positives, queue = inputs(130, 5000, 128, DTYPES[dtype])
    scale = torch.rand(130, 1, device="cuda") * 20 + 0.1
    q, positives = (q * scale).to(q.dtype), (positives * scale[..., None]).to(q.dtype)
    got = loss_and_grads(q, positives, queue)
    want = loss_and_grads(*(z.double() for z in (q, positives, queue)), backend="torch")
    plain = loss_and_grads(q, positives, queue, backend="reference")
    as_accurate_as(got[0], plain[0], want[0], floor=None if dtype == "fp32" else 1e-4)
    as_accurate_as(got[1:], plain[1:], want[1:], what=("dq", "dpositives"))


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_fp32_follows_torch(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        args = inputs(100, 10000, 128, torch.float32)
        got = loss_and_grads(*args)
    finally:
        torch.set_float32_matmul_precision(before)
    want = loss_and_grads(*(z.double() for z in args), backend="torch")
    loss = rounding(torch.float32) if precision == "highest" else 1e-3
    assert relative(got[0], want[0]) <= loss
    assert relative(got[1], want[1]) <= (1e-5 if precision == "highest" else 2e-3)


def test_torch_backend_on_the_gpu():
    """It uses a running maximum there, because it must not read any value back."""
    args = inputs(100, 10000, 128, torch.float32)
    want = loss_and_grads(*(z.double() for z in args), backend="reference")
    got = loss_and_grads(*args, backend="torch")
    assert relative(got[0], want[0]) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_twenty_times_and_alone(dtype):
    q, positives, queue = inputs(200, 20000, 128, DTYPES[dtype])
    first = loss_and_grads(q, positives, queue, reduction="none")
    for _ in range(20):
        again = loss_and_grads(q, positives, queue, reduction="none")
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    alone = loss_and_grads(q[77:78], positives[77:78], queue, reduction="none")
    assert all(torch.equal(a[0], b[77]) for a, b in zip(alone, first, strict=True))


def test_graph_replays_new_values():
    q, positives, queue = inputs(64, 20000, 128, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles outside the capture
        loss_and_grads(q, positives, queue)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = loss_and_grads(q, positives, queue)
    for z in (q, positives, queue):
        z.copy_(F.normalize(torch.randn_like(z), dim=-1))
    graph.replay()
    want = loss_and_grads(q, positives, queue)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_host_never_waits():
    q, positives, queue = inputs(64, 20000, 128, torch.bfloat16)
    bank = fastseq.nn.FeatureQueue(20000, 128).cuda()

    def call():
        for backend in ("triton", "torch"):
            leaf = q.detach().requires_grad_()
            loss = fastseq.queue_nce(leaf, positives, queue, backend=backend)
            bank.enqueue(positives)
            loss.backward()

    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(bank.pointer) == 4 * 64 * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_learned_temperature(dtype):
    """On the device it is never read, and a replayed graph uses its new value."""
    q, positives, queue = inputs(64, 20000, 128, DTYPES[dtype])
    tau = torch.tensor(0.1, device="cuda", requires_grad=True)

    def slope(backend="triton", dtype=None):
        args = (z if dtype is None else z.to(dtype) for z in (q, positives, queue))
        leaf = tau if dtype is None else tau.detach().to(dtype).requires_grad_()
        loss = fastseq.queue_nce(*args, temperature=leaf, backend=backend)
        return loss.detach(), *torch.autograd.grad(loss, leaf)

    slope()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for backend in ("triton", "torch"):
            slope(backend)
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
    for value in (0.1, 0.02):
        with torch.no_grad():
            tau.fill_(value)
        graph.replay()
        assert all(map(torch.equal, got, slope()))
        truth, plain = slope("torch", torch.float64), slope("reference")
        as_accurate_as(got[0], plain[0], truth[0], floor=None if dtype == "fp32" else 1e-4)
        # It is computed from the queue's mean, whose probabilities have the dtype of q.
        floor = rounding(DTYPES[dtype])
        as_accurate_as(got[1:], plain[1:], truth[1:], floor=floor, what=("dtemperature",))
    with torch.no_grad():
        tau.fill_(-1.0)
    assert slope()[0].isnan()


def test_runs_on_the_current_stream():
    """Inputs that a slow kernel on the same stream is still writing."""
    q, positives, queue = inputs(64, 20000, 128, torch.bfloat16)
    want = loss_and_grads(q, positives, queue)
    stream, late = torch.cuda.Stream(), torch.zeros_like(queue)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(queue)
        got = loss_and_grads(q, positives, late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    args = inputs(20, 5000, 64, torch.bfloat16)
    got = loss_and_grads(*(x.to("cuda:1") for x in args))
    for a, b in zip(got, loss_and_grads(*args), strict=True):
        assert torch.equal(a.to("cuda:0"), b)


def test_memory_and_a_queue_changed_before_the_backward():
    q, positives, queue = inputs(512, 131072, 128, torch.bfloat16)
    want = loss_and_grads(q, positives, queue)[1]
    leaf = q.detach().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = fastseq.queue_nce(leaf, positives, queue, backend="triton")
    queue.fill_(torch.nan)
    loss.backward()
    torch.cuda.synchronize()
    # 64 parts of (512, 128) float32 are 17 MB; one 512 x 131072 matrix of bf16 is 134.
    assert torch.cuda.max_memory_allocated() - before < 25e6
    assert torch.equal(leaf.grad, want)
