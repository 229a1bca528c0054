"""The CUDA backend of soft_dtw on a real GPU, to be passed before any benchmark."""

import pytest
import torch
from tolerance import relative

import fastseq
from fastseq.ops.common import extension, nvrtc
from fastseq.ops.soft_dtw import cuda, runtime
from fastseq.ops.soft_dtw.options import SOFTMINS

pytestmark = pytest.mark.gpu

LENGTHS = [1, 2, 31, 32, 33, 64, 97, 480]


def frames(*shape, dtype=torch.float32, seed=0, unit=True):
    z = torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
    return (torch.nn.functional.normalize(z, dim=-1) if unit else z).to(dtype)


def moved(z, shift):
    """The same numbers, starting ``shift`` of them later in memory."""
    return torch.cat([z.new_zeros(shift), z.flatten()])[shift:].view(z.shape)


def run(x, y, backend="cuda", grad=None, **options):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = fastseq.soft_dtw(x, y, backend=backend, **options)
    grad = torch.ones_like(value) if grad is None else grad.to(value.dtype)
    return (value.detach(), *torch.autograd.grad(value, (x, y), grad))


def run_cost(cost, backend="cuda", **options):
    cost = cost.detach().requires_grad_()
    value = fastseq.soft_dtw_from_cost(cost, backend=backend, **options)
    return value.detach(), *torch.autograd.grad(value.sum(), cost)


def definition(x, y, gamma):
    """The definition in float64, with costs from one product. The reference's own differences need
    N M D numbers: 4 GB at (1, 2048, 128), and three times that with gradients.
    """
    x, y = (z.detach().double().requires_grad_() for z in (x, y))
    cost = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None] - 2 * x @ y.mT
    value = fastseq.soft_dtw_from_cost(cost, gamma=gamma, backend="reference")
    return value.detach(), *torch.autograd.grad(value.sum(), (x, y))


def check(got, want, dtype):
    value, gradient = (1e-11, 1e-11) if dtype == torch.float64 else (5e-7, 1e-5)
    assert relative(got[0], want[0]) <= value
    for a, b in zip(got[1:], want[1:], strict=True):
        assert relative(a, b) <= gradient


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.fixture(autouse=True, params=["extension", "runtime"])
def build(request, monkeypatch):
    """The compiled extension, and the same kernels compiled at run time, where each can run."""
    possible, reason, _ = (extension if request.param == "extension" else nvrtc).status()
    if not possible:
        pytest.skip(reason)
    module = extension.extension() if request.param == "extension" else runtime
    monkeypatch.setattr(cuda, "_build", lambda: module)


@pytest.fixture
def debug(monkeypatch):
    return lambda mode: monkeypatch.setenv("FASTSEQ_SOFT_DTW_DEBUG", str(mode))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [None, 0, 20])
