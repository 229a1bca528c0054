"""scl_loss on a real GPU, to be passed before any benchmark. Errors are compared with those of
plain PyTorch.
"""

import pytest
import torch
from tolerance import as_accurate_as, relative, rounding

import fastseq

pytestmark = pytest.mark.gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def inputs(n, frames, channels, dtype, seed=0, device="cuda"):
    make = torch.Generator(device).manual_seed(seed)
    z = torch.randn(2, n, frames, channels, device=device, generator=make)
    z[1] += z[0]
    t = torch.arange(frames, device=device).expand(n, frames)
    return z[0].to(dtype), z[1].to(dtype), t, 2 * t


def loss_and_grads(z1, z2, t1, t2, backend="triton", **kwargs):
    z1, z2 = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    loss = fastseq.scl_loss(z1, z2, t1, t2, backend=backend, **kwargs)
    return (loss, *torch.autograd.grad(loss.sum(), (z1, z2)))


def plain(z1, z2, t1, t2, variance=10.0, temperature=0.1):
    """Typical use: one sequence, reduction="mean". Halves are multiplied in float32."""
    z1, z2 = (torch.nn.functional.normalize(z.float(), dim=-1) for z in (z1, z2))
    logits = z1 @ z2.T / temperature
    gap = t1[:, None].float() - t2[None, :].float()
    log_w = (-gap.square() / (2 * variance)).masked_fill(gap.abs() > (206 * variance) ** 0.5, -1e9)
    total = 0
    for rows, targets in ((logits, log_w), (logits.T, log_w.T)):
        w = targets.softmax(-1) * (targets.amax(-1, keepdim=True) > -1e8)
        log_p = rows.log_softmax(-1)
        total = total + (torch.xlogy(w, w) - w * log_p).sum()
    return total / (len(z1) + len(z2))


def check_error(z1, z2, t1, t2, got):
    """Tensor cores sum in another order and in another width: 1e-4 in the loss of halves."""
    truth = loss_and_grads(z1.double(), z2.double(), t1, t2, backend="reference")
    leaves = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    loss = sum(plain(*row) for row in zip(*leaves, t1, t2, strict=True)) / len(z1)
    peer = (loss, *torch.autograd.grad(loss, leaves))
    as_accurate_as(got[0], peer[0], truth[0], floor=None if z1.dtype == torch.float32 else 1e-4)
    as_accurate_as(got[1:], peer[1:], truth[1:], what=("dz1", "dz2"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 240, 128), (2, 1000, 200), (1, 4096, 128)])
def test_error_is_that_of_plain_torch(shape, dtype):
    args = inputs(*shape, DTYPES[dtype])
    check_error(*args, loss_and_grads(*args))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["video", "batch"])
@pytest.mark.parametrize("shape", [(4, 240, 128), (3, 333, 200)])
@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_other_negatives(shape, negatives, dtype, temperature):
    """Compared with the dense definition, in float32 after inputs in ``dtype``."""
    z1, z2, t1, t2 = inputs(*shape, DTYPES[dtype])
    kwargs = {"negatives": negatives, "temperature": temperature}
    got = loss_and_grads(z1, z2, t1, t2, **kwargs)
    peer = loss_and_grads(z1, z2, t1, t2, backend="reference", **kwargs)
    truth = loss_and_grads(z1.double(), z2.double(), t1, t2, backend="reference", **kwargs)
    as_accurate_as(got[0], peer[0], truth[0], floor=None if dtype == "fp32" else 1e-4)
    as_accurate_as(got[1:], peer[1:], truth[1:], what=("dz1", "dz2"))


