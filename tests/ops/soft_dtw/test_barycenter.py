"""soft_dtw_barycenter: its objective, also against tslearn; start, weights, errors."""

import pytest
import torch

import fastseq
from ops.soft_dtw.cases import BACKENDS, backends, randn, relative


def _bumps(count=5, frames=40, dtype=torch.float64):
    """(N, T, 2): a bump of height 3 at another time each, over noise."""
    t = torch.arange(frames)
    centres = torch.linspace(frames / 4, 3 * frames / 4, count)
    bump = 3 * torch.exp(-(((t - centres[:, None]) / 2) ** 2))
    x = torch.stack([bump, -bump], -1) + 0.1 * randn(count, frames, 2, seed=1)
    return x.to(dtype)


def _objective(z, x, weights=None, **options):
    values = fastseq.soft_dtw_cross(z[None].double(), x.double(), **options)[0]
    return (values.mean() if weights is None else (values * weights).sum()).item()


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@backends(BACKENDS)
def test_keeps_what_the_mean_levels(backend, gamma):
    x = _bumps()
    z = fastseq.soft_dtw_barycenter(x, gamma=gamma, max_iter=30, backend=backend)
    assert z.shape == (40, 2)
    assert x.mean(0)[:, 0].max() < 2 < 2.5 < z[:, 0].max()
    assert _objective(z, x, gamma=gamma) < _objective(x.mean(0), x, gamma=gamma) - 5


def test_a_minimum_has_no_slope():
    x = _bumps(3, 20)
    z = fastseq.soft_dtw_barycenter(x, gamma=1.0, max_iter=500, tol=1e-7).requires_grad_()
    (slope,) = torch.autograd.grad(fastseq.soft_dtw_cross(z[None], x).mean(), z)
    assert slope.abs().max() < 1e-5
    for k in range(5):
        nearby = z.detach() + 0.01 * randn(20, 2, seed=k).double()
        assert _objective(nearby, x) > _objective(z.detach(), x)


def test_float32_finds_the_same():
    x = _bumps()
    options = {"gamma": 1.0, "max_iter": 200, "tol": 1e-4}
    exact = fastseq.soft_dtw_barycenter(x, **options)
    for dtype in (torch.float32, torch.bfloat16):
        z = fastseq.soft_dtw_barycenter(x.to(dtype), **options)
        assert z.dtype == torch.float32
        assert relative(z, exact) < (1e-2 if dtype == torch.float32 else 5e-2)
    assert exact.dtype == torch.float64


def test_lists_lengths_and_weights():
    x = _bumps(4)
    lengths = [40, 25, 0, 33]
    padded = x.clone()
    for row, n in zip(padded, lengths, strict=True):
        row[n:] = torch.nan
    options = {"gamma": 0.5, "max_iter": 5}
    by_lengths = fastseq.soft_dtw_barycenter(padded, lengths=lengths, **options)
    ragged = [row[:n] for row, n in zip(x, lengths, strict=True)]
    assert torch.equal(by_lengths, fastseq.soft_dtw_barycenter(ragged, **options))
    without = fastseq.soft_dtw_barycenter([ragged[0], ragged[1], ragged[3]], **options)
    torch.testing.assert_close(by_lengths, without)
    # Twice the weight is the sequence twice; weight 0 is not there; the sum does not matter.
    weighted = fastseq.soft_dtw_barycenter(x[:3], [2.0, 1.0, 0.0], **options)
    twice = fastseq.soft_dtw_barycenter(x[[0, 0, 1]], **options)
    torch.testing.assert_close(weighted, twice)
    scaled = fastseq.soft_dtw_barycenter(x[:3], torch.tensor([20.0, 10.0, 0.0]), **options)
    torch.testing.assert_close(weighted, scaled)


def test_where_the_search_begins():
    x = _bumps(3)
    torch.testing.assert_close(fastseq.soft_dtw_barycenter(x, max_iter=0), x.mean(0))
    init = randn(7, 2, seed=3)
    got = fastseq.soft_dtw_barycenter(x, init=init, max_iter=0)
    assert torch.equal(got, init.double())
    # Ramps stay ramps when they are stretched.
    ramps = [torch.linspace(0, 1, n)[:, None] for n in (5, 9, 1)]
    start = fastseq.soft_dtw_barycenter(ramps[:2], length=4, max_iter=0)
    torch.testing.assert_close(start, torch.linspace(0, 1, 4)[:, None])
    assert fastseq.soft_dtw_barycenter(ramps).shape == (9, 1)
    assert fastseq.soft_dtw_barycenter(ramps, length=1, max_iter=3).shape == (1, 1)


