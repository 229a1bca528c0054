"""The arithmetic of the CUDA kernels of Soft-DTW, run on the host. Flags, memory ordering and the
hardware's exp2 and log2 can be tested only on a GPU.
"""

import itertools
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseq.ops.soft_dtw.options import SoftDTWOptions, band_limits
from fastseq.ops.soft_dtw.reference import soft_dtw_reference
from ops.soft_dtw.host import HostBackend, compile_library

pytestmark = pytest.mark.process

ORACLE = Path(
    os.environ.get("FASTSEQ_ORACLE", Path(__file__).parents[4] / "shared/oracle")
).joinpath("soft_dtw")
CASES = sorted(path.stem for path in ORACLE.glob("*.npz"))
F32, F64 = torch.float32, torch.float64


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    return HostBackend(compile_library(compiler, tmp_path_factory.mktemp("soft_dtw"), "host"))


def frames(*shape, dtype=F64, seed=0, unit=False):
    z = torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    if unit:
        z = z / z.norm(dim=-1, keepdim=True)
    return z.to(dtype)


def run(
    host,
    x,
    y,
    opts,
    lengths_x=None,
    lengths_y=None,
    grad=None,
    gammas=None,
    bands=None,
    bias=None,
):
    """Value, dx, dy, and dbias with a bias; or value and dcost when y is None."""
    args = (x, y, None) if y is not None else (None, None, x)
    args = *args, bias, lengths_x, lengths_y, gammas, bands
    value, *saved = host.forward(*args, opts, needs=[True] * 4)
    grad = torch.ones_like(value) if grad is None else grad.to(value.dtype)
    return value, *(t for t in host.backward(grad, *args, *saved, opts=opts) if t is not None)


def truth(
    x,
    y,
    opts,
    lengths_x=None,
    lengths_y=None,
    grad=None,
    gammas=None,
    bands=None,
    bias=None,
):
    given = [None, None, x, None] if y is None else [x, y, None, bias]
    inputs = [t if t is None else t.double().requires_grad_() for t in given]
    value = soft_dtw_reference(*inputs, lengths_x, lengths_y, gammas, bands, opts)
    grad = torch.ones_like(value) if grad is None else grad.double()
    leaves = [t for t in inputs if t is not None]
    return value.detach(), *torch.autograd.grad(value, leaves, grad)


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def worst(a, b):
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def by_all_paths(cost, gamma, bandwidth=None):
    """Value and expected alignment from every path of one small matrix."""
    n, m = cost.shape
    low, high = band_limits(n, m, bandwidth)
    paths = []

    def walk(path):
        i, j = path[-1]
        if (i, j) == (n - 1, m - 1):
            paths.append(path)
        for a, b in ((i + 1, j + 1), (i + 1, j), (i, j + 1)):
            if a < n and b < m and low <= b - a <= high:
                walk([*path, (a, b)])

    walk([(0, 0)])
    of = cost.tolist()
    sums = torch.tensor([sum(of[i][j] for i, j in path) for path in paths], dtype=F64)
    share = torch.softmax(-sums / gamma, 0).tolist()
    expected = [[0.0] * m for _ in range(n)]
    for weight, path in zip(share, paths, strict=True):
        for i, j in path:
            expected[i][j] += weight
    return -gamma * torch.logsumexp(-sums / gamma, 0), torch.tensor(expected, dtype=F64)


@pytest.mark.parametrize("bandwidth", [None, 0, 1, 2])
def test_all_paths(host, bandwidth):
    for n, m in itertools.product((1, 2, 3, 5), (1, 2, 4, 5)):
        cost = frames(1, n, m, seed=10 * n + m).abs()
        for gamma in (0.01, 1.0, 50.0):
            value, expected = run(host, cost, None, SoftDTWOptions(gamma, bandwidth))
            want_value, want = by_all_paths(cost[0], gamma, bandwidth)
            assert math.isclose(value.item(), want_value.item(), rel_tol=1e-13, abs_tol=1e-13)
            assert worst(expected[0], want) <= 1e-13


