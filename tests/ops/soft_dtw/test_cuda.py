"""The CUDA backend of Soft-DTW without a GPU: its Python code launches the kernels on the CPU, and
nvcc compiles them without spilling registers.
"""

import ctypes
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastseq
from fastseq.ops.common import extension
from fastseq.ops.soft_dtw import cuda, op, runtime
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from ops.soft_dtw import test_forbidden as forbidden
from ops.soft_dtw.cases import GRADIENT
from ops.soft_dtw.host import Schedule, suffix
from ops.soft_dtw.test_cuda_host import frames, relative, truth

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "tests/data/soft_dtw_resources.json"


class Extension:
    """Replaces fastseq._C; the launches run on the CPU."""

    SoftDTWCall = SimpleNamespace

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.calls = []

    def _launch(self, what, call, *buffers):
        assert call.stream == 1234
        self.calls.append(call)
        ctypes.memset(call.polled, 0xFF, call.polled_bytes)
        dtype = torch.float64 if call.is_double else torch.float32
        function = self.library[f"{what}_{suffix(bool(call.cost), dtype)}"]
        function.argtypes = [ctypes.c_void_p, Schedule, *[ctypes.c_void_p] * len(buffers)]
        problem = runtime._problem(call)
        assert not function(ctypes.byref(problem), Schedule(4, 0, call.by_strip), *buffers)

    def soft_dtw_forward(self, call, *buffers):
        self._launch("forward", call, *buffers)

    def soft_dtw_backward(self, call, *buffers):
        self._launch("backward", call, *buffers)


@pytest.fixture
def simulated(fibers, monkeypatch):
    module = Extension(fibers)
    monkeypatch.setattr(cuda, "_build", lambda: module)
    stream = SimpleNamespace(cuda_stream=1234)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(op, "_elsewhere", lambda home, device_type: None)
    monkeypatch.setattr(op, "unavailable", lambda name: None)
    return module


@pytest.mark.process
@pytest.mark.parametrize("debug", ["0", "1", "2"])
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
        assert a.dtype == dtype
        assert relative(a, b) <= (3e-6 if dtype == torch.float32 else 1e-11)
    assert [call.by_strip for call in simulated.calls] == [debug == "1"] * 2
    assert [call.patience > 0 for call in simulated.calls] == [debug == "2"] * 2


@pytest.mark.process
@pytest.mark.parametrize("given", [False, True], ids=["embeddings", "cost"])
def test_options_reach_the_kernels(simulated, given):
    """Free ends, a warp penalty, a gamma and a band per pair, through the public function."""
    x, y = frames(3, 40, 6, seed=1), frames(3, 50, 6, seed=2)
    gammas, bands = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64), torch.tensor([40, 0, 7])
    call = {
        "gamma": gammas,
        "bandwidth": bands,
        "begin": "free",
        "end": "free",
        "warp_penalty": 0.4,
        "lengths_x": torch.tensor([40, 32, 5]),
        "backend": "cuda",
    }
    opts = SoftDTWOptions(1.0, None, True, True, 0.4)
    rest = call["lengths_x"], None, None, gammas, bands
    if given:
        leaves = [(x[:, :, None] - y[:, None]).square().sum(-1).requires_grad_()]
        value = fastseq.soft_dtw_from_cost(leaves[0], **call)
        want = truth(leaves[0].detach(), None, opts, *rest)
    else:
        leaves = [x.requires_grad_(), y.requires_grad_()]
        value = fastseq.soft_dtw(x, y, **call)
        want = truth(x.detach(), y.detach(), opts, *rest)
    for a, b in zip((value, *torch.autograd.grad(value.sum(), leaves)), want, strict=True):
        assert relative(a.detach(), b) <= 1e-11


@pytest.mark.process
@pytest.mark.parametrize(("begin", "end"), [("free", "free"), ("free", "fixed"), ("fixed", "free")])
def test_a_small_value_with_free_ends_keeps_its_digits(simulated, begin, end):
    """x is a part of y, far from the main diagonal, whose costs add up to thousands."""
    y = 5 * frames(1, 200, 8, seed=1, dtype=torch.float32)
    first = {"free": 120, "fixed": 0}[begin] if end == "free" else 160
    x = y[:, first : first + 40] + 0.01 * frames(1, 40, 8, seed=2, dtype=torch.float32)
    x.requires_grad_()
    value = fastseq.soft_dtw(
        x, y, gamma=0.1, begin=begin, end=end, warp_penalty=0.5, backend="cuda"
    )
    opts = SoftDTWOptions(0.1, None, begin == "free", end == "free", 0.5)
    want = truth(x.detach(), y, opts)
    assert want[0].abs() < 1
    assert value.dtype == torch.float32
    assert relative(value.detach(), want[0]) <= 1e-6
    (dx,) = torch.autograd.grad(value.sum(), x)
    assert dx.dtype == torch.float32
    assert relative(dx, want[1]) <= 1e-6


@pytest.mark.process
def test_bias_of_the_columns(simulated):
    """cost="softmax", also in float64 for float32 inputs with a free end."""
    x, y = frames(2, 40, 6, seed=1, dtype=torch.float32), frames(2, 35, 6, seed=2)
    lengths = {"lengths_x": torch.tensor([40, 33]), "lengths_y": torch.tensor([20, 35])}
    for end in ("fixed", "free"):
        results = []
        for backend, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
            leaves = [z.to(dtype).requires_grad_() for z in (x, y)]
            value = fastseq.soft_dtw(
                *leaves, gamma=0.1, cost="softmax", end=end, backend=backend, **lengths
            )
            assert value.dtype == dtype
            grads = torch.autograd.grad(value.sum(), leaves)
            results.append([t.detach() for t in (value, *grads)])
        for a, b in zip(*results, strict=True):
            assert relative(a, b) <= GRADIENT
    assert all(call.bias for call in simulated.calls)


