"""The soft minima "prob" and "sparse" of the CUDA kernels, on the CPU: their arithmetic on the
host, and the kernels as fibers.
"""

import ctypes
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

import fastseq
from fastseq.ops.common import extension, nvrtc
from fastseq.ops.soft_dtw import cuda, op, runtime
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from ops.soft_dtw.host import HostBackend, compile_library
from ops.soft_dtw.test_cuda_host import frames, relative, run, truth
from ops.soft_dtw.test_cuda_runtime import Kernel

SOFTMINS = "prob", "sparse"


@pytest.fixture(scope="module", params=SOFTMINS)
def softmin(request):
    return request.param


def library(tmp_path_factory, name, softmin):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return compile_library("g++", tmp_path_factory.mktemp("soft_dtw"), name, softmin)


@pytest.fixture(scope="module")
def host(softmin, tmp_path_factory):
    return HostBackend(library(tmp_path_factory, "host", softmin))


@pytest.mark.process
@pytest.mark.parametrize("bandwidth", [None, 7])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 40), (40, 1), (33, 64), (97, 65)])
def test_against_the_definition(host, softmin, n, m, bandwidth):
    x, y = frames(2, n, 5, seed=n), frames(2, m, 5, seed=m + 1)
    opts = SoftDTWOptions(0.7, bandwidth, warp_penalty=0.3, softmin=softmin)
    call = {"grad": torch.tensor([-2.0, 0.5]), "bias": frames(2, m, seed=7)}
    want = truth(x, y, opts, **call)
    for a, b in zip(run(host, x, y, opts, **call), want, strict=True):
        assert relative(a, b) <= 1e-11
    single = {k: v.float() for k, v in call.items()}
    for a, b in zip(run(host, x.float(), y.float(), opts, **single), want, strict=True):
        assert relative(a, b) <= 1e-5


@pytest.mark.process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forbidden_pairs(host, softmin, dtype):
    """A wall with two gates and a hole; a pair without a path; gamma and band of each pair."""
    cost = frames(3, 70, 65, seed=1).square()
    cost[:, 35, :48] = torch.inf
    cost[:, 35, 13] = 0.5
    cost[:, 9:23, 8:32] = torch.inf
    cost[2, 50] = torch.inf
    opts = SoftDTWOptions(1.0, None, softmin=softmin)
    per_pair = {
        "gammas": torch.tensor([0.1, 2.0, 1.0], dtype=torch.float64),
        "bands": torch.tensor([200, 30, 200]),
    }
    value, expected = run(host, cost.to(dtype), None, opts, **per_pair)
    want_value, want = truth(cost, None, opts, **per_pair)
    assert value[2] == torch.inf
    assert not expected[2].any()
    bound = 1e-11 if dtype == torch.float64 else 1e-5
    assert relative(value[:2], want_value[:2]) <= bound
    assert relative(expected, want) <= bound
    assert not expected[cost == torch.inf].any()
    assert (want < 0).any() == (softmin == "prob")


@pytest.mark.process
@pytest.mark.parametrize("given", ["embeddings", "cost"])
def test_nan_is_not_hidden(host, softmin, given):
    """NaN in one pair; padding may contain it."""
    x, y = frames(2, 40, 4, seed=5), frames(2, 50, 4, seed=6)
    if given == "embeddings":
        x[0, 20, 1] = x[1, 30:] = torch.nan
    else:
        x, y = (x[:, :, None] - y[:, None]).square().sum(-1), None
        x[0, 20, 25] = x[1, 30:] = torch.nan
    opts = SoftDTWOptions(0.5, None, softmin=softmin)
    value, *grads = run(host, x, y, opts, lengths_x=torch.tensor([40, 30]))
    assert value.isnan().tolist() == [True, False]
    assert all(t[0].isnan().any() for t in grads)
    assert not any(t[1].isnan().any() for t in grads)


