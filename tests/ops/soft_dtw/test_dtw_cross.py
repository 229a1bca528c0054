"""dtw_cross: the kernel, and the limit of soft-DTW, against dtw_path and all paths."""

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.soft_dtw import hard, hard_kernels
from ops.soft_dtw.cases import BACKENDS, all_paths, backends, in_band, randn, relative, squared

# Sizes around the tile of 8 rows, the block of 64 columns and the groups of 8 pairs.
SHAPES = [(1, 1, 1), (8, 8, 2), (9, 7, 8), (17, 64, 9), (16, 65, 16), (70, 130, 3), (130, 70, 19)]
OPTIONS = [
    {},
    {"bandwidth": 0},
    {"bandwidth": 5, "cost": "cosine"},
    {"begin": "free"},
    {"end": "free", "warp_penalty": 0.3},
    {"begin": "free", "end": "free", "bandwidth": 3},
    {"begin": "free", "end": "free", "warp_penalty": 2.0},
    {"warp_penalty": 0.3, "bandwidth": 2},
]


def _best(cost, begin="fixed", end="fixed", warp_penalty=0.0, bandwidth=None):
    """The lowest cost of all paths, by enumeration."""
    n, m = cost.shape
    starts = range(m) if begin == "free" else [0]
    ends = range(m) if end == "free" else [m - 1]
    least = np.inf
    for first in starts:
        for last in ends:
            for path in all_paths(n, last - first + 1) if last >= first else []:
                path = [(i, first + j) for i, j in path]
                if not in_band(path, n, m, bandwidth):
                    continue
                steps = np.diff(path, axis=0).sum(1)
                total = sum(cost[cell] for cell in path) + warp_penalty * (steps == 1).sum()
                least = min(least, total)
    return least


def _ragged(t, s, d, dtype):
    """Five and nine sequences with NaN in their padding, and their lengths."""
    x, y = randn(5, t, d, seed=1, dtype=dtype), randn(9, s, d, seed=2, dtype=dtype)
    rng = np.random.default_rng(t + s)
    lengths = [t, 0, *rng.integers(1, t + 1, 3)], [0, s, *rng.integers(1, s + 1, 7)]
    for z, real in zip((x, y), lengths, strict=True):
        for row, n in zip(z, real, strict=True):
            row[n:] = torch.nan
    return x, y, *(torch.tensor(n) for n in lengths)


