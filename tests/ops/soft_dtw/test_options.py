"""Free ends, the warp penalty, a gamma and a band for each pair: against all paths, one by one."""

import functools
import itertools

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.soft_dtw import per_pair
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

ENDS = list(itertools.product(("fixed", "free"), repeat=2))
SHAPES = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (3, 6), (6, 4), (5, 5)]


def _cost(shape):
    return randn(1, *shape, seed=shape[0], dtype=torch.float64)  # of both signs


@functools.cache  # shared by all backends
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
    """Costs (4, 5, 6) with lengths, gammas and bands of each pair, and their results."""
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


# Sizes around those at which tiles, strips and blocks begin and end.
MEDIUM = [(1, 97), (97, 1), (2, 33), (31, 64), (63, 65), (64, 64), (65, 130), (130, 31)]
MIXES = {
    "begin": {"begin": "free"},
    "end": {"end": "free"},
    "both": {"begin": "free", "end": "free", "warp_penalty": 0.3},
    "penalty": {"warp_penalty": 0.7},
}


@functools.cache  # for all backends
def _medium(n, m, mix, bandwidth):
    """x, y, lengths, and for each pair its value and the gradients of its real frames."""
    x, y = randn(2, n, 5, seed=1), randn(2, m, 5, seed=2)
    lengths = {"lengths_x": [n, max(n - 3, 1)], "lengths_y": [max(m - 2, 1), m]}
    wanted = []
    for k, (a, b) in enumerate(zip(*lengths.values(), strict=True)):
        cost = squared(x[k, :a], y[k, :b])
        want, expected = recursion(cost, 0.5, bandwidth, **MIXES[mix])
        wanted.append((want, *embedding_gradients(x[k, :a], y[k, :b], expected)))
    return x, y, lengths, wanted


@pytest.mark.sweep
@pytest.mark.parametrize("bandwidth", [None, 5])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("n", "m"), MEDIUM)
@backends()
def test_equals_loops_in_float64(backend, n, m, mix, bandwidth):
    x, y, lengths, wanted = _medium(n, m, mix, bandwidth)
    options = {"gamma": 0.5, "bandwidth": bandwidth, "backend": backend, **MIXES[mix]}
    upstream = torch.tensor([1.0, -2.0])
    value, dx, dy = value_and_grads(x, y, upstream, **lengths, **options)
    allowed = 2e-7 if backend == "reference" else GRADIENT
    # With two free ends, whole paths without a common cell compete; otherwise detours of a few
    # frames.
    if MIXES[mix].keys() >= {"begin", "end"}:
        allowed *= 2
    for k, (want, wx, wy) in enumerate(wanted):
        a, b = lengths["lengths_x"][k], lengths["lengths_y"][k]
        assert value[k].item() == pytest.approx(want, rel=VALUE)
        assert relative(dx[k, :a], wx * upstream[k].item()) < allowed
        assert relative(dy[k, :b], wy * upstream[k].item()) < allowed
        assert (dx[k, a:] == 0).all()
        assert (dy[k, b:] == 0).all()


@pytest.mark.sweep
@pytest.mark.parametrize("mix", MIXES)
@backends()
def test_gradcheck(backend, mix):
    x = randn(2, 4, 2, seed=3, dtype=torch.float64).requires_grad_()
    y = randn(2, 6, 2, seed=4, dtype=torch.float64).requires_grad_()
    options = {"lengths_x": [4, 3], "lengths_y": [5, 6], "backend": backend, **MIXES[mix]}
    per_pair = {"gamma": torch.tensor([0.3, 2.0]), "bandwidth": [1, 0], "cost": "cosine"}
    for more in ({"gamma": 0.3}, per_pair):

        def call(a, b, options=options | more):
            return fastseq.soft_dtw(a, b, **options)

        assert torch.autograd.gradcheck(call, (x, y))
        if backend == "reference":
            assert torch.autograd.gradgradcheck(call, (x, y), fast_mode=True)