@pytest.mark.parametrize(
    "options", [{"cost": "cosine", "gamma": 0.3}, {"bandwidth": 3}, {"warp_penalty": 0.5}]
)
def test_every_option_reaches_the_objective(options):
    x = _bumps(3, 20)
    slopes = []
    for case in (options, {}):
        z = fastseq.soft_dtw_barycenter(x, max_iter=500, **case).requires_grad_()
        value = fastseq.soft_dtw_cross(z[None], x, **options).mean()
        slopes.append(torch.autograd.grad(value, z)[0].abs().max())
    assert slopes[0] < 0.05 * slopes[1]


def test_no_gradient_whatever_the_mode():
    x = _bumps(2, 10).requires_grad_()
    want = fastseq.soft_dtw_barycenter(x, max_iter=3)
    assert not want.requires_grad
    with torch.no_grad():
        assert torch.equal(fastseq.soft_dtw_barycenter(x, max_iter=3), want)
    with torch.inference_mode():
        assert torch.equal(fastseq.soft_dtw_barycenter(x, max_iter=3), want)
    assert x.grad is None


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_not_worse_than_tslearn(gamma):
    barycenters = pytest.importorskip(
        "tslearn.barycenters", reason='needs tslearn: pip install "fastseq[bench]"'
    )
    x = _bumps()
    theirs = torch.as_tensor(barycenters.softdtw_barycenter(x.numpy(), gamma=gamma))
    ours = fastseq.soft_dtw_barycenter(x, gamma=gamma)
    here, there = (_objective(z, x, gamma=gamma) for z in (ours, theirs))
    assert here <= there + 1e-3 * abs(there)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": 3}, TypeError, r"a tensor or a list of tensors \(T, D\), got int"),
        ({"x": []}, TypeError, "got an empty list"),
        ({"x": [torch.zeros(3, 2), torch.zeros(3, 1)]}, ValueError, "with one D"),
        ({"x": [[1.0]]}, TypeError, r"x\[0\] must be a torch.Tensor, got list"),
        ({"x": torch.zeros(4, 3)}, ValueError, r"shape \(N, T, D\), or be a list"),
        ({"x": torch.full((2, 4, 3), torch.nan)}, ValueError, "NaN or infinity in a real frame"),
        ({"lengths": [0, 0]}, ValueError, "no real frame"),
        ({"lengths": [5, 4]}, ValueError, "lengths must lie between 0 and T = 4, got 5"),
        ({"x": [torch.zeros(4, 3)], "lengths": [4]}, ValueError, "but x is a list"),
        ({"weights": [1.0]}, ValueError, r"weights must have shape \(2,\)"),
        ({"weights": [1.0, -1.0]}, ValueError, "at least 0, got -1.0"),
        ({"weights": [0.0, 0.0]}, ValueError, "must not be 0 for all"),
        ({"weights": "ab"}, TypeError, "weights must be numbers, got 'ab'"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"length": 2.5}, TypeError, "length must be an integer, got float"),
        ({"length": 3, "init": torch.zeros(3, 3)}, ValueError, "length or init, not both"),
        ({"init": torch.zeros(3, 2)}, ValueError, r"init must have shape \(S, 3\)"),
        ({"init": torch.full((2, 3), torch.nan)}, ValueError, "init has NaN or infinity"),
        ({"max_iter": -1}, ValueError, "max_iter must be at least 0, got -1"),
        ({"tol": -1.0}, ValueError, "tol must be finite and at least 0"),
        ({"tol": 1e31}, ValueError, "tol must be at most 1e"),
        ({"gamma": 0}, ValueError, "soft_dtw_barycenter: gamma must be finite"),
        ({"cost": "l1"}, ValueError, "'sqeuclidean', 'cosine'"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.soft_dtw_barycenter(**{"x": torch.zeros(2, 4, 3), **change})


def test_weights_of_any_size_and_sequences_of_several_dtypes():
    x = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    want = fastseq.soft_dtw_barycenter(x, max_iter=3)
    torch.testing.assert_close(fastseq.soft_dtw_barycenter(x, [1e308] * 3, max_iter=3), want)
    mixed = [x[0].float(), x[1], x[2].half()]
    assert fastseq.soft_dtw_barycenter(mixed, max_iter=1).dtype == torch.float64
    assert fastseq.soft_dtw_barycenter(mixed[::-1], max_iter=1).dtype == torch.float64