@pytest.mark.parametrize("negatives", ["video", "batch"])
@pytest.mark.parametrize("frames", [(1000, 10), (480, 400)])
def test_other_negatives_of_unequal_views(frames, negatives):
    z1, z2 = (inputs(3, t, 128, torch.bfloat16)[k] for k, t in enumerate(frames))
    got = loss_and_grads(z1, z2, None, None, negatives=negatives)
    want = loss_and_grads(z1.float(), z2.float(), None, None, "torch", negatives=negatives)
    assert relative(got[0], want[0]) <= 1e-4
    for a, b in zip(got[1:], want[1:], strict=True):
        assert relative(a, b) <= torch.finfo(torch.bfloat16).eps
    got = loss_and_grads(z1, z2[:, :0], None, None, negatives=negatives)
    assert not any(x.any() for x in got)


def test_other_negatives_are_served_by_triton():
    for negatives in ("video", "batch"):
        args = inputs(2, 100, 64, torch.bfloat16)
        got, want = (
            loss_and_grads(*args, negatives=negatives, backend=name) for name in ("auto", "triton")
        )
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_other_negatives_large():
    z1, z2, t1, t2 = inputs(8, 2048, 128, torch.bfloat16)
    got = loss_and_grads(z1, z2, t1, t2, negatives="batch")
    want = loss_and_grads(z1.float(), z2.float(), t1, t2, backend="torch", negatives="batch")
    assert relative(got[0], want[0]) <= 1e-4
    for a, b in zip(got[1:], want[1:], strict=True):
        assert relative(a, b) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("shape", [(4, 4096, 128), (1, 16384, 128)])
def test_large(shape):
    """Compared with the blockwise backend in fp32, because float64 does not fit in memory. Rounding
    of an operand and of the result to halves adds up to half an eps.
    """
    z1, z2, t1, t2 = inputs(*shape, torch.bfloat16)
    got = loss_and_grads(z1, z2, t1, t2)
    want = loss_and_grads(z1.float(), z2.float(), t1, t2, backend="torch")
    assert relative(got[0], want[0]) <= 1e-4
    for a, b in zip(got[1:], want[1:], strict=True):
        assert relative(a, b) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_fp32_follows_torch(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        z1, z2, t1, t2 = inputs(2, 500, 128, torch.float32)
        got = loss_and_grads(z1, z2, t1, t2)
    finally:
        torch.set_float32_matmul_precision(before)
    want = loss_and_grads(z1.double(), z2.double(), t1, t2, backend="reference")
    for a, b in zip(got[1:], want[1:], strict=True):
        assert relative(a, b) <= (1e-5 if precision == "highest" else 2e-3)


@pytest.mark.parametrize("negatives", ["cross", "video", "batch"])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_same_bits_twenty_times(temperature, negatives):
    z1, z2, t1, t2 = inputs(4, 1000, 128, torch.bfloat16)
    kwargs = {"temperature": temperature, "negatives": negatives}
    first = loss_and_grads(z1, z2, t1, t2, **kwargs)
    for _ in range(20):
        again = loss_and_grads(z1, z2, t1, t2, **kwargs)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    if negatives == "batch":  # a video alone has none
        return
    kwargs["reduction"] = "none"
    batch = loss_and_grads(z1, z2, t1, t2, **kwargs)
    alone = loss_and_grads(z1[2:3], z2[2:3], t1[2:3], t2[2:3], **kwargs)
    assert all(torch.equal(a[0], b[2]) for a, b in zip(alone, batch, strict=True))


@pytest.mark.parametrize("negatives", ["cross", "batch"])
def test_graph_replays_new_values(negatives):
    z1, z2, t1, t2 = inputs(2, 300, 128, torch.bfloat16)
    lengths = torch.tensor([300, 200], device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles outside the capture
        loss_and_grads(z1, z2, t1, t2, lengths1=lengths, negatives=negatives)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = loss_and_grads(z1, z2, t1, t2, lengths1=lengths, negatives=negatives)
    z1.copy_(torch.randn_like(z1))
    lengths.copy_(torch.tensor([7, 299]))
    graph.replay()
    want = loss_and_grads(z1, z2, t1, t2, lengths1=lengths, negatives=negatives)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "paper"])
