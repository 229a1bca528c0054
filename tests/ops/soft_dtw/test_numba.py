"""Details of the numba backend alone: its polynomials, its threads, its memory."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.soft_dtw import numba_math

ROOT = Path(__file__).parents[3]


@numba.njit
def _powers(x, out):
    for i in range(len(x)):
        out[i] = numba_math.exp2(x[i])


@numba.njit
def _logarithms(x, out):
    for i in range(len(x)):
        out[i] = numba_math.log2_1p(x[i])


def test_exp2_to_rounding_and_exactly_zero_far_below():
    x = -np.geomspace(1e-8, 124, 10_000).astype(np.float32)
    out = np.empty_like(x)
    _powers(x, out)
    np.testing.assert_allclose(out, np.exp2(x.astype(np.float64)), rtol=2e-7)
    x = np.array([0, -126, -1e30, np.nan], np.float32)
    out = np.empty_like(x)
    _powers(x, out)
    np.testing.assert_array_equal(out, np.array([1, 0, 0, np.nan], np.float32))


def test_log2_1p_to_rounding():
    x = np.concatenate([[0], np.geomspace(1e-30, 2, 10_001)]).astype(np.float32)
    out = np.empty_like(x)
    _logarithms(x, out)
    assert out[0] == 0
    np.testing.assert_allclose(out, np.log1p(x.astype(np.float64)) / np.log(2), rtol=3e-7)


def value_and_gradients(x, y, **options):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = fastseq.soft_dtw(x, y, gamma=0.1, backend="numba", **options)
    return value.detach(), *torch.autograd.grad(value.sum(), (x, y))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


FREE = {"begin": "free", "end": "free", "warp_penalty": 0.5, "bandwidth": [40, 300, 90]}


@pytest.mark.parametrize(
    "options", [{}, {"bandwidth": 5}, {"lengths_x": [390, 1, 250]}, {"end": "free"}, FREE]
)
def test_any_number_of_threads_gives_the_same_bits(threads, options):
    # 7 strips of 3 sequences: with 2 to 5 threads, strips wait for strips of other threads.
    torch.manual_seed(0)
    x, y = torch.randn(3, 390, 7), torch.randn(3, 333, 7)
    threads(1)
    alone = value_and_gradients(x, y, **options)
    for count in (2, 3, 5):
        threads(count)
        for got, expected in zip(value_and_gradients(x, y, **options), alone, strict=True):
            assert torch.equal(got, expected)


def test_calls_from_several_threads_at_once(threads):
    torch.manual_seed(0)
    x, y = torch.randn(2, 300, 5), torch.randn(2, 310, 5)
    threads(3)
    expected = value_and_gradients(x, y)
    results = [None] * 4

    def call(i):
        results[i] = value_and_gradients(x, y)

    callers = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    for result in results:
        assert result is not None, "a call did not come back"
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_can_call():
    code = """
import os, signal, torch, fastseq
torch.set_num_threads(2)
x = torch.randn(2, 300, 4)
expected = fastseq.soft_dtw(x, x, gamma=0.1, backend="numba")
child = os.fork()
if child == 0:
    signal.alarm(200)
    same = torch.equal(fastseq.soft_dtw(x, x, gamma=0.1, backend="numba"), expected)
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


@pytest.mark.process
def test_memory_of_long_sequences():
    """Memory above inputs and gradients: less than one byte for each pair of frames."""
    code = """
import torch, fastseq
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024
def call(x, y):
    fastseq.soft_dtw(x, y, gamma=0.1, backend="numba").sum().backward()
x, y = (torch.randn(1, 4096, 128).requires_grad_() for _ in range(2))
x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
call(x[:, :200], y[:, :200])  # loads and compiles
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
call(x, y)
print(status("VmHWM") - before)
"""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("needs Linux' /proc/self/clear_refs")
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert float(output) < 4096**2 / 2**20