@pytest.mark.skipif(not CASES, reason="the reference cases are not here (FASTSEQ_ORACLE)")
@pytest.mark.parametrize("dtype", [F32, F64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES)
def test_reference_cases(host, case, dtype):
    data = {
        k: torch.from_numpy(np.atleast_1d(v)) for k, v in np.load(ORACLE / f"{case}.npz").items()
    }
    single = dtype == F32
    value_rel, e_abs, grad_rel = (5e-7, 2e-5, 1e-5) if single else (1e-13, 1e-12, 1e-12)
    if case.startswith("10_") and not single:
        e_abs = grad_rel = 1e-9

    def close(got, want):
        tolerance = value_rel if case.startswith("13_") else value_rel * want.abs()
        assert ((got.double() - want).abs() <= tolerance).all()

    def opts(gamma):
        return SoftDTWOptions(float(gamma), None)

    def embeddings(keys, gamma):
        x, y = (data[k].to(dtype).reshape(-1, *data[k].shape[-2:]) for k in keys)
        return run(host, x, y, opts(gamma), data.get("len_x"), data.get("len_y"))

    if case.startswith("22_"):
        for gamma in ("0.1", "1.0", "10.0"):
            xy, xx, yy = (embeddings(k, gamma) for k in ("XY", "XX", "YY"))
            close(xy[0] - (xx[0] + yy[0]) / 2, data[f"div_sq_value_g{gamma}"])
            got = xy[1] - (xx[1] + xx[2]) / 2
            assert relative(got, data[f"div_sq_grad_X_g{gamma}"][None]) <= grad_rel
        return
    if case.startswith("25_"):
        for name, want in data.items():
            if name.startswith("soft_g"):
                close(embeddings("XY", name.removeprefix("soft_g"))[0], want)
        return
    if "D" in data:
        value, e = run(host, data["D"].to(dtype)[None], None, opts(data["gamma"]))
        close(value, data["value"])
        assert worst(e[0], data["grad_D"]) <= e_abs
    if "X" in data:
        value, dx, dy = embeddings("XY", data["gamma"])
        close(value, data["value"])
        assert relative(dx, data["grad_X"].reshape(dx.shape)) <= grad_rel
        assert relative(dy, data["grad_Y"].reshape(dy.shape)) <= grad_rel


SHAPES = [(1, 1), (1, 40), (40, 1), (2, 31), (31, 32), (32, 33), (33, 64), (64, 63), (97, 130)]


@pytest.mark.parametrize("bandwidth", [None, 0, 1, 7, 31, 32, 33, 1000])
def test_against_the_definition(host, bandwidth):
    for n, m in [*SHAPES, (130, 65), (160, 160)]:
        x, y = frames(2, n, 5, seed=n), frames(2, m, 5, seed=m + 1)
        opts, grad = SoftDTWOptions(0.7, bandwidth), torch.tensor([-2.0, 0.5])
        got, want = (f(*a, x, y, opts, grad=grad) for f, a in ((run, [host]), (truth, [])))
        for a, b in zip(got, want, strict=True):
            assert relative(a, b) <= 1e-12, (n, m)
        got = run(host, *(z.float() for z in (x, y)), opts, grad=grad)
        for a, b in zip(got, want, strict=True):
            assert relative(a, b) <= 3e-6, (n, m)


@pytest.mark.parametrize("given", ["embeddings", "cost"])
@pytest.mark.parametrize("penalty", [0.0, 0.8])
@pytest.mark.parametrize(("begin", "end"), [(True, False), (False, True), (True, True)])
def test_free_ends_and_penalty(host, begin, end, penalty, given):
    """Includes a free end whose row begins a strip, and a gamma and a band per pair."""
    gammas, bands = torch.tensor([0.3, 2.0], dtype=F64), torch.tensor([500, 6])
    for n, m in [(1, 1), (1, 40), (32, 70), (33, 33), (64, 50), (70, 100)]:
        x, y = frames(2, n, 5, seed=n), frames(2, m, 5, seed=m + 1)
        if given == "cost":
            x, y = (x[:, :, None] - y[:, None]).square().sum(-1), None
        opts = SoftDTWOptions(1.0, None, begin, end, penalty)
        call = {"lengths_x": torch.tensor([n, max(1, n - 3)]), "gammas": gammas, "bands": bands}
        got, want = run(host, x, y, opts, **call), truth(x, y, opts, **call)
        for a, b in zip(got, want, strict=True):
            assert relative(a, b) <= 1e-11, (n, m)
        # R itself in float32 would lose more digits: a free end compares distant cells.
        single = run(host, x.float(), None if y is None else y.float(), opts, **call)
        for a, b in zip(single, want, strict=True):
            assert relative(a, b) <= 3e-5, (n, m)


@pytest.mark.parametrize("given", ["embeddings", "cost"])
@pytest.mark.parametrize("bandwidth", [None, 3, 40])
def test_ragged_batch(host, bandwidth, given):
    """Padding of NaN has no effect, lengths are clamped, and a sequence alone returns the same
    bits.
    """
    lengths_x = torch.tensor([70, 1, 32, 0, 33, 64, -3, 5, 50])
    lengths_y = torch.tensor([1000, 45, 33, 7, 0, 31, 9, 45, 1])
    n, m = 70, 45
    opts = SoftDTWOptions(0.3, bandwidth)
    real_x, real_y = (
        torch.arange(t) < length[:, None] for t, length in ((n, lengths_x), (m, lengths_y))
    )
    if given == "embeddings":
        clean = frames(9, n, 37, seed=1), frames(9, m, 37, seed=2)
        real = real_x[..., None], real_y[..., None]
    else:
        clean = (frames(9, n, m, seed=1).abs(), None)
        real = (real_x[:, :, None] & real_y[:, None], None)
    nan = [z if z is None else z.where(r, torch.nan) for z, r in zip(clean, real, strict=True)]
    got = run(host, *nan, opts, lengths_x, lengths_y)
    want = truth(*clean, opts, lengths_x.clamp(0, n), lengths_y.clamp(0, m))
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) <= 1e-11
        assert not a[[3, 4, 6]].any()
    for grad, r in zip(got[1:], real, strict=False):
        assert not grad[~r.expand_as(grad)].any()
    for b, (end_x, end_y) in enumerate(
        zip(lengths_x.clamp(0, n), lengths_y.clamp(0, m), strict=True)
    ):
        if end_x and end_y:
            parts = (end_x, end_y) if given == "embeddings" else (end_x, None)
            one = [z if z is None else z[b : b + 1, :t] for z, t in zip(clean, parts, strict=True)]
            if given == "cost":
                one[0] = one[0][..., :end_y]
            alone = run(host, *(z if z is None else z.contiguous() for z in one), opts)
            assert torch.equal(alone[0][0], got[0][b])
            for a, c in zip(alone[1:], got[1:], strict=True):
                assert torch.equal(a[0], c[b][: a.shape[1]][..., : a.shape[2]])


