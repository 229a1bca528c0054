"""ops/common/launch.py launches a kernel that it has looked up once exactly as Triton's launcher
does.

Launches are compared in child processes, in which Triton compiles for a simulated GPU
(benchmarks/pretend.py), because this process may use its interpreter. FASTSEQ_OTHER_TRITON names a
folder with another version of the package triton, with which they are compared too.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastseq
from fastseq.ops.common import dispatch

ROOT = Path(__file__).resolve().parents[3]
OTHER = os.environ.get("FASTSEQ_OTHER_TRITON")

SETUP = """
import sys, warnings
import torch, fastseq, triton
from benchmarks import pretend
from fastseq.ops.common import launch
from fastseq.ops.contrastive_idm import triton as contrastive_idm
from fastseq.ops.queue_nce import triton as queue_nce
from fastseq.ops.scl import triton as scl
from fastseq.ops.tcc import triton as tcc

warnings.simplefilter("ignore")
seen = []

def note(self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *args):
    where = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
    seen.append((self.name, (x, y, z), stream, function.cubin, where))

pretend._Launcher.__call__ = note
looked_up = []
run = triton.runtime.JITFunction.run

def spy(self, *args, **kwargs):
    looked_up.append(self.fn.__name__)
    return run(self, *args, **kwargs)

triton.runtime.JITFunction.run = spy

# The smallest tiles: least code to compile.
for op in (scl, contrastive_idm, tcc, queue_nce):
    op.tiles = lambda *_: launch.Tiles(16, 16, 16, 16, 4, 1)

def fixed(*shape, dtype=torch.bfloat16, grad=False):
    return torch.zeros(*shape, dtype=dtype).requires_grad_(grad)
"""

SAME = """
z1, z2 = fixed(2, 100, 32, grad=True), fixed(2, 100, 32, grad=True)
w1, w2 = (fixed(2, 100, 32, dtype=torch.float32, grad=True) for _ in range(2))
t = torch.arange(100).expand(2, 100)
lengths = torch.tensor([100, 40])
q, queue = fixed(3, 32, grad=True), fixed(70, 32)
calls = {
    "scl": lambda: fastseq.scl_loss(z1, z2, t, t, lengths1=lengths, backend="triton"),
    "contrastive_idm": lambda: fastseq.contrastive_idm(z1, t, backend="triton"),
    "tcc": lambda: fastseq.tcc_loss(z1, z2, backend="triton"),
    "tcc fp32": lambda: fastseq.tcc_loss(w1, w2, reduction="none", backend="triton").sum(),
    "queue_nce": lambda: fastseq.queue_nce(q, fixed(3, 2, 32), queue, backend="triton"),
}
buffers = []  # every call gets the same memory for the same request

def replay(make):
    def empty(*args, **kwargs):
        key = str((make.__name__, args[0].shape if make is like else args, kwargs, len(asked)))
        asked.append(key)
        if key not in kept:
            kept[key] = make(*args, **kwargs)
        return kept[key]
    return empty

like, plain = torch.empty_like, torch.empty
kept, asked = {}, []
torch.empty, torch.empty_like = replay(plain), replay(like)
with pretend.pretend(90):
    for name, call in calls.items():
        records = []
        for round in range(3):
            launch.clear()  # the first two rounds: nothing is known yet
            for again in range(2 if round == 2 else 1):
                seen.clear(); looked_up.clear(); asked.clear()
                call().backward()
            records.append((list(seen), list(looked_up)))
        (public, asked_for), _, (direct, none) = records
        assert asked_for and not none, (name, asked_for, none)
        assert [s[:4] for s in public] == [s[:4] for s in direct], name
        for a, b in zip(public, direct):
            # Gradients of the loss and what autograd allocates may lie elsewhere.
            moved = [i for i, (x, y) in enumerate(zip(a[4], b[4])) if x != y]
            assert len(moved) <= 2, (name, a[0], moved)
        print(name)
"""

KINDS = """
BOTH = ["scl_prepare_kernel", "scl_stats_kernel"]
z = fixed(2, 100, 32, grad=True)
def call(z1, t=None):
    seen.clear(); looked_up.clear()
    fastseq.scl_loss(z1, z1.detach(), t, t, backend="triton")
    return looked_up.copy(), seen[0][3]