@pytest.mark.sweep
@pytest.mark.parametrize("mix", MIXES)
@backends()
def test_forbidden_pairs(backend, mix):
    """Masks of all kinds, and the batch around a pair with a mask."""
    blocked = 0
    for seed in range(30):
        shape = [(4, 5), (5, 4), (1, 5), (5, 1), (4, 4)][seed % 5]
        cost = randn(3, *shape, seed=seed).abs().double()
        holes = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        cost[1, holes < [0.15, 0.3, 0.45][seed // 10]] = np.inf
        bandwidth = [None, 1][seed % 2]
        options = {"gamma": 0.2, "bandwidth": bandwidth, "backend": backend, **MIXES[mix]}
        value, gradient = value_and_alignment(cost, **options)
        for k in range(3):
            want, expected = sum_over_paths(cost[k].numpy(), 0.2, bandwidth, **MIXES[mix])
            assert value[k].item() == pytest.approx(want, rel=1e-12, abs=1e-12)
            assert np.abs(gradient[k].numpy() - expected).max() < 1e-12
            blocked += want == np.inf
        assert not gradient[cost == np.inf].any()
    assert 3 < blocked < 27


@pytest.mark.parametrize("mix", MIXES)
@backends()
def test_nan_stays_visible_and_what_is_forbidden_has_no_gradient(backend, mix):
    cost = randn(2, 20, 30, seed=4).square()
    cost[:, 8:12, 10:20] = np.inf
    cost[:, 19, 10:20] = np.inf
    cost[1, 17, 15] = np.nan
    value, gradient = value_and_alignment(cost, gamma=10.0, backend=backend, **MIXES[mix])
    assert value.isnan().tolist() == [False, True]
    assert gradient[1].isnan().any()
    assert gradient[0].isfinite().all()
    assert not gradient[cost == np.inf].any()


LENGTHS = {"lengths_x": [70, 33, 1, 0, 40], "lengths_y": [41, 66, 66, 5, 0]}


def _padded(t, lengths, filling):
    t = t.clone()
    for k, n in enumerate(lengths):
        t[k, n:] = filling
    return t


@pytest.mark.sweep
@pytest.mark.parametrize("mix", MIXES)
@backends()
def test_padding_and_the_batch_around_never_matter(backend, mix):
    x, y = randn(5, 70, 3, seed=1), randn(5, 66, 3, seed=2)
    gammas, bands = torch.tensor([0.2, 0.3, 1.0, 0.1, 0.1]), [4, 60, 2, 3, 4]
    options = {"backend": backend, **MIXES[mix]}
    results = []
    for filling in (0.0, float("inf"), float("nan")):
        a = _padded(x, LENGTHS["lengths_x"], filling)
        b = _padded(y, LENGTHS["lengths_y"], filling)
        results.append(value_and_grads(a, b, gamma=gammas, bandwidth=bands, **options, **LENGTHS))
    for value, dx, dy in results:
        assert value.isfinite().all()
        assert torch.equal(value[3:], torch.zeros(2))
        assert torch.equal(dx, _padded(dx, [70, 33, 1, 0, 0], 0.0))
        assert torch.equal(dy, _padded(dy, [41, 66, 66, 0, 0], 0.0))
        for got, first in zip((value, dx, dy), results[0], strict=True):
            assert torch.equal(got, first)
    value, dx, dy = results[0]
    for k in range(3):
        n, m = LENGTHS["lengths_x"][k], LENGTHS["lengths_y"][k]
        pair = {"gamma": gammas[k], "bandwidth": bands[k]}
        alone = value_and_grads(x[k : k + 1, :n], y[k : k + 1, :m], **pair, **options)
        for got, want in zip(alone, (value[k], dx[k, :n], dy[k, :m]), strict=True):
            assert torch.equal(got[0], want)


@pytest.mark.parametrize("kind", ["embeddings", "costs"])
@backends()
def test_one_gamma_and_band_of_all_pairs_are_those_of_each(backend, kind):
    x, y = randn(3, 40, 4, seed=5), randn(3, 50, 4, seed=6)
    each = {"gamma": torch.full((3,), 0.25), "bandwidth": torch.full((3,), 4)}
    run = value_and_grads
    if kind == "costs":
        run, x, y = value_and_alignment, torch.cdist(x, y).square(), None
    given = (x,) if y is None else (x, y)
    want = run(*given, gamma=0.25, bandwidth=4, backend=backend)
    for gamma in (each["gamma"], torch.tensor(0.25)):
        got = run(*given, gamma=gamma, bandwidth=each["bandwidth"], backend=backend)
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b, rtol=2e-6, atol=1e-7)


@backends()
def test_what_the_host_does_not_read_is_nan_for_its_own_pair_alone(backend, monkeypatch):
    """On a GPU, and while torch.compile traces, no value of a tensor is read."""
    monkeypatch.setattr(per_pair, "_readable", lambda value: False)
    x, y = randn(4, 20, 3, seed=19), randn(4, 25, 3, seed=20)
    gamma = torch.tensor([0.5, -1.0, 0.0, np.inf])
    for given in ((x, y), (torch.cdist(x, y),)):
        call = fastseq.soft_dtw if len(given) == 2 else fastseq.soft_dtw_from_cost
        value = call(*given, gamma=gamma, bandwidth=[-3, 2, 2, 2], backend=backend)
        assert value.isnan().tolist() == [False, True, True, True]
        none = call(*(t[0] for t in given), gamma=0.5, bandwidth=0, backend=backend)
        assert torch.equal(value[0], none) or backend == "reference"
        assert torch.allclose(value[0], none)


@backends()
def test_gammas_changed_in_place_after_the_call_do_not_matter(backend):
    x, y = randn(2, 20, 3, seed=13).requires_grad_(), randn(2, 18, 3, seed=14)
    gamma, bands = torch.tensor([0.5, 2.0]).double(), torch.tensor([3, 9])
    value = fastseq.soft_dtw(x, y, gamma=gamma, bandwidth=bands, backend=backend)
    (want,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    gamma.fill_(7), bands.zero_()
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], want)