@pytest.mark.parametrize(("frames_per_side", "gamma"), [(480, 0.1), (480, 0.01), (1500, 0.1)])
def test_error_of_single_precision(host, frames_per_side, gamma):
    """The relative L2 error of the gradient is below 1e-5; with a stored R it is 1e-3 and more."""
    x, y = (frames(1, frames_per_side, 128, seed=s, unit=True).float() for s in (1, 2))
    opts = SoftDTWOptions(gamma, None)
    got = run(host, x, y, opts)
    want = run(host, x.double(), y.double(), opts)
    assert relative(got[0], want[0]) <= 5e-7
    assert relative(got[1], want[1]) <= 1e-5
    assert relative(got[2], want[2]) <= 1e-5


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_frames_that_drift(host, offset):
    """The centre is that of a strip, not that of all strips after it."""
    x, y = (frames(1, 64, 16, seed=seed).float() for seed in (1, 2))
    x[:, 32:] += offset
    y[:, 32:] += offset
    opts = SoftDTWOptions(1.0, 5)
    for a, b in zip(run(host, x, y, opts), truth(x, y, opts), strict=True):
        assert relative(a, b) <= 3e-6


def test_frames_that_meet(host):
    """Costs far below the norms are formed by differences: a sequence has value 0 with itself,
    except for the contribution of other paths, and a smooth sequence keeps the digits of its
    gradient.
    """
    x = frames(1, 200, 64, seed=5).cumsum(1).float()  # a random walk, in which neighbours are close
    y = (x + 0.01 * frames(1, 200, 64, seed=6)).float()
    opts = SoftDTWOptions(0.1, None)
    for other in (x, y):
        got = run(host, x, other.clone(), opts)
        want = truth(x, other, opts)
        assert worst(got[0], want[0]) <= 1e-5
        for a, b in zip(got[1:], want[1:], strict=True):
            assert worst(a, b) <= 1e-6 * float(x.norm(dim=-1).max())


@pytest.mark.parametrize("dtype", [F32, F64], ids=["fp32", "fp64"])
def test_large_common_offset(host, dtype):
    x, y = frames(1, 60, 16, seed=3), frames(1, 70, 16, seed=4)
    x, y = ((1024 * (z + 100)).round() / 1024 for z in (x, y))  # exact in float32
    got = run(host, x.to(dtype), y.to(dtype), SoftDTWOptions(0.1, None))
    want = truth(x - 100, y - 100, SoftDTWOptions(0.1, None))
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) <= (3e-6 if dtype == F32 else 1e-12)


def test_nan_in_a_real_frame_is_not_hidden(host):
    x, y = frames(2, 40, 4, seed=5), frames(2, 50, 4, seed=6)
    x[0, 20, 1] = torch.nan
    value, dx, dy = run(host, x, y, SoftDTWOptions(0.1, None))
    assert value[0].isnan()
    assert dx[0].isnan().any()
    assert dy[0].isnan().any()
    assert not any(t[1].isnan().any() for t in (value, dx, dy))


def test_nothing_is_kept_without_a_gradient(host):
    x, y = frames(1, 70, 4, seed=7), frames(1, 50, 4, seed=8)
    opts = SoftDTWOptions(0.1, None)
    args = x, y, *[None] * 6, opts
    value, *saved = host.forward(*args, needs=[False] * 4)
    assert saved == []
    assert torch.equal(value, host.forward(*args, needs=[True] * 4)[0])