@pytest.fixture
def by_limit(monkeypatch):
    """As on a GPU: calls use a backend of soft_dtw."""

    def use(backend):
        monkeypatch.setattr(hard, "_by_kernel", hard._by_limit)
        monkeypatch.setattr(hard, "_resolve", lambda *_: backend)

    return use


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"bandwidth": 1}, {"begin": "free"}, {"end": "free"}, {"warp_penalty": 0.7}),
        {"begin": "free", "end": "free", "warp_penalty": 0.5, "bandwidth": 2},
    ],
)
@pytest.mark.parametrize("by", ["kernel", *BACKENDS])
def test_all_paths(by, options, by_limit):
    if by != "kernel":
        by_limit(by)
    for t, s in [(1, 1), (1, 4), (4, 1), (5, 4), (4, 6), (6, 6)]:
        x, y = (randn(2, n, 2, seed=n, dtype=torch.float64) for n in (t, s))
        got = fastseq.dtw_cross(x, y + 0.1, **options)
        for a in range(2):
            for b in range(2):
                want = _best(squared(x[a], y[b] + 0.1), **options)
                assert got[a, b].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_dtw_path(shape, options):
    x, y, lengths_x, lengths_y = _ragged(*shape, torch.float64)
    lengths = {"lengths_x": lengths_x, "lengths_y": lengths_y}
    got = fastseq.dtw_cross(x, y, **lengths, **options)
    assert got.dtype == torch.float64
    want = torch.zeros(5, 9, dtype=torch.float64)
    for a, n in enumerate(lengths_x.tolist()):
        for b, m in enumerate(lengths_y.tolist()):
            if n and m:
                want[a, b] = fastseq.dtw_path(x[a, :n], y[b, :m], **options)[1]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    single = fastseq.dtw_cross(x.float(), y.float(), **lengths, **options)
    assert single.dtype == torch.float32
    # Each cost is rounded to some eps, and their sum once.
    torch.testing.assert_close(single.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
@pytest.mark.parametrize("options", OPTIONS)
@backends(BACKENDS)
def test_the_limit_of_soft_dtw_is_as_good(backend, options, scale, by_limit):
    x, y, lengths_x, lengths_y = _ragged(33, 40, 5, torch.float32)
    x, y = x * scale + 3 * scale, y * scale + 3 * scale  # far from the origin
    options = {"lengths_x": lengths_x, "lengths_y": lengths_y} | options
    if "warp_penalty" in options and options.get("cost") != "cosine":
        options["warp_penalty"] *= scale**2
    exact = fastseq.dtw_cross(x.double(), y.double(), **options)
    by_limit(backend)
    assert relative(fastseq.dtw_cross(x, y, **options), exact) < 1e-6
    assert relative(fastseq.dtw_cross(x.double(), y.double(), **options), exact) < 1e-13


@backends(BACKENDS)
def test_ties_do_not_count_twice(backend, by_limit):
    """With equal frames, all paths cost the same, or nothing."""
    x, y = torch.zeros(2, 50, 3), torch.zeros(3, 60, 3)
    y[1] = 1.0
    want = torch.tensor([0.0, 180.0, 0.0]).expand(2, 3)
    assert torch.equal(fastseq.dtw_cross(x, y), want)
    by_limit(backend)
    torch.testing.assert_close(fastseq.dtw_cross(x, y), want, rtol=1e-7, atol=1e-15)


def test_is_the_limit_of_soft_dtw_cross():
    x, y = randn(3, 30, 4, seed=5), randn(4, 25, 4, seed=6)
    soft = fastseq.soft_dtw_cross(x, y, gamma=1e-5)
    assert relative(soft, fastseq.dtw_cross(x, y)) < 1e-5


def test_masks_halves_and_what_is_not_contiguous():
    x, y = randn(3, 4, 30, seed=7).mT, randn(5, 25, 4, seed=8)
    valid_x, valid_y = randn(3, 30, seed=9) > 0, randn(5, 25, seed=10) > -0.5
    got = fastseq.dtw_cross(x, y, valid_x=valid_x, valid_y=valid_y)
    for a in range(3):
        for b in range(5):
            want = fastseq.dtw_path(x[a, valid_x[a]], y[b, valid_y[b]])[1]
            assert got[a, b].item() == pytest.approx(want, rel=1e-6)
    half = fastseq.dtw_cross(x.bfloat16().requires_grad_(), y.bfloat16())
    assert (half.dtype, half.requires_grad) == (torch.float32, False)
    assert torch.equal(half, fastseq.dtw_cross(x.bfloat16().float(), y.bfloat16().float()))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(half, fastseq.dtw_cross(x.bfloat16(), y.bfloat16()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_pair_alone_has_the_same_bits(threads):
    x, y, lengths_x, lengths_y = _ragged(40, 90, 11, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        all_pairs = fastseq.dtw_cross(x, y, lengths_x=lengths_x, lengths_y=lengths_y)
    finally:
        torch.set_num_threads(before)
    for a in range(5):
        for b in range(9):
            lengths = {"lengths_x": lengths_x[a : a + 1], "lengths_y": lengths_y[b : b + 1]}
            alone = fastseq.dtw_cross(x[a : a + 1], y[b : b + 1], **lengths)
            assert torch.equal(alone[0, 0], all_pairs[a, b])


@pytest.mark.parametrize("by", ["kernel", *BACKENDS])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_its_pairs_alone(by, odd, by_limit):
    if by != "kernel":
        by_limit(by)
    x, y = randn(9, 20, 3, seed=11), randn(4, 20, 3, seed=12)
    want = fastseq.dtw_cross(x, y, lengths_y=[20, 0, 20, 9])
    x[4, 7, 1], y[3, 3, 0], y[3, 9:] = odd, odd, odd
    got = fastseq.dtw_cross(x, y, lengths_y=[20, 0, 20, 9])
    assert got[4, [0, 2, 3]].isnan().all()
    assert got[[0, 1, 2, 3, 5, 6, 7, 8], 3].isnan().all()
    assert torch.equal(got[:, 1], torch.zeros(9))
    others = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])[:, None], torch.tensor([0, 2])
    torch.testing.assert_close(got[others], want[others], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("a", "b", "t", "s"), [(0, 3, 4, 5), (3, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)]
)
@pytest.mark.parametrize("by", ["kernel", *BACKENDS])
def test_nothing_to_align(by, a, b, t, s, by_limit):
    if by != "kernel":
        by_limit(by)
    got = fastseq.dtw_cross(torch.zeros(a, t, 2), torch.zeros(b, s, 2))
    assert torch.equal(got, torch.zeros(a, b))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [[1.0]]}, TypeError, "dtw_cross: x must be a torch.Tensor, got list"),
        ({"x": torch.zeros(4, 3)}, ValueError, r"x must have shape \(A, T, D\).*x\[None\]"),
        ({"y": torch.zeros(3, 5, 2)}, ValueError, "dtw_cross: x and y must agree in D"),
        ({"lengths_y": [5, 5, 6]}, ValueError, "lengths_y must lie between 0 and T = 5, got 6"),
        ({"bandwidth": -1}, ValueError, "bandwidth must be 0 or more, or None, got -1"),
        ({"cost": "l1"}, ValueError, "'sqeuclidean', 'cosine'"),
        ({"end": "open"}, ValueError, "'fixed', 'free'"),
        ({"warp_penalty": -1}, ValueError, "warp_penalty must be finite and at least 0, got -1"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    arguments = {"x": torch.zeros(2, 4, 3), "y": torch.zeros(3, 5, 3), **change}
    with pytest.raises(error, match=text):
        fastseq.dtw_cross(**arguments)


def test_no_derivative_is_pretended():
    x = randn(2, 5, 3, seed=13)
    with pytest.raises(RuntimeError, match=r'soft_dtw_cross\(..., backend="reference"'):
        torch.func.grad(lambda x: fastseq.dtw_cross(x, x).sum())(x)


def test_the_kernel_reads_what_it_should():
    """Four steps at a time, with the positions before the first column and after the last one."""
    assert hard_kernels.STEPS % 4 == 0
    assert hard_kernels.STEPS >= hard_kernels.COLUMNS + hard_kernels.ROWS - 1
    furthest = (hard_kernels.STEPS - 1) * hard_kernels.PAIRS + hard_kernels.LANES
    assert furthest <= hard_kernels.WINDOW