def test_host_never_waits(reduction):
    z1, z2, t1, t2 = inputs(2, 300, 128, torch.bfloat16)
    lengths = torch.tensor([300, 200], device="cuda")
    valid = torch.rand(2, 300, device="cuda") < 0.8
    calls = ({"lengths1": lengths}, {"valid1": valid, "lengths2": lengths})
    calls = *calls, *({"negatives": kind, **calls[1]} for kind in ("video", "batch"))
    for kwargs in calls:
        loss_and_grads(z1, z2, t1, t2, reduction=reduction, **kwargs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for kwargs in calls:
            loss_and_grads(z1, z2, t1, t2, reduction=reduction, **kwargs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["cross", "video"])
def test_scalars_in_tensors(dtype, negatives):
    """On the device they are never read, and a replayed graph uses their new values."""
    z1, z2, t1, t2 = inputs(2, 1100, 128, DTYPES[dtype])
    tau = torch.tensor(0.1, device="cuda", requires_grad=True)
    var = torch.tensor(10.0, device="cuda")

    def run(backend="triton", dtype=None):
        leaves = [z.detach() if dtype is None else z.detach().to(dtype) for z in (z1, z2, tau)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        kwargs = {"variance": var, "temperature": leaves[2], "negatives": negatives}
        loss = fastseq.scl_loss(*leaves[:2], t1, t2, backend=backend, **kwargs)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for backend in ("triton", "torch"):
            run(backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for value in (0.1, 0.02):
        with torch.no_grad():
            tau.fill_(value)
            var.fill_(100 * value)
        graph.replay()
        assert all(map(torch.equal, got, run()))
        truth, peer = run("reference", torch.float64), run("reference")
        as_accurate_as(got[0], peer[0], truth[0], floor=None if dtype == "fp32" else 1e-4)
        as_accurate_as(got[1:3], peer[1:3], truth[1:3], what=("dz1", "dz2"))
        # Most of the sum over all pairs cancels, and plain PyTorch may be exact by chance.
        floor = max(1e-5, rounding(DTYPES[dtype]))
        as_accurate_as(got[3:], peer[3:], truth[3:], floor=floor, what=("dtemperature",))
    with torch.no_grad():
        tau.fill_(0.1)
        var.fill_(-1.0)
    assert run()[0].isnan()


def test_runs_on_the_current_stream():
    """Inputs that a slow kernel on the same stream is still writing."""
    z1, z2, t1, t2 = inputs(2, 500, 128, torch.bfloat16)
    want = loss_and_grads(z1, z2, t1, t2)
    stream = torch.cuda.Stream()
    late1, late2 = torch.zeros_like(z1), torch.zeros_like(z2)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late1.copy_(z1)
        late2.copy_(z2)
        got = loss_and_grads(late1, late2, t1, t2)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    args = inputs(1, 100, 64, torch.bfloat16)
    want = loss_and_grads(*args)
    got = loss_and_grads(*(x.to("cuda:1") for x in args))
    assert all(torch.equal(a.to("cuda:0"), b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("negatives", ["cross", "batch"])
def test_memory_is_linear(negatives):
    """65536 frames per view. Negatives add the memory of their frames once and one gradient in
    float32.
    """
    videos = 1 if negatives == "cross" else 4
    z1, z2, t1, t2 = inputs(videos, 65536 // videos, 128, torch.bfloat16)
    z1.requires_grad_()
    z2.requires_grad_()
    loss_and_grads(z1[:, :64], z2[:, :64], t1[:, :64], t2[:, :64], negatives=negatives)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fastseq.scl_loss(z1, z2, t1, t2, backend="triton", negatives=negatives).backward()
    torch.cuda.synchronize()
    gradients = z1.grad.nbytes + z2.grad.nbytes
    assert torch.cuda.max_memory_allocated() - before - gradients < 200e6
