"""contrastive_idm on a real GPU, to be passed before any benchmark. Errors are compared with those
of plain PyTorch.
"""

import pytest
import torch
from tolerance import as_accurate_as, relative

import fastseq

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:contrastive_idm. with more than 128 frames"),
]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def inputs(n, frames, channels, dtype, seed=0, device="cuda"):
    make = torch.Generator(device).manual_seed(seed)
    z = torch.randn(n, frames, channels, device=device, generator=make)
    t = torch.arange(frames, device=device).expand(n, frames) / frames
    return torch.nn.functional.normalize(z, dim=-1).to(dtype), t


def loss_and_grad(z, t, backend="triton", **kwargs):
    z = z.detach().requires_grad_()
    loss = fastseq.contrastive_idm(z, t, window=0.1, backend=backend, **kwargs)
    return loss, *torch.autograd.grad(loss.sum(), z)


def plain(z, t, distance, margin=2.0):
    """Typical use: one sequence, reduction="mean". Halves are multiplied in float32."""
    z = z.float()
    norms = z.square().sum(-1)
    d = norms[:, None] + norms - 2 * z @ z.T
    if distance == "euclidean":
        d = torch.cdist(z, z)
    gap = (t[:, None] - t).abs()
    weight = 1 + gap.square()
    return torch.where(gap > 0.1, weight * torch.relu(margin - d), d / weight).mean()


# All pairs are inside the margin; rounding that moves a pair across it would be a different error.
WIDE = 10.0


def check_error(z, t, distance, got):
    kwargs = {"distance": distance, "margin": WIDE}
    truth = loss_and_grad(z.double(), t, backend="torch", **kwargs)
    leaf = z.detach().requires_grad_()
    peer = sum(plain(*row, distance, WIDE) for row in zip(leaf, t, strict=True)) / len(z)
    peer = (peer, *torch.autograd.grad(peer, leaf))
    # Tensor cores sum in another order and in another width.
    as_accurate_as(got[0], peer[0], truth[0], floor=None if z.dtype == torch.float32 else 1e-4)
    as_accurate_as(got[1:], peer[1:], truth[1:], what=("dz",))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 240, 128), (2, 1000, 200), (1, 4096, 128)])
@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_error_is_that_of_plain_torch(shape, dtype, distance):
    z, t = inputs(*shape, DTYPES[dtype])
    check_error(z, t, distance, loss_and_grad(z, t, distance=distance, margin=WIDE))


def test_fp32_gradients_where_no_pair_is_at_the_margin():
    """Frames of several kinds with squared distances of 0.5 within and 2.5 between kinds."""
    z, t = inputs(1, 4096, 128, torch.float32)
    z = z / 2 + torch.eye(128, device="cuda")[torch.arange(4096, device="cuda") % 16]
    want = loss_and_grad(z.double(), t, backend="torch", margin=1.3)
    got = loss_and_grad(z, t, margin=1.3)
    as_accurate_as(got[0], want[0], want[0])
    assert relative(got[1], want[1]) <= 1e-5


def test_large():
    z, t = inputs(1, 16384, 128, torch.bfloat16)
    got = loss_and_grad(z, t)
    want = loss_and_grad(z.float(), t, backend="torch")
    assert relative(got[0], want[0]) <= 1e-4
    # Rounding of the slopes and of the result adds up to half an eps.
    assert relative(got[1], want[1]) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_fp32_follows_torch(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        z, t = inputs(2, 500, 128, torch.float32)
        got = loss_and_grad(z, t, margin=WIDE)
    finally:
        torch.set_float32_matmul_precision(before)
    want = loss_and_grad(z.double(), t, backend="reference", margin=WIDE)
    assert relative(got[1], want[1]) <= (1e-5 if precision == "highest" else 2e-3)


@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_same_bits_twenty_times(distance):
    z, t = inputs(4, 1000, 128, torch.bfloat16)
    kwargs = {"distance": distance, "reduction": "none"}
    first = loss_and_grad(z, t, **kwargs)
    for _ in range(20):
        again = loss_and_grad(z, t, **kwargs)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    alone = loss_and_grad(z[2:3], t[2:3], **kwargs)
    assert all(torch.equal(a[0], b[2]) for a, b in zip(alone, first, strict=True))


def test_graph_replays_new_values():
    z, t = inputs(2, 300, 128, torch.bfloat16)
    lengths = torch.tensor([300, 200], device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles outside the capture
        loss_and_grad(z, t, lengths=lengths)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = loss_and_grad(z, t, lengths=lengths)
    z.copy_(torch.randn_like(z))
    lengths.copy_(torch.tensor([7, 299]))
    graph.replay()
    want = loss_and_grad(z, t, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_host_never_waits(reduction):
    z, t = inputs(2, 300, 128, torch.bfloat16)
    lengths = torch.tensor([300, 200], device="cuda")
    windows = torch.tensor([0.1, 0.2], device="cuda")
    calls = ((t, 0.1), (t.double(), windows), (None, 10.0))

    def call(times, window):
        leaf = z.detach().requires_grad_()
        loss = fastseq.contrastive_idm(
            leaf, times, window=window, lengths=lengths, reduction=reduction, backend="triton"
        )
        loss.sum().backward()

    for args in calls:
        call(*args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for args in calls:
            call(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream():
    """Inputs that a slow kernel on the same stream is still writing."""
    z, t = inputs(2, 500, 128, torch.bfloat16)
    want = loss_and_grad(z, t)
    stream, late = torch.cuda.Stream(), torch.zeros_like(z)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(z)
        got = loss_and_grad(late, t)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    args = inputs(1, 100, 64, torch.bfloat16)
    got = loss_and_grad(*(x.to("cuda:1") for x in args))
    for a, b in zip(got, loss_and_grad(*args), strict=True):
        assert torch.equal(a.to("cuda:0"), b)


def test_memory_is_linear():
    z, t = inputs(1, 65536, 128, torch.bfloat16)
    z.requires_grad_()
    loss_and_grad(z[:, :64], t[:, :64])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fastseq.contrastive_idm(z, t, backend="triton").backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before - z.grad.nbytes < 100e6


@pytest.mark.parametrize("form", ["paper", "code"])
def test_lav(form):
    """Soft-DTW and Contrastive-IDM, each with its best backend."""
    x, _ = inputs(4, 20, 128, torch.float32)
    y, _ = inputs(4, 20, 128, torch.float32, seed=1)
    kwargs = {"form": form, "duration_x": 60, "duration_y": 60}
    got = fastseq.lav_loss(x, y, **kwargs)
    want = fastseq.lav_loss(x.double(), y.double(), backend="reference", **kwargs)
    assert relative(got, want) <= 1e-5