@backends()
def test_alignment_is_the_gradient_of_the_costs(backend):
    x, y = randn(2, 20, 3, seed=7), randn(2, 33, 3, seed=8)
    options = {"gamma": torch.tensor([0.5, 5.0]), "bandwidth": [9, 30], "backend": backend}
    for mix in MIXES.values():
        cost = (x[:, :, None] - y[:, None]).double().square().sum(-1)
        want = value_and_alignment(cost, **options, **mix)[1]
        got = fastseq.soft_dtw_alignment(x, y, **options, **mix)
        assert relative(got, want) < GRADIENT
        left_out = (got.sum(1) < 0.5).any().item()
        assert left_out == ("begin" in mix or "end" in mix)


@pytest.mark.sweep
@pytest.mark.parametrize("gamma", [0.1, 0.01])
@pytest.mark.parametrize("mix", MIXES)
@backends(BACKENDS)
def test_gradient_in_float32_keeps_its_digits(backend, mix, gamma):
    x, y = (
        torch.nn.functional.normalize(randn(1, frames, 128, seed=seed), dim=-1)
        for frames, seed in ((200, 12), (480, 13))
    )
    options = {"gamma": gamma, **MIXES[mix]}
    cost = torch.tensor(squared(x[0], y[0]))
    want, expected = value_and_alignment(cost, **options)
    exact = embedding_gradients(x[0], y[0], expected.numpy())
    # At 0.01 the rounding of x - y and of the costs may change the gradient by 1e-5, even if all
    # else is exact.
    cost = (x[0, :, None] - y[0]).double().square().sum(-1).float().double()
    _, expected = value_and_alignment(cost, **options)
    rounded = embedding_gradients(x[0], y[0], expected.numpy())
    value, *grads = value_and_grads(x, y, backend=backend, **options)
    assert value.item() == pytest.approx(want.item(), rel=VALUE)
    for got, wanted, at_best in zip(grads, exact, rounded, strict=True):
        assert relative(got[0], wanted) < max(GRADIENT, 2 * relative(at_best, wanted))


@backends(BACKENDS)
def test_two_ends_that_are_far_apart_share_the_value(backend):
    """Between them R grows by hundreds of gamma, and the second match needs its last digits."""
    x = randn(1, 30, 8, seed=15)
    noise = randn(1, 500, 8, seed=16)
    y = torch.cat([noise[:, :100], x + 0.01, noise[:, 100:400], x, noise[:, 400:]], 1)
    options = {"gamma": 0.3, "begin": "free", "end": "free"}
    want, wx, wy = value_and_grads(x.double(), y.double(), backend="reference", **options)
    expected = fastseq.soft_dtw_alignment(x, y, backend="reference", **options)[0].sum(0)
    assert expected[100:130].sum() > 10
    assert expected[430:460].sum() > 10
    value, dx, dy = value_and_grads(x, y, backend=backend, **options)
    assert value.item() == pytest.approx(want.item(), rel=VALUE)
    assert relative(dx, wx) < GRADIENT
    assert relative(dy, wy) < GRADIENT


@backends()
def test_finds_the_part_of_y_that_is_x(backend):
    y = randn(1, 90, 4, seed=17)
    x = y[:, 31:55]
    options = {"gamma": 0.01, "begin": "free", "end": "free", "backend": backend}
    assert abs(fastseq.soft_dtw(x, y, **options).item()) < 0.01
    expected = fastseq.soft_dtw_alignment(x, y, **options)[0]
    assert torch.allclose(expected[:, 31:55], torch.eye(24), atol=1e-3)
    assert expected[:, :31].sum() + expected[:, 55:].sum() < 1e-3


@backends()
def test_a_large_penalty_leaves_the_diagonal_alone(backend):
    cost = randn(1, 70, 70, seed=18).double()
    value, expected = value_and_alignment(cost, warp_penalty=1e6, backend=backend)
    assert value.item() == pytest.approx(cost[0].trace().item(), rel=1e-12)
    assert torch.equal(expected[0], torch.eye(70).double())


@pytest.mark.parametrize("backend", ["reference", "numba", "torch"])
def test_a_band_wider_than_any_integer_is_none(backend):
    x, y = torch.randn(1, 9, 3), torch.randn(1, 12, 3)
    for bandwidth in (2**31, 2**63 - 1, 2**70):
        got = fastseq.soft_dtw(x, y, bandwidth=bandwidth, backend=backend)
        assert torch.equal(got, fastseq.soft_dtw(x, y, backend=backend))
