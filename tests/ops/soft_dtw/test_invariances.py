"""Changes that must not affect the result: padding, the batch, memory layout, direction, sides."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import fastseq
from ops.soft_dtw.cases import (
    backends,
    randn,
    recursion,
    relative,
    squared,
    value_and_alignment,
    value_and_grads,
)

pytestmark = pytest.mark.sweep

LENGTHS = {"lengths_x": [70, 33, 1, 0, 40], "lengths_y": [41, 66, 66, 5, 0]}


def _padded(t, lengths, filling):
    t = t.clone()
    for k, n in enumerate(lengths):
        t[k, n:] = filling
    return t


@pytest.mark.parametrize(
    "options", [{}, {"bandwidth": 3}, {"cost": "cosine"}, {"divergence": True}]
)
@backends()
def test_padding_never_matters(backend, options):
    x, y = randn(5, 70, 3, seed=1), randn(5, 66, 3, seed=2)
    options = {**options, "gamma": 0.2, "backend": backend, **LENGTHS}
    results = []
    for filling in (0.0, 1e30, float("inf"), float("nan")):
        a = _padded(x, LENGTHS["lengths_x"], filling)
        b = _padded(y, LENGTHS["lengths_y"], filling)
        results.append(value_and_grads(a, b, **options))
    for value, dx, dy in results:
        assert value.isfinite().all()
        for got, first in zip((value, dx, dy), results[0], strict=True):
            assert torch.equal(got, first)
        assert torch.equal(value[3:], torch.zeros(2))
        assert torch.equal(dx, _padded(dx, [70, 33, 1, 0, 0], 0.0))
        assert torch.equal(dy, _padded(dy, [41, 66, 66, 0, 0], 0.0))


@backends()
def test_padding_of_costs_never_matters(backend):
    cost = randn(5, 70, 66, seed=3)
    results = []
    for filling in (0.0, float("nan")):
        c = _padded(cost, LENGTHS["lengths_x"], filling)
        c = _padded(c.mT, LENGTHS["lengths_y"], filling).mT
        results.append(value_and_alignment(c, gamma=0.2, backend=backend, **LENGTHS))
    for got, first in zip(*results, strict=True):
        assert got.isfinite().all()
        assert torch.equal(got, first)


@pytest.mark.parametrize(("gamma", "bandwidth"), [(0.2, None), (0.2, 4), (1.0, None), (5.0, 4)])
@backends()
def test_alone_equals_in_a_batch(backend, gamma, bandwidth):
    x, y = randn(5, 70, 3, seed=4), randn(5, 66, 3, seed=5)
    options = {"gamma": gamma, "bandwidth": bandwidth, "backend": backend}
    batch = value_and_grads(x, y, **options, **LENGTHS)
    for k in range(3):
        n, m = LENGTHS["lengths_x"][k], LENGTHS["lengths_y"][k]
        padded = {"lengths_x": [n], "lengths_y": [m]}
        alone = value_and_grads(x[k : k + 1], y[k : k + 1], **options, **padded)
        assert all(torch.equal(a[k], b[0]) for a, b in zip(batch, alone, strict=True))
        cut = value_and_grads(x[k : k + 1, :n], y[k : k + 1, :m], **options)
        assert torch.equal(batch[0][k], cut[0][0])
        assert torch.equal(batch[1][k, :n], cut[1][0])
        assert torch.equal(batch[2][k, :m], cut[2][0])


@backends()
def test_the_same_call_gives_the_same_bits(backend):
    x, y = randn(3, 150, 16, seed=6), randn(3, 140, 16, seed=7)
    first, second = (value_and_grads(x, y, gamma=0.1, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("bandwidth", [None, 0, 3])
@backends()
def test_time_reversal_and_exchange_of_sides(backend, bandwidth):
    x, y = randn(2, 75, 4, seed=8).double(), randn(2, 68, 4, seed=9).double()
    options = {"gamma": 0.3, "bandwidth": bandwidth, "backend": backend}
    value, dx, dy = value_and_grads(x, y, **options)
    back, rx, ry = value_and_grads(x.flip(1), y.flip(1), **options)
    turned, ty, tx = value_and_grads(y, x, **options)
    for other, ox, oy in ((back, rx.flip(1), ry.flip(1)), (turned, tx, ty)):
        assert torch.allclose(value, other, rtol=1e-12)
        assert relative(ox, dx) < 1e-11
        assert relative(oy, dy) < 1e-11


@backends()
def test_expanded_strided_and_transposed_inputs(backend):
    x = randn(4, 3, 30, seed=10).mT[::2]  # [2, 30, 3], not contiguous
    y = randn(1, 27, 3, seed=11).expand(2, -1, -1)
    want = value_and_grads(x.contiguous(), y.contiguous(), gamma=0.5, backend=backend)
    for got, exact in zip(value_and_grads(x, y, gamma=0.5, backend=backend), want, strict=True):
        assert torch.equal(got, exact)
    cost = randn(2, 20, 30, seed=12).mT
    for got, exact in zip(
        value_and_alignment(cost, backend=backend),
        value_and_alignment(cost.contiguous(), backend=backend),
        strict=True,
    ):
        assert torch.equal(got, exact)
    shared = randn(1, 27, 3, seed=11).requires_grad_()  # its gradient is the sum over the batch
    value = fastseq.soft_dtw(x, shared.expand(2, -1, -1), gamma=0.5, backend=backend)
    (gradient,) = torch.autograd.grad(value.sum(), shared)
    assert torch.allclose(gradient[0], want[2].sum(0), rtol=1e-5, atol=1e-6)


@backends()
def test_only_one_input_with_a_gradient(backend):
    x, y = randn(2, 40, 3, seed=13), randn(2, 35, 3, seed=14)
    _, dx, dy = value_and_grads(x, y, backend=backend)
    for k, exact in ((0, dx), (1, dy)):
        pair = [x.clone(), y.clone()]
        pair[k].requires_grad_()
        value = fastseq.soft_dtw(*pair, backend=backend)
        assert torch.equal(torch.autograd.grad(value.sum(), pair[k])[0], exact)
    assert not fastseq.soft_dtw(x, y, backend=backend).requires_grad


@backends()
def test_upstream_gradients_scale_each_pair(backend):
    x, y = randn(3, 30, 3, seed=15), randn(3, 35, 3, seed=16)
    _, dx, dy = value_and_grads(x, y, backend=backend)
    upstream = torch.tensor([-2.0, 0.0, 0.5])
    _, sx, sy = value_and_grads(x, y, upstream, backend=backend)
    for scaled, plain in ((sx, dx), (sy, dy)):
        assert torch.allclose(scaled, plain * upstream[:, None, None], rtol=1e-5, atol=1e-6)
    assert (sx[1] == 0).all()


@backends()
def test_nan_in_a_real_frame_is_seen(backend):
    x, y = randn(3, 70, 3, seed=17), randn(3, 66, 3, seed=18)
    for where in ((0, 0), (0, 35), (0, 69)):
        spoiled = x.clone()
        spoiled[where] = float("nan")
        value, dx, _ = value_and_grads(spoiled, y, backend=backend)
        assert value[0].isnan()
        assert dx[0].isnan().any()
        assert value[1:].isfinite().all()
        assert dx[1:].isfinite().all()
    cost = randn(1, 40, 40, seed=19)
    cost[0, 20, 20] = float("nan")
    assert fastseq.soft_dtw_from_cost(cost, backend=backend).isnan().all()


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 0, 0)])
@backends()
def test_nothing_to_align(backend, shape):
    num, n, m = shape
    for options in ({}, {"divergence": True}, {"cost": "cosine"}, {"bandwidth": 2}):
        x, y = torch.ones(num, n, 3), torch.ones(num, m, 3)
        value, dx, dy = value_and_grads(x, y, **options, backend=backend)
        assert torch.equal(value, torch.zeros(num))
        assert dx.shape == x.shape
        assert dy.shape == y.shape
        assert (dx == 0).all()
        assert (dy == 0).all()
    for reduction in ("mean", "sum"):
        assert fastseq.soft_dtw(x, y, reduction=reduction, backend=backend) == 0
    value, expected = value_and_alignment(torch.ones(shape), backend=backend)
    assert torch.equal(value, torch.zeros(num))
    assert (expected == 0).all()
    assert fastseq.soft_dtw_alignment(x, y, backend=backend).shape == shape


@st.composite
def _calls(draw):
    n, m = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    options = {
        "gamma": draw(st.sampled_from([1e-3, 0.1, 1.0, 100.0])),
        "bandwidth": draw(st.sampled_from([None, 0, 1, 7])),
    }
    lengths = {"lengths_x": [draw(st.integers(1, n))], "lengths_y": [draw(st.integers(1, m))]}
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    return n, m, options, lengths, scale, draw(st.integers(0, 10))


@backends()
@hypothesis.settings(max_examples=40)
@hypothesis.given(call=_calls())
def test_any_call(backend, call):
    n, m, options, lengths, scale, seed = call
    x, y = randn(1, n, 3, seed=seed).double() * scale, randn(1, m, 3, seed=seed + 50).double()
    a, b = lengths["lengths_x"][0], lengths["lengths_y"][0]
    want, expected = recursion(squared(x[0, :a], y[0, :b]), **options)
    value = fastseq.soft_dtw(x, y, **options, **lengths, backend=backend)
    assert value.item() == pytest.approx(want, rel=1e-11, abs=1e-11)
    got = fastseq.soft_dtw_alignment(x, y, **options, **lengths, backend=backend)[0].numpy()
    assert np.abs(got[:a, :b] - expected).max() < 1e-9
    assert (got[a:] == 0).all()
    assert (got[:, b:] == 0).all()
    assert (got[:a, :b].sum(0) > 1 - 1e-9).all()
    assert (got[:a, :b].sum(1) > 1 - 1e-9).all()
