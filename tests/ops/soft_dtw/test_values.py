"""soft_dtw on every backend against exhaustive sums over paths, float64 loops and closed forms."""

import functools
import math

import numpy as np
import pytest
import torch

import fastseq
from ops.soft_dtw.cases import (
    BACKENDS,
    GRADIENT,
    VALUE,
    backends,
    embedding_gradients,
    randn,
    recursion,
    relative,
    squared,
    sum_over_paths,
    value_and_alignment,
    value_and_grads,
)

SMALL = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (6, 4), (6, 6)]
# Sizes around those at which tiles, strips and blocks begin and end.
MEDIUM = [(1, 97), (97, 1), (2, 33), (31, 64), (63, 65), (64, 64), (65, 130), (130, 31)]


def _cost(shape):
    return randn(1, *shape, seed=shape[0], dtype=torch.float64)  # of both signs


@functools.cache  # shared by all backends
def _by_all_paths(shape, gamma, bandwidth):
    return sum_over_paths(_cost(shape)[0].numpy(), gamma, bandwidth)


@pytest.mark.parametrize("bandwidth", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", SMALL)
@backends()
def test_equals_the_sum_over_all_paths(backend, shape, bandwidth):
    cost = _cost(shape)
    for gamma in (0.05, 1.0, 30.0):
        value, expected = _by_all_paths(shape, gamma, bandwidth)
        got, alignment = value_and_alignment(
            cost, gamma=gamma, bandwidth=bandwidth, backend=backend
        )
        assert got.item() == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert np.abs(alignment[0].numpy() - expected).max() < 1e-12


def test_the_loops_that_tests_rely_on_agree_with_the_sum_over_all_paths():
    cost = randn(6, 5, dtype=torch.float64).numpy()
    for bandwidth in (None, 0, 1):
        value, expected = sum_over_paths(cost, 0.7, bandwidth)
        other, alignment = recursion(cost, 0.7, bandwidth)
        assert other == pytest.approx(value, rel=1e-14)
        assert np.abs(alignment - expected).max() < 1e-14


@pytest.mark.parametrize(("n", "m"), [(40, 30), (65, 129)])
@backends()
def test_costs_of_zero_count_the_paths(backend, n, m):
    ways = np.ones((n, m), object)  # Delannoy numbers, as exact integers
    for i in range(1, n):
        for j in range(1, m):
            ways[i, j] = ways[i - 1, j - 1] + ways[i - 1, j] + ways[i, j - 1]
    for dtype, allowed in ((torch.float64, 1e-13), (torch.float32, 5e-7)):
        value = fastseq.soft_dtw_from_cost(
            torch.zeros(n, m, dtype=dtype), gamma=2.5, backend=backend
        )
        assert value.item() == pytest.approx(-2.5 * math.log(ways[-1, -1]), rel=allowed)


@functools.cache  # for all backends
def _ragged_pairs(n, m, bandwidth):
    """x, y, lengths, and for each pair its value and the gradients of its real frames."""
    x, y = randn(2, n, 5, seed=1), randn(2, m, 5, seed=2)
    lengths = {"lengths_x": [n, max(n - 3, 1)], "lengths_y": [max(m - 2, 1), m]}
    wanted = []
    for k, (a, b) in enumerate(zip(*lengths.values(), strict=True)):
        want, expected = recursion(squared(x[k, :a], y[k, :b]), 0.5, bandwidth)
        wanted.append((want, *embedding_gradients(x[k, :a], y[k, :b], expected)))
    return x, y, lengths, wanted


@pytest.mark.parametrize("bandwidth", [None, 5])
@pytest.mark.parametrize(("n", "m"), MEDIUM)
@backends()
def test_equals_loops_in_float64(backend, n, m, bandwidth):
    x, y, lengths, wanted = _ragged_pairs(n, m, bandwidth)
    options = {"gamma": 0.5, "bandwidth": bandwidth, "backend": backend}
    upstream = torch.tensor([1.0, -2.0])
    value, dx, dy = value_and_grads(x, y, upstream, **lengths, **options)
    # The definition computes in float64; only the returned values are rounded.
    allowed = 2e-7 if backend == "reference" else GRADIENT
    for k, (want, wx, wy) in enumerate(wanted):
        a, b = lengths["lengths_x"][k], lengths["lengths_y"][k]
        assert value[k].item() == pytest.approx(want, rel=VALUE)
        assert relative(dx[k, :a], wx * upstream[k].item()) < allowed
        assert relative(dy[k, :b], wy * upstream[k].item()) < allowed
        assert (dx[k, a:] == 0).all()
        assert (dy[k, b:] == 0).all()


@pytest.mark.sweep
@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
@backends()
def test_gradcheck(backend, cost):
    x = randn(2, 5, 2, seed=3, dtype=torch.float64).requires_grad_()
    y = randn(2, 4, 2, seed=4, dtype=torch.float64).requires_grad_()
    options = {"lengths_x": [5, 3], "lengths_y": [2, 4], "cost": cost, "backend": backend}
    for more in ({"gamma": 0.3}, {"gamma": 2.0, "bandwidth": 1, "divergence": True}):
        options |= more

        def call(a, b, options=options):
            return fastseq.soft_dtw(a, b, **options)

        assert torch.autograd.gradcheck(call, (x, y))
        if backend == "reference":
            assert torch.autograd.gradgradcheck(call, (x, y), fast_mode=True)


@pytest.mark.sweep
@backends()
def test_gradcheck_of_costs(backend):
    cost = randn(2, 6, 5, dtype=torch.float64).requires_grad_()

    def call(c):
        return fastseq.soft_dtw_from_cost(c, gamma=0.4, lengths_x=[6, 3], backend=backend)

    assert torch.autograd.gradcheck(call, cost)


@backends()
def test_cosine_is_one_minus_the_cosine(backend):
    x, y = randn(2, 20, 6, seed=5, dtype=torch.float64), randn(2, 17, 6, seed=6).double()
    x[0, 3] = 0  # no direction: costs 1 against every frame, including another such frame
    y[0, 5] = 0
    y[1, 2] *= 1e4
    x.requires_grad_()
    got = fastseq.soft_dtw(x, y, gamma=0.1, cost="cosine", backend=backend)
    cosine = torch.cosine_similarity(x[:, :, None], y[:, None], dim=-1, eps=1e-12)
    want = fastseq.soft_dtw_from_cost(1 - cosine, gamma=0.1, backend="reference")
    assert torch.allclose(got, want, rtol=1e-12)
    (dx,) = torch.autograd.grad(got.sum(), x, retain_graph=True)
    (wx,) = torch.autograd.grad(want.sum(), x)
    assert (dx[0, 3] == 0).all()
    wx[0, 3] = 0
    assert relative(dx, wx) < 1e-10


@backends()
def test_divergence(backend):
    x, y = randn(3, 12, 4, seed=7, dtype=torch.float64), randn(3, 9, 4, seed=8).double()
    lengths = {"lengths_x": [12, 5, 0], "lengths_y": [7, 9, 4]}
    got, dx, dy = value_and_grads(x, y, gamma=0.6, divergence=True, backend=backend, **lengths)
    for k in range(2):
        a, b = x[k, : lengths["lengths_x"][k]], y[k, : lengths["lengths_y"][k]]
        xy, xx, yy = (recursion(squared(p, q), 0.6)[0] for p, q in ((a, b), (a, a), (b, b)))
        assert got[k].item() == pytest.approx(xy - (xx + yy) / 2, rel=1e-12)
    # The side that has frames has no divergence from an empty one either.
    assert got[2] == 0
    assert (dx[2] == 0).all()
    assert (dy[2] == 0).all()
    itself, gradient, _ = value_and_grads(x, x, gamma=0.6, divergence=True, backend=backend)
    assert itself.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-11  # a minimum


@pytest.mark.parametrize("gamma", [1e-4, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@backends()
def test_extreme_gammas(backend, gamma, dtype):
    x, y = randn(1, 50, 4, seed=9, dtype=dtype), randn(1, 70, 4, seed=10, dtype=dtype)
    value, dx, dy = value_and_grads(x, y, gamma=gamma, backend=backend)
    want, expected = recursion(squared(x[0], y[0]), gamma)
    assert value.item() == pytest.approx(want, rel=1e-12 if dtype == torch.float64 else VALUE)
    allowed = 1e-11 if dtype == torch.float64 else GRADIENT
    for got, exact in zip((dx, dy), embedding_gradients(x[0], y[0], expected), strict=True):
        assert relative(got[0], exact) < allowed


@backends()
def test_huge_costs(backend):
    """Costs of 4e7 with a gamma of 1e-3; packages that mark borders with 1e10 fail here."""
    cost = randn(1, 30, 25, seed=11).double().abs() * 4e7
    want, expected = recursion(cost[0], 1e-3)
    for dtype in (torch.float64, torch.float32):
        value, alignment = value_and_alignment(cost.to(dtype), gamma=1e-3, backend=backend)
        assert value.item() == pytest.approx(want, rel=VALUE)
        assert np.abs(alignment[0].double().numpy() - expected).max() < 2e-5


@pytest.mark.sweep
@pytest.mark.parametrize("gamma", [0.1, 0.01])
@pytest.mark.parametrize(
    "frames", [480, pytest.param(4096, marks=pytest.mark.slow)], ids=["T480", "T4096"]
)
@backends(BACKENDS)
def test_gradient_in_float32_keeps_its_digits(backend, frames, gamma):
    x, y = (
        torch.nn.functional.normalize(randn(1, frames, 128, seed=seed), dim=-1) for seed in (12, 13)
    )
    _check_against_float64(x, y, gamma, backend)


@backends(BACKENDS)
def test_gradient_in_float32_far_from_the_origin(backend):
    """|x||^2 + ||y||^2 - 2 x y in float32 would lose four digits here."""
    x, y = randn(1, 200, 64, seed=14) + 10, randn(1, 220, 64, seed=15) + 10
    _check_against_float64(x, y, 1.0, backend)


def _check_against_float64(x, y, gamma, backend):
    from scipy.spatial.distance import cdist

    cost = torch.tensor(cdist(x[0].double(), y[0].double(), "sqeuclidean"))
    # In float64 all backends agree to 1e-12 with loops (above), which would take minutes here.
    want, expected = value_and_alignment(cost, gamma=gamma, backend="numba")
    wx, wy = embedding_gradients(x[0], y[0], expected.numpy())
    value, dx, dy = value_and_grads(x, y, gamma=gamma, backend=backend)
    assert value.item() == pytest.approx(want.item(), rel=VALUE)
    assert relative(dx[0], wx) < GRADIENT
    assert relative(dy[0], wy) < GRADIENT
