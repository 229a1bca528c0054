"""Soft-DTW's kernels compiled at run time, without a GPU: NVRTC accepts the sources, and the
kernels, run on the CPU, read the arguments that Python builds for them.
"""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastseq
from fastseq.ops.common import extension, nvrtc
from fastseq.ops.soft_dtw import cuda, op, runtime
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from ops.soft_dtw.host import Schedule
from ops.soft_dtw.test_cuda_host import frames, relative, truth

ROOT = Path(__file__).resolve().parents[3]


class Kernel:
    """Replaces nvrtc.Kernel; launches run on the CPU."""

    def __init__(self, library: ctypes.CDLL, what: str, kind: str, is_double: bool):
        self.function = library[f"one_{what}_{kind}_{'f64' if is_double else 'f32'}"]
        self.threads = runtime.THREADS[what][is_double]
        self.least = runtime.SHARED[kind][what][is_double]
        self.channel = 0 if kind == "Costs" else 8 if is_double else 4
        self.polled, self.blocks = None, []

    def fill(self, address, count, stream):
        assert (address, count, stream) == (self.polled.data_ptr(), self.polled.numel(), 1234)
        self.polled.fill_(0xFF)

    def launch(self, blocks, shared, arguments, stream):
        assert stream == 1234
        assert shared == self.least + self.channel * arguments.p.channels
        self.blocks.append(blocks)
        how = Schedule(3, 1, 0)
        if self.function(ctypes.byref(arguments), how, blocks, self.threads, shared):
            raise RuntimeError("the thread blocks wait for each other for ever")


@pytest.fixture(scope="module")
def library(fibers):
    return ctypes.CDLL(str(fibers))


@pytest.fixture
def simulated(library, monkeypatch):
    """The kernels by (what, kind, is_double). Buffers that are polled contain garbage before they
    are initialised.
    """
    kernels = {
        call: Kernel(library, *call)
        for call in itertools.product(runtime.THREADS, runtime.SHARED, (False, True))
    }

    def polled(like, count):
        out = torch.full((count,), 99, dtype=torch.uint8)
        for kernel in kernels.values():
            kernel.polled = out
        return out

    def of_device(device, kind, is_double, softmin):
        assert (device, softmin) == (-1, "logsumexp")  # the device of a CPU tensor
        return {what: kernels[what, kind, is_double] for what in runtime.THREADS}

    monkeypatch.setattr(cuda, "_build", lambda: runtime)
    monkeypatch.setattr(cuda, "_polled", polled)
    monkeypatch.setattr(runtime, "kernels", of_device)
    stream = SimpleNamespace(cuda_stream=1234)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(op, "_elsewhere", lambda home, device_type: None)
    monkeypatch.setattr(op, "unavailable", lambda name: None)
    return kernels


@pytest.mark.process
@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_public_function(simulated, monkeypatch, dtype, debug):
    monkeypatch.setenv("FASTSEQ_SOFT_DTW_DEBUG", debug)
    lengths_x, lengths_y = torch.tensor([40, 0, 33]), torch.tensor([50, 9, 1])
    x = frames(3, 40, 6, seed=1, dtype=dtype).requires_grad_()
    y = frames(3, 50, 6, seed=2, dtype=dtype).requires_grad_()
    grad = torch.tensor([2.0, 3.0, -1.0], dtype=dtype)
    value = fastseq.soft_dtw(
        x, y, gamma=0.4, bandwidth=9, lengths_x=lengths_x, lengths_y=lengths_y, backend="cuda"
    )
    got = value.detach(), *torch.autograd.grad(value, (x, y), grad)
    opts = SoftDTWOptions(0.4, 9)
    want = truth(x.detach(), y.detach(), opts, lengths_x, lengths_y, grad)
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) <= (3e-6 if dtype == torch.float32 else 1e-11)
    blocks = [3, 3] if debug == "1" else [6]  # batch; or batch times strips
    for call, kernel in simulated.items():
        used = call[1:] == ("Embeddings", dtype == torch.float64)
        assert kernel.blocks == (blocks if used else [])