@pytest.mark.parametrize("n", LENGTHS)
def test_against_the_definition(n, bandwidth, dtype):
    for m in {n, max(1, n - 7), 65}:
        x, y = frames(2, n, 40, dtype=dtype), frames(2, m, 40, dtype=dtype, seed=1)
        grad = torch.tensor([-2.0, 0.5], device="cuda")
        options = {"gamma": 0.1, "bandwidth": bandwidth, "grad": grad}
        want = run(x.double(), y.double(), "reference", **options)
        check(run(x, y, **options), want, dtype)


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 2048, 128), (4, 480, 128), (3, 480, 300), (32, 512, 64)])
def test_long(shape, gamma):
    x, y = frames(*shape), frames(*shape, seed=1)
    got = run(x, y, gamma=gamma)
    check(got, run(x.double(), y.double(), gamma=gamma), torch.float32)
    if shape[0] * shape[1] <= 2048:
        check(got, definition(x, y, gamma), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", [0.0, 0.2])
@pytest.mark.parametrize(("begin", "end"), [("free", "fixed"), ("fixed", "free"), ("free", "free")])
def test_free_ends_and_penalty(begin, end, penalty, dtype):
    """With a gamma and a band per pair; the row of a free end may be in a separate strip."""
    for n, m in ((64, 300), (100, 333), (31, 50)):
        x, y = frames(3, n, 40, dtype=dtype), frames(3, m, 40, dtype=dtype, seed=1)
        options = {"begin": begin, "end": end, "warp_penalty": penalty}
        options["gamma"] = torch.tensor([0.1, 0.5, 2.0], device="cuda", dtype=torch.float64)
        options["bandwidth"] = torch.tensor([400, 60, 0], device="cuda")
        got, want = run(x, y, **options), run(x.double(), y.double(), "reference", **options)
        check(got, want, dtype)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("d", [1, 3, 33, 130, 2050])
def test_channels_of_any_number_and_alignment(d, shift):
    """Reading four numbers at once or one by one returns the same, except for rounding."""
    x, y = (moved(frames(1, 100, d, seed=seed), shift) for seed in (1, 2))
    options = {"gamma": 0.1}
    check(run(x, y, **options), run(x.double(), y.double(), **options), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ragged(dtype):
    """NaN in padding has no effect, lengths on the GPU are clamped, a pair alone equals it in a
    batch.
    """
    n, m = 300, 200
    lengths_x = torch.tensor([300, 1, 0, 33, 999, -4, 64, 200], device="cuda")
    lengths_y = torch.tensor([200, 200, 5, 7, 150, 3, 65, 1], device="cuda")
    ends = lengths_x.clamp(0, n), lengths_y.clamp(0, m)
    x, y = frames(8, n, 50, dtype=dtype), frames(8, m, 50, dtype=dtype, seed=1)
    real = [torch.arange(t, device="cuda") < e[:, None] for t, e in zip((n, m), ends, strict=True)]
    for bandwidth in (None, 10):
        options = {"gamma": 0.1, "bandwidth": bandwidth}
        lengths = {"lengths_x": lengths_x, "lengths_y": lengths_y}
        nan = [z.where(r[..., None], torch.nan) for z, r in zip((x, y), real, strict=True)]
        got = run(*nan, **options, **lengths)
        lengths = {"lengths_x": ends[0], "lengths_y": ends[1]}
        check(got, run(x.double(), y.double(), "reference", **options, **lengths), dtype)
        for grad, r in zip(got[1:], real, strict=True):
            assert not grad[~r].any()
        value, dx, dy = run(x[4:5], y[4:5, :150], **options)
        assert same((value[0], dx[0], dy[0]), (got[0][4], got[1][4], got[2][4, :150]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [None, 40])
@pytest.mark.parametrize("forbidden", [False, True])
def test_given_costs(forbidden, bandwidth, dtype):
    """Includes forbidden pairs: walls with a gate, and one without."""
    cost = frames(3, 300, 333, dtype=dtype, unit=False).square()
    if forbidden:
        cost[:, 150, :140] = cost[:, 150, 141:] = torch.inf
        cost[1, 40:90, 60:80] = torch.inf
        cost[2, 150] = torch.inf
    options = {"gamma": 0.5, "bandwidth": bandwidth}
    got, want = run_cost(cost, **options), run_cost(cost.double(), "reference", **options)
    if forbidden:
        assert got[0].isinf().tolist() == [False, False, True]
        assert not got[1][cost == torch.inf].any()
        assert not got[1][2].any()
        got, want = ([z[:2] for z in result] for result in (got, want))
    check(got, want, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("softmin", SOFTMINS)
def test_softmax_cost_and_soft_minima(softmin, dtype):
    """A bias of the columns and each soft minimum, lengths on the GPU; then forbidden pairs."""
    possible, reason, _ = nvrtc.status()
    if softmin != "logsumexp" and not possible:
        pytest.skip(reason)
    x, y = frames(5, 97, 20, seed=1), frames(5, 70, 20, seed=2)
    lengths = {
        "lengths_x": torch.tensor([97, 64, 33, 1, 0], device="cuda"),
        "lengths_y": torch.tensor([70, 1, 65, 32, 7], device="cuda"),
    }
    options = {"gamma": 0.1, "bandwidth": 30, "warp_penalty": 0.05, "softmin": softmin}
    for temperature in (0.1, 0.01):
        extra = {"cost": "softmax", "temperature": temperature, **lengths}
        want = run(x.double(), y.double(), "reference", **options, **extra)
        check(run(x.to(dtype), y.to(dtype), **options, **extra), want, dtype)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    cost[:, 50, 3:60] = cost[:, 10:20, 10:20] = torch.inf
    want = run_cost(cost.double(), "reference", gamma=0.1, softmin=softmin)
    got = run_cost(cost.to(dtype), gamma=0.1, softmin=softmin)
    check(got, want, dtype)
    assert not got[1][cost == torch.inf].any()


@pytest.mark.parametrize("shape", [(1, 33, 8), (4, 480, 128), (32, 512, 64), (1, 8192, 16)])
def test_flags_order_memory(shape, debug):
    """One launch with flags returns the same bits as a launch per strip, 20 times in a row."""
    x, y = frames(*shape), frames(*shape, seed=1)
    debug(1)
    want = run(x, y, gamma=0.1)
    debug(2)  # raises if a flag is waited for in vain
    assert same(run(x, y, gamma=0.1), want)
    debug(0)
    assert all(same(run(x, y, gamma=0.1), want) for _ in range(20))


def test_flags_order_memory_beside_other_work():
    """More thread blocks than fit at a time, while another stream keeps the GPU busy."""
    x, y = frames(64, 700, 32), frames(64, 650, 32, seed=1)
    want = run(x, y, gamma=0.1)
    other, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        with torch.cuda.stream(other):
            busy @ busy
        assert same(run(x, y, gamma=0.1), want)
    torch.cuda.synchronize()


def test_waits_for_nothing():
    x, y = frames(4, 100, 16), frames(4, 90, 16, seed=1)
    lengths = torch.tensor([100, 50, 0, 7], device="cuda")
    run(x, y, gamma=0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(x, y, gamma=0.1, lengths_x=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph():
    x, y = frames(4, 480, 64).requires_grad_(), frames(4, 450, 64, seed=1).requires_grad_()

    def step():
        value = fastseq.soft_dtw(x, y, gamma=0.1, backend="cuda")
        return (value, *torch.autograd.grad(value.sum(), (x, y)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(5):
        with torch.no_grad():
            x.copy_(frames(4, 480, 64, seed=10 + seed))
        graph.replay()
        torch.cuda.synchronize()
        assert same(captured, step())


def test_runs_on_the_current_stream():
    """Inputs that a slow kernel on the same stream is still writing."""
    x, y = frames(2, 300, 64), frames(2, 300, 64, seed=1)
    want = run(x, y, gamma=0.1)
    stream = torch.cuda.Stream()
    late_x, late_y = torch.zeros_like(x), torch.zeros_like(y)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late_x.copy_(x)
        late_y.copy_(y)
        got = run(late_x, late_y, gamma=0.1)
    stream.synchronize()
    assert same(got, want)


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    x, y = frames(2, 100, 16), frames(2, 90, 16, seed=1)
    got = run(x.to("cuda:1"), y.to("cuda:1"), gamma=0.1)
    assert same([t.to("cuda:0") for t in got], run(x, y, gamma=0.1))


def test_memory_is_linear():
    """(8, 16384, 128) within 2 GB above inputs and gradients."""
    x, y = frames(8, 16384, 128).requires_grad_(), frames(8, 16384, 128, seed=1).requires_grad_()
    run(x[:, :64], y[:, :64], gamma=0.1)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fastseq.soft_dtw(x, y, gamma=0.1, backend="cuda").sum().backward()
    torch.cuda.synchronize()
    gradients = x.grad.nbytes + y.grad.nbytes
    assert torch.cuda.max_memory_allocated() - before - gradients < 2e9
