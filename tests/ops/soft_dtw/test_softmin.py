"""The soft minima "prob" and "sparse" beside "logsumexp"."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastseq
from ops.soft_dtw.cases import (
    BACKENDS,
    GRADIENT,
    VALUE,
    backends,
    embedding_gradients,
    randn,
    relative,
    squared,
    value_and_alignment,
    value_and_grads,
)

INF, NAN = float("inf"), float("nan")
KINDS = ("logsumexp", "prob", "sparse")
kinds = pytest.mark.parametrize("kind", KINDS)
rare = pytest.mark.parametrize("kind", KINDS[1:])
MIXES = {
    "plain": {},
    "band": {"bandwidth": 3},
    "penalty": {"warp_penalty": 0.3},
    "per pair": {
        "gamma": torch.tensor([0.1, 2.0, 0.7], dtype=torch.float64),
        "bandwidth": [40, 9, 2],
        "warp_penalty": 0.1,
    },
}
mixes = pytest.mark.parametrize(
    "mix",
    [
        "plain",
        "per pair",
        *(pytest.param(mix, marks=pytest.mark.sweep) for mix in ("band", "penalty")),
    ],
)
# Around the strips and blocks of 64, with a pair of a single row.
LENGTHS = {"lengths_x": [67, 33, 1], "lengths_y": [41, 65, 66]}


def prob(r, gamma):
    weights = [math.exp((min(r) - v) / gamma) for v in r]
    return sum(w * v for w, v in zip(weights, r, strict=True) if w) / sum(weights)


def sparse(r, gamma):
    """The least over all sets of entries: on a set, r_k + gamma q_k is the same for all."""
    best = INF
    for chosen in range(1, 1 << len(r)):
        some = [v for k, v in enumerate(r) if chosen >> k & 1 and v < INF]
        if not some:
            continue
        level = (sum(some) + gamma) / len(some)
        q = [(level - v) / gamma for v in some]
        if min(q) >= 0:
            value = sum(a * v - gamma / 2 * a * (1 - a) for a, v in zip(q, some, strict=True))
            best = min(best, value)
    return best


def logsumexp(r, gamma):
    return min(r) - gamma * math.log(sum(math.exp((min(r) - v) / gamma) for v in r))


SOFT = {"logsumexp": logsumexp, "prob": prob, "sparse": sparse}


def by_cells(cost, gamma, kind, penalty=0.0):
    """The value, cell after cell, with infinity around the matrix as AE2 and GTA have it."""
    n, m = cost.shape
    r = [[INF] * (m + 1) for _ in range(n + 1)]
    r[0][0] = 0.0
    for i in range(n):
        for j in range(m):
            before = [r[i][j], r[i][j + 1] + penalty, r[i + 1][j] + penalty]
            if min(before) < INF:
                r[i + 1][j + 1] = float(cost[i, j]) + SOFT[kind](before, gamma)
    return r[n][m]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 6), (7, 5)])
@kinds
@backends()
def test_equals_loops(backend, kind, shape):
    cost = randn(*shape, seed=1, dtype=torch.float64)
    for gamma, penalty in ((0.05, 0.0), (0.5, 0.4), (20.0, 0.0)):
        options = {"gamma": gamma, "warp_penalty": penalty, "softmin": kind, "backend": backend}
        want = by_cells(cost.numpy(), gamma, kind, penalty)
        got = fastseq.soft_dtw_from_cost(cost, **options).item()
        assert got == pytest.approx(want, rel=1e-12, abs=1e-12)


@backends()
def test_released_values_of_ae2(backend):
    """smoothDTW of AlignEgoExo's models/dtw_loss.py, "cosine", both gammas 0.1, with its softnings
    "dtw_minGamma" and "dtw_prob"."""
    generator = torch.Generator().manual_seed(0)
    for frames, *released in ((32, 116.1397, 116.2172), (64, 270.2760, 270.3965)):
        x, y = (
            F.normalize(torch.randn(1, frames, 128, generator=generator), dim=-1) for _ in range(2)
        )
        cost = -F.log_softmax(x @ y.mT / 0.1, dim=1)
        for kind, want in zip(("logsumexp", "prob"), released, strict=True):
            value = fastseq.soft_dtw_from_cost(cost, gamma=0.1, softmin=kind, backend=backend)
            assert value.item() == pytest.approx(want, abs=1e-4)
            assert value.item() == pytest.approx(by_cells(cost[0], 0.1, kind), rel=1e-6)


UPSTREAM = torch.tensor([1.0, -2.0, 0.5])


def _options(kind, mix):
    return {"gamma": 0.4, "softmin": kind, **LENGTHS, **MIXES[mix]}


@functools.cache  # shared by the backends
def _embeddings(kind, mix):
    x, y = randn(3, 67, 5, seed=2) / 3, randn(3, 66, 5, seed=3) / 3  # 3 scores within gamma
    options = {"backend": "reference", **_options(kind, mix)}
    return x, y, value_and_grads(x.double(), y.double(), UPSTREAM, **options)


@functools.cache
def _costs(kind, mix):
    cost = randn(3, 67, 66, seed=4).square()
    cost[0, 20, :30], cost[0, 20, 19:22] = INF, 0.5
    cost[0, 5:9, 3:11] = INF
    options = {"backend": "reference", **_options(kind, mix)}
    return cost, value_and_alignment(cost.double(), UPSTREAM, **options)


@mixes
@rare
@backends(BACKENDS)
def test_embeddings_equal_the_reference(backend, kind, mix):
    x, y, want = _embeddings(kind, mix)
    options = _options(kind, mix)
    got = value_and_grads(x.double(), y.double(), UPSTREAM, backend=backend, **options)
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 1e-11
        assert not a[b == 0].any()
    got = value_and_grads(x, y, UPSTREAM, backend=backend, **options)
    assert relative(got[0], want[0]) < VALUE
    assert relative(got[1], want[1]) < GRADIENT
    assert relative(got[2], want[2]) < GRADIENT


@mixes
@rare
@backends(BACKENDS)
def test_costs_equal_the_reference(backend, kind, mix):
    """The first pair has a wall with two gates, and the second has finite costs only."""
    cost, want = _costs(kind, mix)
    options = _options(kind, mix)
    assert want[0].isfinite().all()
    got = value_and_alignment(cost.double(), UPSTREAM, backend=backend, **options)
    assert relative(got[0], want[0]) < 1e-13
    assert relative(got[1], want[1]) < 1e-11
    assert not got[1][cost == INF].any()
    got = value_and_alignment(cost, UPSTREAM, backend=backend, **options)
    assert relative(got[0], want[0]) < VALUE
    assert relative(got[1], want[1]) < GRADIENT


@pytest.mark.sweep
@rare
@backends()
def test_gradcheck(backend, kind):
    x = randn(2, 4, 2, seed=5, dtype=torch.float64).requires_grad_()
    y = randn(2, 6, 2, seed=6, dtype=torch.float64).requires_grad_()

    def call(a, b):
        options = {"gamma": 0.6, "warp_penalty": 0.1, "lengths_y": [5, 6], "softmin": kind}
        return fastseq.soft_dtw(a, b, backend=backend, **options)

    assert torch.autograd.gradcheck(call, (x, y))
    if backend == "reference":
        assert torch.autograd.gradgradcheck(call, (x, y), fast_mode=True)


@kinds
@backends()
def test_towards_gamma_0_is_hard_dtw(backend, kind):
    x, y = randn(1, 20, 3, seed=7).double(), randn(1, 25, 3, seed=8).double()
    path, hard = fastseq.dtw_path(x[0], y[0])
    options = {"gamma": 1e-4, "softmin": kind, "backend": backend}
    assert fastseq.soft_dtw(x, y, **options).item() == pytest.approx(hard, rel=1e-6)
    on_path = torch.zeros(20, 25, dtype=torch.float64)
    on_path[path[:, 0], path[:, 1]] = 1
    assert relative(fastseq.soft_dtw_alignment(x, y, **options)[0], on_path) < 1e-9


def test_logsumexp_and_sparse_are_lower_bounds_of_hard_dtw_and_prob_an_upper_one():
    x, y = randn(1, 20, 3, seed=7).double(), randn(1, 25, 3, seed=8).double()
    hard = fastseq.dtw_path(x[0], y[0])[1]
    low, high, middle = (fastseq.soft_dtw(x, y, softmin=kind) for kind in KINDS)
    assert low < middle < hard < high


@kinds
@backends()
def test_a_penalty_is_a_shift_of_all_costs(backend, kind):
    """A step straight ahead crosses one anti-diagonal and a diagonal step two, so on every path the
    cells times 2 w less the penalties w add up to w (T + S). It needs softmin(r + a) = a + softmin
    of r, which all three have."""
    cost = randn(3, 67, 66, seed=9, dtype=torch.float64)
    options = {"gamma": 0.4, "softmin": kind, "backend": backend}
    want, expected = value_and_alignment(cost, **options)
    got, shifted = value_and_alignment(cost - 2 * 0.35, warp_penalty=0.35, **options)
    assert torch.allclose(got, want - 0.35 * (67 + 66), rtol=0, atol=1e-10)
    assert torch.allclose(shifted, expected, rtol=0, atol=1e-10)


@backends()
def test_the_sparse_alignment_is_mostly_0(backend):
    x, y = randn(1, 70, 8, seed=10), randn(1, 90, 8, seed=11)
    expected = fastseq.soft_dtw_alignment(x, y, gamma=1.0, softmin="sparse", backend=backend)[0]
    assert expected.count_nonzero() < 0.1 * expected.numel()
    assert (expected >= 0).all()
    assert (expected.sum(0) > 1 - 1e-5).all()
    assert (expected.sum(1) > 1 - 1e-5).all()


@backends()
def test_prob_has_negative_shares_that_sum_to_1(backend):
    cost = randn(40, 40, seed=12, dtype=torch.float64).square()
    options = {"gamma": 0.5, "softmin": "prob", "backend": backend}
    expected = value_and_alignment(cost, **options)[1]
    assert expected.min() < -0.01
    # Each path uses both corners, and none creates or loses flux between them.
    assert expected[0, 0].item() == pytest.approx(1, abs=1e-12)
    assert expected[-1, -1].item() == 1


@rare
@backends()
def test_nan_and_infinities(backend, kind):
    clean = randn(4, 20, 30, seed=13).square()
    clean[:3, 8:12, 10:20] = INF
    clean[2, 5] = INF  # no path
    for bad in (NAN, -INF):
        cost = clean.clone()
        cost[1, 3, 3] = bad
        options = {"gamma": 0.3, "softmin": kind, "backend": backend}
        value, gradient = value_and_alignment(cost, **options)
        assert value.isnan().tolist() == [False, True, False, False]
        assert value[2] == INF
        assert gradient[1].isnan().any()
        assert not gradient[2].any()
        assert gradient[[0, 3]].isfinite().all()
        assert not gradient[cost == INF].any()


@rare
@backends()
def test_nan_in_a_real_frame_is_seen_and_padding_is_not(backend, kind):
    x, y = randn(2, 70, 3, seed=14), randn(2, 66, 3, seed=15)
    x[0, 35], x[1, 50:] = NAN, NAN
    lengths = {"lengths_x": [70, 50], "softmin": kind, "backend": backend}
    value, dx, dy = value_and_grads(x, y, gamma=0.3, **lengths)
    assert value.isnan().tolist() == [True, False]
    assert dx[0].isnan().any()
    assert dx[1].isfinite().all()
    assert dy[1].isfinite().all()
    assert not dx[1, 50:].any()


def wavefront(cost, gamma, kind):
    """Plain PyTorch and autograd in the dtype of ``cost`` (T, S): R itself by anti-diagonals."""
    n, m = cost.shape
    large = torch.finfo(cost.dtype).max
    nothing = cost.new_full((n + 1,), large)
    before, last = nothing, torch.cat([nothing[:1], cost[0, :1], nothing[2:]])
    for k in range(1, n + m - 1):
        first, stop = max(0, k - m + 1), min(n, k + 1)
        r = torch.stack([before[first:stop], last[first:stop], last[first + 1 : stop + 1]])
        a = -(r - r.amin(0).detach()) / gamma
        if kind == "prob":
            q = a.softmax(0)
            soft = (q * r).sum(0)
        else:
            ordered = a.sort(0, descending=True).values.clamp(min=-1e9).cumsum(0)
            t = ((ordered - 1) / torch.arange(1, 4)[:, None]).amax(0)
            q = (a - t).clamp(min=0)
            soft = (q * r).sum(0) - gamma / 2 * (q * (1 - q)).sum(0)
        i = torch.arange(first, stop)
        here = cost[i, k - i] + soft
        before, last = last, F.pad(here, (first + 1, n - stop), value=large)
    return last[-1]


@pytest.mark.parametrize("gamma", [0.1, 0.01])
@rare
@backends(BACKENDS)
def test_gradient_in_float32_keeps_its_digits(backend, kind, gamma):
    x, y = (F.normalize(randn(1, 110, 64, seed=seed), dim=-1) for seed in (16, 17))
    options = {"gamma": gamma, "softmin": kind}
    # In float64, compared with the reference above.
    cost = torch.tensor(squared(x[0], y[0]))
    want, expected = value_and_alignment(cost, backend="torch", **options)
    exact = embedding_gradients(x[0], y[0], expected.numpy())

    at = x[0].clone().requires_grad_(), y[0].clone().requires_grad_()
    cost = (at[0][:, None] - at[1]).square().sum(-1)
    plain = torch.autograd.grad(wavefront(cost, gamma, kind), at)

    value, *grads = value_and_grads(x, y, backend=backend, **options)
    assert value.item() == pytest.approx(want.item(), rel=VALUE)
    for got, wanted, simple in zip(grads, exact, plain, strict=True):
        assert relative(got[0], wanted) < max(GRADIENT, 2 * relative(simple, wanted))


def test_the_plain_recursion_equals_the_reference():
    cost = randn(9, 12, seed=18, dtype=torch.float64).square()
    for kind in KINDS[1:]:
        value, expected = value_and_alignment(cost, gamma=0.3, softmin=kind, backend="reference")
        at = cost.clone().requires_grad_()
        got = wavefront(at, 0.3, kind)
        assert got.item() == pytest.approx(value.item(), rel=1e-13)
        assert np.abs((torch.autograd.grad(got, at)[0] - expected).numpy()).max() < 1e-12


@pytest.mark.compile
@rare
@backends(BACKENDS)
def test_compiled_equals_eager(backend, kind):
    x, y = randn(2, 20, 3, seed=19), randn(2, 25, 3, seed=20)
    options = {"gamma": 0.3, "softmin": kind, "backend": backend}

    @torch.compile(fullgraph=True)
    def compiled(a, b):
        return fastseq.soft_dtw(a, b, **options)

    want = value_and_grads(x, y, **options)
    at = x.clone().requires_grad_()
    value = compiled(at, y)
    assert torch.equal(value, want[0])
    assert torch.equal(torch.autograd.grad(value.sum(), at)[0], want[1])
