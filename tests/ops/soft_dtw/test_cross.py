"""soft_dtw_cross equals soft_dtw of the expanded pairs, in one chunk and in many."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.soft_dtw import chunks
from fastseq.ops.soft_dtw.cross import _CHUNKS
from ops.soft_dtw.cases import BACKENDS, backends, randn, relative, squared, sum_over_paths

ROOT = Path(__file__).resolve().parents[3]
# Options that soft_dtw supports too, none of them per pair.
OPTIONS = {
    "plain": {},
    "cosine": {"cost": "cosine", "gamma": 0.2},
    "band": {"bandwidth": 2},
    "gamma tensor": {"gamma": torch.tensor(0.3)},
    "free begin": {"begin": "free"},
    "free end": {"end": "free", "warp_penalty": 0.4},
}
# Chunks of one pair, of some, of all.
BUDGETS = {"one pair": 1, "some pairs": 20_000, "all pairs": 1 << 26}


@pytest.fixture(params=BUDGETS)
def budget(request, monkeypatch):
    monkeypatch.setitem(chunks.BUDGET, "cpu", BUDGETS[request.param])


@pytest.fixture
def many_chunks(monkeypatch):
    monkeypatch.setitem(chunks.BUDGET, "cpu", 20_000)


def _sequences(dtype=torch.float32):
    """Five and seven sequences with NaN in their padding, and their lengths."""
    x, y = randn(5, 20, 4, seed=1, dtype=dtype), randn(7, 25, 4, seed=2, dtype=dtype)
    lengths = torch.tensor([20, 0, 7, 1, 19]), torch.tensor([25, 24, 0, 3, 11, 25, 1])
    for z, real in zip((x, y), lengths, strict=True):
        for row, n in zip(z, real.tolist(), strict=True):
            row[n:] = torch.nan
    return x, y, *lengths


def _pairs(x, y, lengths_x, lengths_y):
    """The expected value from soft_dtw on every pair, expanded."""
    a, b = len(x), len(y)
    return (
        x.repeat_interleave(b, 0),
        y.repeat(a, 1, 1),
        lengths_x.repeat_interleave(b),
        lengths_y.repeat(a),
    )


def _value_and_grads(function, x, y, weights, **options):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    return value.detach(), *torch.autograd.grad((value * weights).sum(), (x, y))


@pytest.mark.parametrize("options", OPTIONS)
@backends()
def test_equals_soft_dtw_of_every_pair(backend, options, budget):
    x, y, lengths_x, lengths_y = _sequences()
    options = {"gamma": 0.5, "backend": backend} | OPTIONS[options]
    weights = randn(5, 7, seed=3)
    got = _value_and_grads(
        fastseq.soft_dtw_cross,
        *(x, y, weights),
        **({"lengths_x": lengths_x, "lengths_y": lengths_y} | options),
    )

    def expanded(x, y, **options):
        x, y, n, m = _pairs(x, y, lengths_x, lengths_y)
        return fastseq.soft_dtw(x, y, lengths_x=n, lengths_y=m, **options).view(5, 7)

    want = _value_and_grads(expanded, x, y, weights, **options)
    assert torch.equal(got[0], want[0])
    assert (want[0] != 0).sum() == 4 * 6
    for a, b in zip(got[1:], want[1:], strict=True):
        assert relative(a, b) < 5e-7
        assert torch.equal(a == 0, b == 0)


@backends()
def test_all_paths(backend):
    x, y = randn(2, 4, 2, seed=4), randn(3, 5, 2, seed=5)
    values = fastseq.soft_dtw_cross(x, y, gamma=0.7, backend=backend)
    for a in range(2):
        for b in range(3):
            want = sum_over_paths(squared(x[a], y[b]), 0.7)[0]
            assert values[a, b].item() == pytest.approx(want, rel=1e-6)


@backends(BACKENDS)
def test_gradcheck(backend, monkeypatch):
    monkeypatch.setitem(chunks.BUDGET, "cpu", 500)  # two pairs
    x = randn(2, 4, 2, seed=23, dtype=torch.float64).requires_grad_()
    y = randn(2, 3, 2, seed=24, dtype=torch.float64).requires_grad_()
    lengths = {"lengths_x": [4, 2]}
    assert len(list(chunks.rectangles(x, y))) == 2
    for options in ({"cost": "cosine"}, {"bandwidth": 1, "begin": "free"}, {"warp_penalty": 0.1}):

        def value(x, y, options=options):
            options = {"gamma": 0.3, "backend": backend} | lengths | options
            return fastseq.soft_dtw_cross(x, y, **options)

        torch.autograd.gradcheck(value, (x, y))


@backends(BACKENDS)
def test_masks_are_lengths_of_what_is_left(backend, budget):
    x, y = randn(3, 12, 4, seed=6), randn(4, 10, 4, seed=7)
    valid_x, valid_y = randn(3, 12, seed=8) > 0, randn(4, 10, seed=9) > -0.5
    got = fastseq.soft_dtw_cross(x, y, valid_x=valid_x, valid_y=valid_y, backend=backend)
    for a in range(3):
        for b in range(4):
            pair = x[a, valid_x[a]], y[b, valid_y[b]]
            assert torch.equal(got[a, b], fastseq.soft_dtw(*pair, backend=backend))


@backends(BACKENDS)
def test_only_one_gradient_and_none(backend, many_chunks):
    x, y = randn(3, 20, 4, seed=10), randn(4, 18, 4, seed=11)
    _, *want = _value_and_grads(fastseq.soft_dtw_cross, x, y, 1.0, backend=backend)
    for k in (0, 1):
        pair = [x.clone(), y.clone()]
        pair[k].requires_grad_()
        value = fastseq.soft_dtw_cross(*pair, backend=backend)
        assert torch.equal(torch.autograd.grad(value.sum(), pair[k])[0], want[k])
    with torch.no_grad():
        assert not fastseq.soft_dtw_cross(x.requires_grad_(), y, backend=backend).requires_grad


@backends()
def test_sequences_with_themselves(backend, many_chunks):
    """One tensor on both sides, as for a matrix of distances."""
    x = randn(4, 15, 3, seed=12)
    values = fastseq.soft_dtw_cross(x, x, gamma=0.1, backend=backend)
    assert relative(values, values.T) < 1e-6
    x.requires_grad_()
    (got,) = torch.autograd.grad(fastseq.soft_dtw_cross(x, x, backend=backend).sum(), x)
    _, dx, dy = _value_and_grads(fastseq.soft_dtw_cross, x, x, 1.0, backend=backend)
    assert relative(got, dx + dy) < 1e-6


@pytest.mark.parametrize(
    ("a", "b", "t", "s"), [(0, 3, 4, 5), (3, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)]
)
@backends()
def test_nothing_to_align(backend, a, b, t, s, budget):
    x, y = torch.zeros(a, t, 2, requires_grad=True), torch.zeros(b, s, 2, requires_grad=True)
    value = fastseq.soft_dtw_cross(x, y, backend=backend)
    assert torch.equal(value, torch.zeros(a, b))
    dx, dy = torch.autograd.grad(value.sum(), (x, y))
    assert torch.equal(dx, torch.zeros_like(x))
    assert torch.equal(dy, torch.zeros_like(y))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@backends(BACKENDS)
def test_halves_and_autocast(backend, half, many_chunks):
    x, y = randn(3, 20, 4, seed=13).to(half), randn(4, 18, 4, seed=14).to(half)
    value, dx, dy = _value_and_grads(fastseq.soft_dtw_cross, x, y, 1.0, backend=backend)
    assert (value.dtype, dx.dtype, dy.dtype) == (torch.float32, half, half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = _value_and_grads(fastseq.soft_dtw_cross, x, y, 1.0, backend=backend)
    assert all(torch.equal(p, q) for p, q in zip((value, dx, dy), again, strict=True))
    wide = _value_and_grads(fastseq.soft_dtw_cross, x.float(), y.float(), 1.0, backend=backend)
    assert torch.equal(value, wide[0])
    assert torch.equal(dx, wide[1].to(half))
    mixed = fastseq.soft_dtw_cross(x, y.double(), backend=backend)
    assert mixed.dtype == torch.float64


@backends(BACKENDS)
def test_the_same_bits_every_time(backend, many_chunks):
    x, y, lengths_x, lengths_y = _sequences()
    options = {"lengths_x": lengths_x, "lengths_y": lengths_y, "backend": backend}
    first, second = (
        _value_and_grads(fastseq.soft_dtw_cross, x, y, 1.0, **options) for _ in range(2)
    )
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


@backends(BACKENDS)
def test_lengths_changed_in_place_after_the_call_do_not_matter(backend, budget):
    x, y = randn(2, 20, 3, seed=13).requires_grad_(), randn(3, 18, 3, seed=14)
    lengths, gamma = torch.tensor([20, 11]), torch.tensor(0.5)

    def value():
        options = {"lengths_x": lengths, "gamma": gamma, "backend": backend}
        return fastseq.soft_dtw_cross(x, y, **options).sum()

    (want,) = torch.autograd.grad(value(), x)
    late = value()
    lengths.zero_()
    gamma.fill_(3.0)
    assert torch.equal(torch.autograd.grad(late, x)[0], want)


@backends(BACKENDS)
def test_second_derivatives_are_an_error_not_wrong(backend, budget):
    x, y = randn(2, 6, 2, seed=15).requires_grad_(), randn(2, 5, 2, seed=16)
    value = fastseq.soft_dtw_cross(x, y, backend=backend)
    (dx,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'soft_dtw_cross\(..., backend="reference"\)'):
        dx.square().sum().backward()
    with pytest.raises(RuntimeError, match=r"torch\.func transforms"):
        torch.func.grad(lambda x: fastseq.soft_dtw_cross(x, y, backend=backend).sum())(x)


def test_second_derivatives_of_the_definition():
    x, y = randn(2, 4, 2, seed=17).double().requires_grad_(), randn(2, 3, 2, seed=18).double()
    torch.autograd.gradgradcheck(
        lambda x: fastseq.soft_dtw_cross(x, y, gamma=0.5, backend="reference"), x
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (40, 3), (3, 40), (17, 19)])
@pytest.mark.parametrize("pairs", [1, 2, 5, 17, 10_000])
def test_chunks_are_all_pairs_once(shape, pairs, monkeypatch):
    monkeypatch.setattr(chunks, "_pairs_at_a_time", lambda x, y: pairs)
    seen = np.zeros(shape, int)
    x, y = (torch.zeros(n, 1, 1) for n in shape)
    for rows, columns in chunks.rectangles(x, y):
        seen[rows, columns] += 1
        assert 0 < seen[rows, columns].size <= pairs
    assert (seen == 1).all()


@pytest.mark.process
def test_memory_stays_under_the_budget():
    """20 x 20 pairs; expanded, they would take 105 MB on either side, and the gradients as much."""
    code = """