@pytest.mark.process
@pytest.mark.parametrize("softmin", ["sparse"], indirect=True)
def test_sparse_weights_are_exactly_zero(host, softmin):
    """Blocks can be skipped only where E has no rounding errors, in single precision too."""
    x, y = frames(1, 70, 8, seed=1), frames(1, 65, 8, seed=2)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    opts = SoftDTWOptions(1.0, None, softmin=softmin)
    _, expected = run(host, cost.float(), None, opts)
    _, want = truth(cost, None, opts)
    assert torch.equal(expected == 0, want == 0)
    assert (want == 0).double().mean() > 0.9


@pytest.fixture
def simulated(tmp_path_factory, monkeypatch):
    """Launches of run-time kernels run on the CPU, those with "prob"."""
    loaded = ctypes.CDLL(str(library(tmp_path_factory, "fibers", "prob")))

    def kernels(device, kind, is_double, softmin):
        assert softmin == "prob"
        made = {what: Kernel(loaded, what, kind, is_double) for what in runtime.THREADS}
        for kernel in made.values():
            monkeypatch.setattr(kernel, "fill", fill)
        return made

    def fill(address, count, stream):
        ctypes.memset(address, 0xFF, count)

    monkeypatch.setattr(runtime, "kernels", kernels)
    monkeypatch.setattr(nvrtc, "status", lambda: (True, "NVRTC", ""))
    stream = SimpleNamespace(cuda_stream=1234)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(op, "_elsewhere", lambda home, device_type: None)
    monkeypatch.setattr(op, "unavailable", lambda name: None)


@pytest.mark.process
def test_with_the_softmax_cost(simulated):
    """Through the public function; the values are those of AE2's released code with "prob"."""
    torch.manual_seed(0)
    for frames_per_side, value in ((32, 116.2172), (64, 270.3965)):
        x, y = (torch.randn(1, frames_per_side, 128) for _ in range(2))
        results = []
        for backend, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
            leaves = [z.to(dtype).requires_grad_() for z in (x, y)]
            got = fastseq.soft_dtw(
                *leaves, gamma=0.1, cost="softmax", softmin="prob", backend=backend
            )
            assert got.item() == pytest.approx(value, abs=1e-4)
            results.append(torch.autograd.grad(got.sum(), leaves))
        for a, b in zip(*results, strict=True):
            assert relative(a, b) <= 1e-5


def test_without_a_compiler_another_backend_is_picked(monkeypatch):
    """The extension has only the default soft minimum."""
    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    monkeypatch.setattr(op, "unavailable", lambda name: None)
    monkeypatch.setattr(nvrtc, "status", lambda: (False, "libnvrtc is missing", "pip install it"))
    missing = r"'prob'.*libnvrtc is missing; to fix: pip install it"
    name, reason = op.resolve_backend("auto", "cuda", softmin="prob")
    assert name == "torch"
    assert re.search(missing, reason)
    with pytest.raises(RuntimeError, match=f"^soft_dtw: backend 'cuda'.*{missing}"):
        op.resolve_backend("cuda", "cuda", softmin="prob")
    assert op.resolve_backend("auto", "cuda")[0] == "cuda"
    monkeypatch.setattr(cuda, "_build", lambda: extension)
    assert cuda._module(SoftDTWOptions(1.0, None)) is extension
    assert cuda._module(SoftDTWOptions(1.0, None, softmin="sparse")) is runtime


def test_the_choice_of_backend_sees_the_soft_minimum(monkeypatch):
    seen = []
    monkeypatch.setattr(op, "_resolve", lambda *args: seen.append(args[3]) or "reference")
    x = torch.ones(2, 3)
    fastseq.soft_dtw(x, x, softmin="prob")
    fastseq.soft_dtw_from_cost(x, softmin="sparse")
    fastseq.soft_dtw_alignment(x, x, softmin="prob")
    assert seen == ["prob", "sparse", "prob"]
