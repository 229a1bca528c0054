"""Infinite costs mark pairs that no path may use."""

import functools

import numpy as np
import pytest
import torch

import fastseq
from ops.soft_dtw.cases import (
    BACKENDS,
    EVERY,
    all_paths,
    backends,
    in_band,
    randn,
    relative,
    value_and_alignment,
)

INF, NAN = float("inf"), float("nan")


def over_allowed_paths(cost, gamma, bandwidth=None):
    """(value, E) of a small matrix in float64, path by path; without a path: +inf and 0."""
    n, m = cost.shape
    paths = [p for p in all_paths(n, m) if in_band(p, n, m, bandwidth)]
    totals = torch.tensor([sum(float(cost[c]) for c in p) for p in paths], dtype=torch.float64)
    value = -gamma * torch.logsumexp(-totals / gamma, 0)
    expected = torch.zeros(n, m, dtype=torch.float64)
    if value < INF:
        for path, weight in zip(paths, ((value - totals) / gamma).exp(), strict=True):
            for cell in path:
                expected[cell] += weight
    return value, expected


def by_cells(cost, gamma):
    """The same for larger matrices, by the recursion over R, cell after cell."""
    cost = np.asarray(cost.double())
    n, m = cost.shape
    r = np.full((n + 1, m + 1), np.inf)
    r[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = np.array([r[i - 1, j - 1], r[i - 1, j], r[i, j - 1]])
            if before.min() < np.inf:
                soft = before.min() - gamma * np.log(np.exp((before.min() - before) / gamma).sum())
                r[i, j] = cost[i - 1, j - 1] + soft
    e = np.zeros((n + 2, m + 2))
    e[n, m] = r[n, m] < np.inf
    for i in range(n, 0, -1):
        for j in range(m, 0, -1):
            before = np.array([r[i - 1, j - 1], r[i - 1, j], r[i, j - 1]])
            if r[i, j] == np.inf or before.min() == np.inf:
                continue
            p = np.exp((before.min() - before) / gamma)
            p *= e[i, j] / p.sum()
            e[i - 1, j - 1] += p[0]
            e[i - 1, j] += p[1]
            e[i, j - 1] += p[2]
    return r[n, m], e[1 : n + 1, 1 : m + 1]


def _check(cost, got, wanted, tolerance):
    (value, gradient), (right, expected) = got, wanted
    if right == INF:
        assert value == INF
        assert not gradient.any()
        return
    assert value.item() == pytest.approx(float(right), rel=tolerance, abs=tolerance)
    assert relative(gradient, expected) < 30 * tolerance
    assert not gradient[cost == INF].any()
    assert not gradient[torch.as_tensor(expected) == 0].any()  # cells on no path


@functools.cache  # shared by all backends
def _masked(seed, bandwidth, dtype):
    shape = [(5, 6), (6, 4), (1, 5), (5, 1), (5, 5)][seed % 5]
    cost = randn(*shape, seed=seed).abs().to(dtype)
    share = [0.1, 0.2, 0.3, 0.45][seed // 10]
    cost[torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share] = INF
    return cost, over_allowed_paths(cost, 0.2, bandwidth)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bandwidth", [None, 1])
@backends()
def test_every_way_around_forbidden_pairs(backend, bandwidth, dtype):
    """Masks of all kinds: holes that paths pass on both sides, dead ends, no path at all."""
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    blocked = 0
    for seed in range(40):
        cost, wanted = _masked(seed, bandwidth, dtype)
        got = value_and_alignment(cost, gamma=0.2, bandwidth=bandwidth, backend=backend)
        assert got[1].dtype == dtype
        # In bfloat16 the gradient is rounded when it is returned.
        if dtype == torch.bfloat16:
            wanted = wanted[0], wanted[1].to(dtype).double()
            got = got[0], got[1].double()
        _check(cost, got, wanted, 1e-4 if dtype == torch.bfloat16 else tolerance)
        blocked += wanted[0] == INF
    assert 5 < blocked < 35


@functools.cache
def _walled(shape, gamma):
    n, m = shape
    cost = randn(n, m, seed=1).square()
    cost[n // 2, : 3 * m // 4] = INF
    cost[n // 2, m // 5] = 0.5
    cost[n // 8 : n // 3, m // 8 : m // 2] = INF
    return cost, by_cells(cost, gamma)


@pytest.mark.sweep
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 100.0])
@pytest.mark.parametrize("shape", [(70, 70), (130, 97), (64, 200)])
@backends()
def test_forbidden_pairs_beyond_one_tile(backend, shape, gamma):
    """A wall with two gates and a hole, across the strips and blocks of every backend."""
    cost, wanted = _walled(shape, gamma)
    got = value_and_alignment(cost, gamma=gamma, backend=backend)
    _check(cost, got, wanted, 1e-6)
    assert got[1].sum() > 0


@backends()
def test_a_band_of_infinities_is_a_band(backend):
    cost = randn(90, 110, seed=2).square()
    gap = torch.arange(110) - torch.arange(90)[:, None]
    value, expected = value_and_alignment(cost, gamma=0.1, bandwidth=7, backend=backend)
    outside = cost.masked_fill((gap < -7) | (gap > 27), INF)
    walled, drawn = value_and_alignment(outside, gamma=0.1, backend=backend)
    assert walled == pytest.approx(value.item(), rel=1e-6)
    assert relative(drawn, expected) < 1e-5
    assert torch.equal(drawn == 0, (drawn == 0) | (gap < -7) | (gap > 27))


@pytest.mark.sweep
@backends()
def test_a_batch_with_pairs_that_have_no_path(backend):
    """Lengths, an upstream gradient per pair, and the same bits as without the batch."""
    cost = randn(6, 70, 80, seed=3).square()
    cost[1, 30] = INF  # a whole row
    cost[2, 0, 0] = INF
    cost[3, 5:50, 9] = INF
    cost[4, 69, 79] = INF  # padding there
    cost[5, 39, 30] = INF  # the last real pair
    lengths = {"lengths_x": [70, 70, 70, 66, 20, 40], "lengths_y": [80, 80, 11, 80, 80, 31]}
    upstream = torch.tensor([1.0, -2.0, 3.0, -0.5, 2.0, 1.0])
    value, gradient = value_and_alignment(cost, upstream, gamma=0.3, backend=backend, **lengths)
    assert (value == INF).tolist() == [False, True, True, False, False, True]
    assert gradient.isfinite().all()
    assert not gradient[[1, 2, 5]].any()
    for k in (0, 3, 4):
        n, m = lengths["lengths_x"][k], lengths["lengths_y"][k]
        real = cost[k, :n, :m]
        right, expected = by_cells(real, 0.3)
        assert value[k] == pytest.approx(right, rel=1e-6)
        assert relative(gradient[k, :n, :m] / upstream[k], expected) < 1e-5
        alone = value_and_alignment(
            cost[k], upstream[k], gamma=0.3, backend=backend, lengths_x=n, lengths_y=m
        )
        assert torch.equal(alone[0], value[k])
        assert torch.equal(alone[1], gradient[k])
    for reduction in ("sum", "mean"):
        total = fastseq.soft_dtw_from_cost(
            cost, gamma=0.3, reduction=reduction, backend=backend, **lengths
        )
        assert total == INF


@backends()
def test_nan_and_minus_infinity_stay_visible(backend):
    """NaN beside forbidden pairs as well; forbidden pairs keep gradient 0."""
    clean = randn(3, 20, 30, seed=4).square()
    clean[:, 8:12, 10:20] = INF
    for bad in (NAN, -INF):
        cost = clean.clone()
        cost[1, 3, 3] = bad
        value, gradient = value_and_alignment(cost, gamma=0.1, backend=backend)
        assert value.isnan().tolist() == [False, True, False]
        assert gradient[1].isnan().any()
        assert not gradient[1, 8:12, 10:20].any()
        assert gradient[[0, 2]].isfinite().all()
        cost = clean.clone()
        cost[1, -1, -1] = bad
        assert value_and_alignment(cost, gamma=0.1, backend=backend)[0][1].isnan()
        cost[1, -1, -1], cost[1, 3, 3] = 0, bad
        # A NaN that no path reaches is not one of the pair's costs: the row before it is a wall.
        cost[1, 2] = INF
        value, gradient = value_and_alignment(cost, gamma=0.1, backend=backend)
        assert value[1] == INF
        assert not gradient[1].any()


@backends(["numba"])
def test_only_pairs_with_infinities_leave_the_waves(backend):
    """The other pairs of a batch keep their bits."""
    cost = randn(4, 70, 80, seed=5)
    want = value_and_alignment(cost, gamma=0.3, backend=backend)
    cost[2, 7, 9] = INF
    got = value_and_alignment(cost, gamma=0.3, backend=backend)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a[[0, 1, 3]], b[[0, 1, 3]])
    assert not torch.equal(got[1][2], want[1][2])


@pytest.mark.compile
@backends(BACKENDS)
def test_compiled_equals_eager(backend):
    cost = randn(3, 20, 30, seed=6)
    cost[1, 5:9, 3:20] = INF
    cost[2, 0] = INF
    cost[2, 1, 0] = INF

    @torch.compile(fullgraph=True)
    def compiled(c):
        return fastseq.soft_dtw_from_cost(c, gamma=0.2, backend=backend)

    want = value_and_alignment(cost, gamma=0.2, backend=backend)
    at = cost.clone().requires_grad_()
    value = compiled(at)
    assert torch.equal(value, want[0])
    assert torch.equal(torch.autograd.grad(value.sum(), at)[0], want[1])


def test_second_derivatives_beside_forbidden_pairs():
    """Second derivatives of the definition, against finite differences of the gradient."""
    cost = randn(6, 7, seed=7).double().square()
    cost[2:4, 2:5] = INF
    cost[5, 0] = INF
    step = 1e-6 * randn(6, 7, seed=8).double()

    def gradient(at, **kw):
        value = fastseq.soft_dtw_from_cost(at, gamma=0.5, backend="reference")
        return torch.autograd.grad(value, at, **kw)[0]

    at = cost.clone().requires_grad_()
    (product,) = torch.autograd.grad((gradient(at, create_graph=True) * step).sum(), at)
    ahead, behind = (gradient((cost + s * step).requires_grad_()) for s in (1, -1))
    assert relative(product, (ahead - behind) / 2) < 1e-6
    assert not product[cost == INF].any()


@backends(EVERY)
def test_infinite_embeddings_are_no_forbidden_pairs(backend):
    x, y = randn(2, 20, 3, seed=9), randn(2, 25, 3, seed=10)
    for place in (0, 10, 19):
        spoiled = x.clone()
        spoiled[0, place] = INF
        value = fastseq.soft_dtw(spoiled, y, gamma=0.1, backend=backend)
        assert value.isfinite().tolist() == [False, True]