with pretend.pretend(90):
    _, first = call(z)
    assert call(z) == ([], first)
    # Another dtype, times that were not there: other machine code, looked up once. Times are read
    # by the first kernel alone.
    for other in ((z.detach().float(),), (z, torch.arange(100)), (z, torch.arange(100.0))):
        found, code = call(*other)
        assert found == BOTH[: 3 - len(other)] and code != first
        assert call(*other) == ([], code)
    # Not at a multiple of 16 bytes: looked up each time, code without wide loads.
    shifted = fixed(2 * 100 * 32 + 1)[1:].view(2, 100, 32)
    found, code = call(shifted)
    assert found == BOTH and code != first
    assert call(shifted)[0] == BOTH
    assert call(z) == ([], first)
    # Integers beyond 32 bits.
    huge = torch.arange(100).as_strided((1, 100), (2**31, 1))
    assert call(z[:1], huge)[0] == call(z[:1], huge)[0] == BOTH[:1]
    # A profiler's hook is called, which only the public launcher does.
    from triton import knobs
    def hook(metadata): ...
    knobs.runtime.launch_enter_hook.add(hook)
    assert call(z)[0] == BOTH
    knobs.runtime.launch_enter_hook.remove(hook)
    assert call(z) == ([], first)
    # tcc's kernels specialise on channels that lie side by side.
    def pairs(x):
        seen.clear(); looked_up.clear()
        fastseq.tcc_loss(x, x, backend="triton")
        return looked_up.copy()
    a, b = fixed(2, 100, 32), fixed(2, 32, 100).mT
    assert pairs(a) and not pairs(a)
    assert pairs(b) == ["tcc_pack_kernel"] and not pairs(b) and not pairs(a)
    # A version whose private call is not known.
    launch.KNOWN = ("2.0",)
    launch.clear()
    assert call(z)[0] == call(z)[0] == BOTH
print("done", triton.__version__)
"""


def child(script: str, triton: str | None = None) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = [triton, str(ROOT), *sys.path] if triton else [str(ROOT), *sys.path]
    env["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [sys.executable, "-c", SETUP + script], env=env, cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def other_triton():
    why = "FASTSEQ_OTHER_TRITON names no folder with another version of triton"
    return pytest.param(OTHER, marks=pytest.mark.skipif(not OTHER, reason=why), id="other")


VERSIONS = [pytest.param(None, id="installed"), other_triton()]


@pytest.mark.process
@pytest.mark.parametrize("triton", VERSIONS)
def test_direct_launches_are_those_of_triton(triton, tmp_path):
    """The same kernels, grids, streams, machine code and arguments, forward and backward."""
    said = child(SAME, triton)
    assert said.splitlines() == ["scl", "contrastive_idm", "tcc", "tcc fp32", "queue_nce"]


@pytest.mark.process
@pytest.mark.parametrize("triton", VERSIONS)
def test_each_kind_of_call_has_its_own_machine_code(triton):
    assert child(KINDS, triton).startswith("done")


class Recorder:
    """Acts as a tensor, a kernel and a device context at the same time."""

    def __init__(self, device: int):
        self.device, self.said = device, []

    def get_device(self) -> int:
        return self.device

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.said.append((grid, args, kwargs))


def test_launches_happen_on_the_device_of_the_tensors(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    from fastseq.ops.common import launch

    entered = []

    @contextlib.contextmanager
    def device(index):
        entered.append(index)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    for index in (0, 1):
        kernel, tensor = Recorder(index), Recorder(index)
        launch.Kernel(kernel, BM=16)(7, (tensor, None), (3, 0.5))
        assert kernel.said == [((7,), (tensor, None, 3, 0.5), {"BM": 16})]
    assert entered == [1]


def test_autocast_is_off_inside_and_on_again_after_an_error():
    with torch.autocast("cpu"):
        with dispatch.no_autocast("cpu"):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(RuntimeError, match="boom"), dispatch.no_autocast("cpu"):
            raise RuntimeError("boom")
        assert torch.is_autocast_enabled("cpu")
    with dispatch.no_autocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_a_gradient_is_a_node_only_where_it_may_be_differentiated():
    z = torch.randn(3, 4, requires_grad=True)
    (dz,) = torch.autograd.grad(fastseq.scl_loss(z, z.detach(), backend="torch"), z)
    assert dz.grad_fn is None
    loss = fastseq.scl_loss(z, z.detach(), backend="torch")
    (dz,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        dz.sum().backward()
