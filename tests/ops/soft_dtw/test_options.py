"""Free ends, the warp penalty, a gamma and a band for each pair: against all paths, one by one."""

import functools
import itertools

import numpy as np
import pytest
import torch

from ops.soft_dtw.cases import (
    backends,
    randn,
    recursion,
    sum_over_paths,
    value_and_alignment,
)

ENDS = list(itertools.product(("fixed", "free"), repeat=2))
SHAPES = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (3, 6), (6, 4), (5, 5)]


def _cost(shape):
    return randn(1, *shape, seed=shape[0], dtype=torch.float64)  # of both signs


@functools.cache  # one truth for all backends
def _by_all_paths(shape, gamma, bandwidth, begin, end, penalty):
    return sum_over_paths(_cost(shape)[0].numpy(), gamma, bandwidth, begin, end, penalty)


@pytest.mark.parametrize("bandwidth", [None, 0, 1])
@pytest.mark.parametrize(("begin", "end"), ENDS)
@pytest.mark.parametrize("shape", SHAPES)
@backends()
def test_equals_the_sum_over_all_paths(backend, shape, begin, end, bandwidth):
    for gamma, penalty in itertools.product((0.05, 1.0, 30.0), (0.0, 0.4)):
        options = {"begin": begin, "end": end, "warp_penalty": penalty, "bandwidth": bandwidth}
        value, expected = _by_all_paths(shape, gamma, bandwidth, begin, end, penalty)
        got, alignment = value_and_alignment(_cost(shape), gamma=gamma, **options, backend=backend)
        assert got.item() == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert np.abs(alignment[0].numpy() - expected).max() < 1e-12


def test_the_loops_that_tests_rely_on_agree_with_the_sum_over_all_paths():
    cost = randn(4, 6, dtype=torch.float64).numpy()
    for (begin, end), bandwidth, penalty in itertools.product(ENDS, (None, 0, 1), (0.0, 0.3)):
        for c in (cost, cost.T):
            value, expected = sum_over_paths(c, 0.7, bandwidth, begin, end, penalty)
            other, alignment = recursion(c, 0.7, bandwidth, begin, end, penalty)
            assert other == pytest.approx(value, rel=1e-13)
            assert np.abs(alignment - expected).max() < 1e-13


@functools.cache
def _ragged(begin, end, penalty):
    """Costs (4, 5, 6) with lengths, gammas and bands of each pair, and what comes of each."""
    cost = randn(4, 5, 6, seed=3, dtype=torch.float64)
    sides = [5, 3, 4, 1], [6, 5, 2, 6]
    gammas, bands = [0.2, 1.0, 5.0, 0.5], [1, 0, 2, 3]
    wanted = [
        sum_over_paths(cost[k, :n, :m].numpy(), gammas[k], bands[k], begin, end, penalty)
        for k, (n, m) in enumerate(zip(*sides, strict=True))
    ]
    return cost, sides, gammas, bands, wanted


@pytest.mark.parametrize("penalty", [0.0, 0.25])
@pytest.mark.parametrize(("begin", "end"), ENDS)
@backends()
def test_a_gamma_and_a_band_for_each_pair(backend, begin, end, penalty):
    cost, (n, m), gammas, bands, wanted = _ragged(begin, end, penalty)
    ends = {"begin": begin, "end": end, "warp_penalty": penalty, "backend": backend}
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    for gamma, band in (
        (torch.tensor(gammas, dtype=torch.float64), bands),
        (torch.tensor(gammas, dtype=torch.float64), torch.tensor(bands, dtype=torch.int32)),
    ):
        value, gradient = value_and_alignment(
            cost, upstream, gamma=gamma, bandwidth=band, lengths_x=n, lengths_y=m, **ends
        )
        for k, (want, expected) in enumerate(wanted):
            assert value[k].item() == pytest.approx(want, rel=1e-12)
            real = gradient[k, : n[k], : m[k]].numpy()
            assert np.abs(real - expected * upstream[k].item()).max() < 1e-12
            assert gradient[k].count_nonzero() == np.count_nonzero(real)