import torch, fastseq
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024
def call(x, y):
    fastseq.soft_dtw_cross(x, y, gamma=0.1, backend="numba").sum().backward()
x, y = (torch.randn(20, 256, 256).requires_grad_() for _ in range(2))
x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
call(x[:1, :200], y[:1, :200])  # loads and compiles
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
call(x, y)
print(status("VmHWM") - before)
"""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("needs Linux' /proc/self/clear_refs")
    # So that malloc returns freed memory.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # In MiB. Besides the chunk: the gradients of x and y (5 each), a chunk's part of them, threads.
    assert float(output) < 1.6 * (chunks.BUDGET["cpu"] >> 20)


def _arguments(**change):
    return {"x": torch.zeros(2, 4, 3), "y": torch.zeros(3, 5, 3), **change}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [[1.0]]}, TypeError, "soft_dtw_cross: x must be a torch.Tensor, got list"),
        ({"x": torch.zeros(4, 3)}, ValueError, r"x must have shape \(A, T, D\).*x\[None\]"),
        ({"y": torch.zeros(4, 3)}, ValueError, r"y must have shape \(B, S, D\).*y\[None\]"),
        ({"y": torch.zeros(3, 5, 2)}, ValueError, r"agree in D, got \(2, 4, 3\) and \(3, 5, 2\)"),
        ({"y": torch.zeros(3, 5, 3, device="meta")}, ValueError, "on one device, got cpu and meta"),
        ({"lengths_x": [4, 4, 4]}, ValueError, r"lengths_x must have shape \(2,\)"),
        ({"lengths_y": [5, 5, 6]}, ValueError, "lengths_y must lie between 0 and T = 5, got 6"),
        ({"valid_y": torch.ones(3, 4).bool()}, ValueError, r"valid_y must have shape \(3, 5\)"),
        ({"gamma": 0}, ValueError, "greater than 0, got 0"),
        ({"gamma": torch.ones(6)}, ValueError, r"shape \(\), one for all pairs; got \(6,\)"),
        ({"gamma": torch.ones((), requires_grad=True)}, TypeError, "must not require a gradient"),
        ({"bandwidth": torch.tensor([1] * 6)}, TypeError, "bandwidth must be an integer or None"),
        ({"cost": "l1"}, ValueError, "'sqeuclidean', 'cosine'"),
        ({"begin": "open"}, ValueError, "'fixed', 'free'"),
        ({"warp_penalty": -1}, ValueError, "warp_penalty must be finite and at least 0, got -1"),
        ({"backend": "cuda"}, RuntimeError, "tensors are on cpu; to fix: move them to a CUDA"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.soft_dtw_cross(**_arguments(**change))


@pytest.mark.compile
@backends(BACKENDS)
def test_opcheck(backend):
    x, y = randn(3, 9, 4, seed=19).requires_grad_(), randn(2, 7, 4, seed=20).requires_grad_()
    constants = torch.tensor([9, 4, 0]), None, torch.tensor([0.4], dtype=torch.float64)
    options = "chunks", backend, 1.0, 2, False, False, 0.0, "logsumexp"
    for needs in ([True, True], [False, True]):
        inputs = [z if need else z.detach() for z, need in zip((x, y), needs, strict=True)]
        torch.library.opcheck(_CHUNKS.forward_op, (*inputs, *constants, *options, needs))
        inputs = [z.detach() for z in inputs]
        torch.library.opcheck(
            _CHUNKS.backward_op, (torch.ones(3, 2), *inputs, *constants, None, *options, needs)
        )


@pytest.mark.compile
@pytest.mark.parametrize("options", ["plain", "cosine", "gamma tensor"])
@backends(BACKENDS)
def test_compiled_equals_eager(backend, options, budget):
    x, y = randn(3, 20, 4, seed=21), randn(4, 18, 4, seed=22)
    options = {"backend": backend, "lengths_y": [18, 0, 3, 17]} | OPTIONS[options]

    def train(x, y):
        return fastseq.soft_dtw_cross(x * 2, y, **options)

    torch._dynamo.reset()
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    eager, traced = (_value_and_grads(f, x, y, 1.0) for f in (train, compiled))
    assert all(torch.equal(p, q) for p, q in zip(eager, traced, strict=True))