@pytest.mark.process
def test_from_cost_and_alignment(simulated):
    x, y = frames(2, 35, 3, seed=1), frames(2, 40, 3, seed=2)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1).requires_grad_()
    value = fastseq.soft_dtw_from_cost(cost, gamma=0.4, backend="cuda")
    (expected,) = torch.autograd.grad(value.sum(), cost)
    _, want = truth(cost.detach(), None, SoftDTWOptions(0.4, None))
    assert relative(expected, want) <= 1e-11
    assert relative(fastseq.soft_dtw_alignment(x, y, gamma=0.4, backend="cuda"), want) <= 1e-11


@pytest.mark.process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bandwidth", [None, 1])
def test_every_way_around_forbidden_pairs(simulated, bandwidth, dtype):
    forbidden.test_every_way_around_forbidden_pairs("cuda", bandwidth, dtype)


@pytest.mark.process
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 100.0])
@pytest.mark.parametrize("shape", [(70, 70), (130, 97), (64, 200)])
def test_forbidden_pairs_beyond_one_tile(simulated, shape, gamma):
    forbidden.test_forbidden_pairs_beyond_one_tile("cuda", shape, gamma)


@pytest.mark.process
@pytest.mark.parametrize(
    "case",
    [
        forbidden.test_a_band_of_infinities_is_a_band,
        forbidden.test_a_batch_with_pairs_that_have_no_path,
        forbidden.test_nan_and_minus_infinity_stay_visible,
        forbidden.test_infinite_embeddings_are_no_forbidden_pairs,
    ],
)
def test_infinities(simulated, case):
    case("cuda")


@pytest.mark.process
@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 0, 6), (2, 5, 0)])
def test_nothing_to_launch(simulated, shape):
    batch, n, m = shape
    x, y = torch.ones(batch, n, 3), torch.ones(batch, m, 3)
    opts = SoftDTWOptions(1.0, None)
    needs = True, True, False, False
    value, *saved = cuda.forward(x, y, *[None] * 6, opts=opts, needs=needs)
    assert torch.equal(value, torch.zeros(batch))
    dx, dy, *others = cuda.backward(value, x, y, *[None] * 6, *saved, opts=opts, needs=needs)
    assert torch.equal(dx, torch.zeros_like(x))
    assert torch.equal(dy, torch.zeros_like(y))
    assert others == [None, None]
    assert not simulated.calls


def test_extension_knows_the_call():
    """Names and types of the compiled module, where it is built; an empty batch needs no GPU."""
    loaded, reason, _ = extension.loaded()
    if not loaded:
        pytest.skip(reason)
    module = extension.extension()
    call = module.SoftDTWCall()
    names = {name for name in vars(module.SoftDTWCall) if not name.startswith("_")}
    code = Path(cuda.__file__).read_text()
    assert names == set(re.findall(r"\bcall\.(\w+)", code))
    call.gamma, call.band, call.x, call.is_double = 0.5, -1, 2**47, True
    assert (call.gamma, call.band, call.x, call.is_double) == (0.5, -1, 2**47, True)
    module.soft_dtw_forward(call, 0, 0, 0)
    module.soft_dtw_backward(call, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_registers(tmp_path, arch):
    """Registers and stack equal the table, which is valid for the nvcc that it names. The gradients
    of embeddings use all available registers, so a part of the values that are computed once per
    block, before the loops over frames, is on the stack.
    """
    release = re.search(
        r"release (\S+),", subprocess.check_output(["nvcc", "--version"], text=True)
    )[1]
    # The flags of setup.py.
    command = ["nvcc", "-std=c++17", "-O3", "-Icsrc", f"-arch={arch}", "-lineinfo", "-Xptxas", "-v"]
    command += ["-cubin", "csrc/soft_dtw/soft_dtw.cu", "-o", str(tmp_path / "kernels.cubin")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = {}
    for kernel, body in re.findall(
        r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", run.stderr, re.DOTALL
    ):
        name = re.search(r"(forward|backward)_kernelI.*(Embeddings|Costs)I([fd])", kernel)
        registers = int(re.search(r"Used (\d+) registers", body)[1])
        stack = int(re.search(r"(\d+) bytes stack frame", body)[1])
        found[f"{name[1]} {name[2]} {'fp32' if name[3] == 'f' else 'fp64'}"] = [registers, stack]
    table = json.loads(TABLE.read_text())
    assert sorted(found) == sorted(table[arch])
    for name, (registers, stack) in found.items():
        limit = 168 if "Embeddings" in name or name.endswith("fp64") else 96
        assert registers <= limit, name
        most = 0 if "32" in name else 16
        if "Embeddings" in name:
            most = {"backward 32": 64, "backward 64": 128, "forward 32": 0, "forward 64": 48}[
                f"{name.split()[0]} {name[-2:]}"
            ]
        assert stack <= most, (name, stack)
    if release == table["nvcc"]:
        assert found == table[arch]


@pytest.mark.process
def test_shared_memory_fits_every_gpu(fibers):
    """The smallest GPU has 99 KiB per thread block (8.6 and 8.9)."""
    loaded = ctypes.CDLL(str(fibers))
    for kind, dtype, backward in itertools.product(("Embeddings", "Costs"), (0, 1), (0, 1)):
        size = loaded[f"shared_bytes_{kind}_{('f32', 'f64')[dtype]}"](backward)
        assert size + (runtime.CENTRE[dtype] if kind == "Embeddings" else 0) <= 99 * 1024
