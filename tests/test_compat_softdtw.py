"""compat.softdtw.SoftDTW computes what pytorch-softdtw-cuda's module defines."""

import math

import pytest
import torch

from fastseq.compat.softdtw import SoftDTW


def _released(cost, gamma, bandwidth):
    """R by the released recursion: cells with |i - j| > bandwidth > 0 are skipped."""
    n, m = cost.shape
    r = torch.full((n + 1, m + 1), math.inf).double()
    r[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            if abs(i - j) > bandwidth > 0:
                continue
            steps = torch.stack([r[i - 1, j - 1], r[i - 1, j], r[i, j - 1]])
            r[i, j] = cost[i - 1, j - 1] - gamma * torch.logsumexp(-steps / gamma, 0)
    return r[n, m]


def _squared(x, y):
    return (x[:, :, None] - y[:, None]).square().sum(-1)


def _manhattan(x, y):
    return torch.cdist(x, y, p=1)


def _inputs(n, m, dtype=torch.float64):
    g = torch.Generator().manual_seed(n + m)
    x, y = (torch.randn(2, t, 3, generator=g, dtype=torch.float64) for t in (n, m))
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("dist_func", [None, _manhattan])
@pytest.mark.parametrize("bandwidth", [None, 0, 2, 3.7, 9])
@pytest.mark.parametrize(("n", "m"), [(8, 8), (8, 10), (11, 9)])
def test_values_and_gradients(n, m, bandwidth, dist_func, backend):
    x, y = _inputs(n, m)
    got = SoftDTW(True, 0.3, bandwidth=bandwidth, dist_func=dist_func, backend=backend)(x, y)
    cost = (dist_func or _squared)(x, y)
    want = torch.stack([_released(c, 0.3, bandwidth or 0) for c in cost])
    assert torch.allclose(got, want, rtol=1e-12)
    for a, b in zip(
        torch.autograd.grad(got.sum(), (x, y)),
        torch.autograd.grad(_banded(cost, 0.3, bandwidth).sum(), (x, y)),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def _banded(cost, gamma, bandwidth):
    """The sum over paths, with infinite costs outside the band; differentiable without NaN."""
    n, m = cost.shape[1:]
    limit = bandwidth or n + m
    r = {(0, 0): cost[:, 0, 0]}
    for i in range(n):
        for j in range(m):
            before = [r[c] for c in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if c in r]
            if (i, j) != (0, 0) and abs(i - j) <= limit:
                soft = -gamma * torch.logsumexp(-torch.stack(before) / gamma, 0)
                r[i, j] = cost[:, i, j] + soft
    return r[n - 1, m - 1]


def test_normalize():
    x, y = _inputs(7, 9)
    got = SoftDTW(False, 0.5, normalize=True)(x, y)
    parts = [[_released(c, 0.5, 0) for c in _squared(a, b)] for a, b in ((x, y), (x, x), (y, y))]
    xy, xx, yy = (torch.stack(p) for p in parts)
    assert torch.allclose(got, xy - (xx + yy) / 2, rtol=1e-12)


def test_defaults_and_positional_arguments():
    x, y = _inputs(7, 9, torch.float32)
    assert torch.equal(SoftDTW(True)(x, y), SoftDTW(False, 1.0, False, None, None)(x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_band_in_lower_precision(dtype):
    x, y = _inputs(8, 10, dtype)
    got = SoftDTW(True, 0.01, bandwidth=3)(x, y)
    want = [_released(c, 0.01, 3) for c in _squared(x.double(), y.double())]
    assert torch.allclose(got.double(), torch.stack(want), rtol=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), (x, y)))


def test_a_band_without_a_path_is_an_error():
    """The released module returns inf, and gradients of NaN."""
    x, y = _inputs(8, 11)
    with pytest.raises(
        ValueError, match=r"\|i - j\| <= 2 when X has 8 frames and Y 11.*at least 3"
    ):
        SoftDTW(True, bandwidth=2)(x, y)
    assert SoftDTW(True, bandwidth=3)(x, y).isfinite().all()


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"SoftDTW: X and Y must have shape"):
        SoftDTW(True)(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="SoftDTW: X and Y must agree"):
        SoftDTW(True)(torch.zeros(1, 3, 2), torch.zeros(2, 3, 2))