@pytest.mark.process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_given_costs(simulated, dtype):
    cost = frames(2, 35, 40, seed=1, dtype=dtype).square()
    cost[1, 10:20, 5:30] = torch.inf
    cost.requires_grad_()
    value = fastseq.soft_dtw_from_cost(cost, gamma=0.4, backend="cuda")
    (expected,) = torch.autograd.grad(value.sum(), cost)
    want = truth(cost.detach(), None, SoftDTWOptions(0.4, None))
    bound = 3e-6 if dtype == torch.float32 else 1e-11
    assert relative(value.detach(), want[0]) <= bound
    assert relative(expected, want[1]) <= bound
    for call, kernel in simulated.items():
        used = call[1:] == ("Costs", dtype == torch.float64)
        assert kernel.blocks == ([4] if used else [])


@pytest.mark.process
def test_sizes_are_those_of_the_kernels(library):
    for kind, shared in runtime.SHARED.items():
        for is_double, suffix in enumerate(("f32", "f64")):
            for backward, what in enumerate(("forward", "backward")):
                end = f"{kind}_{suffix}"
                assert runtime.THREADS[what][is_double] == library[f"threads_{end}"](backward)
                size = ctypes.sizeof(runtime.ARGUMENTS[what])
                assert size == library[f"arguments_bytes_{end}"](backward)
                assert shared[what][is_double] == library[f"shared_bytes_{end}"](backward)
    for is_double in (0, 1):
        most = library.most_centred(is_double) * (4 + 4 * is_double)
        assert runtime.CENTRE[is_double] == most


@pytest.mark.process
def test_too_many_blocks(simulated):
    call = runtime.SoftDTWCall(device=-1, is_double=False, batch=2**25, rows=4096, by_strip=False)
    names = "x y cost bias lengths_x lengths_y gammas bands columns channels band"
    rest = "begin_free end_free patience penalty h states polled polled_bytes"
    for name in f"{names} {rest}".split():
        setattr(call, name, 0)
    call.gamma, call.stream = 1.0, 1234
    with pytest.raises(RuntimeError, match="batch \\* frames is too large for one launch"):
        runtime.soft_dtw_forward(call, 0, 0, 0)


@pytest.mark.parametrize(("built", "stands"), [(True, "fastseq._C"), (False, "runtime")])
def test_extension_comes_first(monkeypatch, built, stands):
    monkeypatch.setattr(extension, "status", lambda: (built, "reason", "fix"))
    monkeypatch.setattr(extension, "extension", lambda: "fastseq._C")
    cuda._build.cache_clear()
    try:
        assert cuda._build() is (runtime if stands == "runtime" else "fastseq._C")
    finally:
        cuda._build.cache_clear()


@pytest.mark.process
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_device_code_includes_nothing_of_a_toolkit():
    """With the macro that NVRTC sets, the preprocessor finds all includes in csrc/soft_dtw."""
    command = ["g++", "-E", "-nostdinc", "-nostdinc++", "-D__CUDACC__", "-Icsrc/soft_dtw"]
    command += ["-x", "c++", "-"]
    run = subprocess.run(
        command, cwd=ROOT, input=runtime.SOURCE, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "backward_kernel(" in run.stdout
    assert "forward_kernel(" in run.stdout


NVRTC = [
    *itertools.product([(8, 0), (9, 0)], runtime.SHARED, (False, True), ["logsumexp"]),
    *itertools.product([(9, 0)], runtime.SHARED, (False, True), ["prob", "sparse"]),
]


@pytest.mark.parametrize(("capability", "kind", "is_double", "softmin"), NVRTC)
def test_nvrtc_compiles_the_sources(capability, kind, is_double, softmin):
    try:
        nvrtc._library()
    except OSError as error:
        pytest.skip(f"{error}; pip install nvidia-cuda-nvrtc")
    code, names = runtime.machine_code(capability, kind, is_double, softmin)
    assert list(names) == ["forward", "backward"]
    for what, name in names.items():
        assert f"{what}_kernel" in name
        assert runtime.SOFTMINS[softmin] in name
        assert f".text.{name}\0".encode() in code
