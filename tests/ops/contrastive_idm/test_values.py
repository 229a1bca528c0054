"""contrastive_idm: the definition against loops, the blockwise backend against the definition."""

import functools
import itertools
import math

import pytest
import torch
from tolerance import as_accurate_as, relative

import fastseq
from fastseq.ops.contrastive_idm.options import DISTANCES, KINDS, REDUCTIONS, WEIGHTS
from ops.contrastive_idm.cases import (
    BACKENDS,
    brute_force,
    clear_of_margin,
    loss_and_grad,
    randn,
    two_scales,
)

VARIANTS = [("contrastive", w, d) for w in WEIGHTS for d in DISTANCES]
VARIANTS += [(kind, "paper", d) for kind in ("idm", "sfa") for d in DISTANCES]
pytestmark = [
    pytest.mark.usefixtures("nan_empty"),
    pytest.mark.filterwarnings("ignore:contrastive_idm. with more than 128 frames"),
]


def randint(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, dtype=torch.float64, seed=0):
    return torch.nn.functional.normalize(randn(*shape, dtype=dtype, seed=seed), dim=-1)


@pytest.mark.parametrize(("kind", "weights", "distance"), VARIANTS)
def test_reference_equals_loops(kind, weights, distance):
    z, t, lengths = randn(3, 9, 4), randint(40, 3, 9), [9, 0, 5]
    kw = {"kind": kind, "weights": weights, "distance": distance, "window": 7, "margin": 6.0}
    values = [brute_force(z[n, :k], t[n, :k], **kw) for n, k in enumerate(lengths)]
    want = torch.tensor(values, dtype=torch.float64)
    pairs = torch.tensor([81.0, 1.0, 25.0])
    reduced = {"none": want, "sum": want.sum(), "mean": (want / pairs).sum() / 2}
    for reduction, value in reduced.items():
        got = fastseq.contrastive_idm(
            z, t, lengths=lengths, reduction=reduction, backend="reference", **kw
        )
        torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-12)
    index = fastseq.contrastive_idm(z[0], reduction="sum", backend="reference", **kw)
    assert index.item() == pytest.approx(brute_force(z[0], **kw), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_by_hand(backend):
    """Three frames on a line at 0, 1 and 1.5, window 1, margin 4: squared distances 1, 2.25, 0.25.

    Near: 2 (1 + 0.25) / 2; far: 2 (4 + 1) (4 - 2.25).
    """
    z = torch.tensor([[0.0], [1.0], [1.5]], dtype=torch.float64)
    kw = {"window": 1, "margin": 4.0, "reduction": "sum", "backend": backend}
    loss, dz = loss_and_grad(z, **kw)
    assert loss.item() == 18.75
    # Slope of a near pair: 2 * 2 * (z_i - z_j) / 2; of the far one: -2 * 5 * 2 * (z_i - z_j).
    assert dz.flatten().tolist() == pytest.approx([-2 + 30, 2 - 1, 1 - 30])
    assert fastseq.contrastive_idm(z, weights="code", **kw).item() == 20.0
    assert fastseq.contrastive_idm(z, kind="sfa", **kw).item() == 6.0
    assert fastseq.contrastive_idm(z, kind="idm", **kw).item() == -(4 * 1.25 + 10 * 2.25)
    one = fastseq.contrastive_idm(z, kind="sfa", distance="euclidean", **kw)
    assert one.item() == pytest.approx(2 * (1 + 0.5) + 2 * 2.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gap_of_exactly_the_window_is_near(backend):
    z = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    for gap, window in ((10, 10), (10.0, 10.0), (0.25, 0.25), (0, 0)):
        t = torch.tensor([3, 3 + gap])
        kw = {"kind": "sfa", "reduction": "sum", "backend": backend}
        assert fastseq.contrastive_idm(z, t, window=window, **kw).item() == 0.5
        below = math.nextafter(window, -1) if window else None
        if below and t.is_floating_point():
            # Times are compared in their own precision, float32.
            below = window * (1 - 1e-6)
            assert fastseq.contrastive_idm(z, t, window=below, **kw).item() == 3.5
    # With a window of 0, only duplicate times are near, and each frame to itself.
    t = torch.tensor([0, 1])
    assert fastseq.contrastive_idm(z, t, window=0, **kw).item() == 3.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_which_pairs_are_far_does_not_depend_on_the_dtype(backend):
    """Times in thirds of a second: rounding puts gaps of ten frames on either side of 10 / 3."""
    t = torch.arange(60) / 3
    z = unit(1, 60, 8)
    kw = {"kind": "sfa", "window": 10 / 3, "reduction": "sum"}
    want = fastseq.contrastive_idm(z, t, backend="reference", **kw)
    got, plain = (
        fastseq.contrastive_idm(z.float(), t, backend=b, **kw) for b in (backend, "reference")
    )
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("pairs")
def test_no_gradient_at_exactly_the_margin(backend):
    z = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    for distance, margin in (("sqeuclidean", 4.0), ("euclidean", 2.0)):
        kw = {"window": 0, "distance": distance, "backend": backend, "reduction": "sum"}
        for extra, slope in ((0.0, 0.0), (1e-9, 1.0), (-1e-9, 0.0)):
            loss, dz = loss_and_grad(z, margin=margin + extra, **kw)
            # 2 pairs with weight 2; the slope of the square is twice the difference of 2.
            factor = 16 if distance == "sqeuclidean" else 4
            assert dz.flatten().tolist() == [slope * factor, -slope * factor]
            assert loss.item() == pytest.approx(4 * max(extra, 0), abs=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_frame_and_equal_frames_cost_nothing_near(backend, distance, kind):
    kw = {"kind": kind, "distance": distance, "backend": backend}
    loss, dz = loss_and_grad(randn(2, 1, 5), **kw)
    assert loss == 0
    assert (dz == 0).all()
    loss, dz = loss_and_grad(randn(2, 1, 5).expand(2, 4, 5) * 1e3, window=3, **kw)
    assert loss == 0
    assert (dz == 0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_reference_is_differentiable_twice(distance):
    z, t = randn(2, 5, 3), randint(30, 2, 5)

    def loss(z):
        kw = {"window": 8, "margin": 5.0, "distance": distance, "lengths": [5, 3]}
        return fastseq.contrastive_idm(z, t, backend="reference", **kw)

    assert torch.autograd.gradcheck(loss, z.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, z)


@pytest.mark.usefixtures("pairs")
def test_gradcheck_of_the_blockwise_backend():
    z, t = randn(2, 5, 3).requires_grad_(), randint(30, 2, 5)
    for kind, weights, distance in VARIANTS:
        kw = {"kind": kind, "weights": weights, "distance": distance, "lengths": [5, 3]}
        assert torch.autograd.gradcheck(
            lambda z, kw=kw: fastseq.contrastive_idm(z, t, window=8, backend="torch", **kw), z
        )


TIMES = {
    "index": None,
    "shared, sorted": torch.arange(97) * 2.5,
    "unsorted": randint(300, 2, 97),
    "sorted, each its own": randint(300, 2, 97).sort(1).values.int(),
    "reversed": torch.arange(97).flip(0),
    "duplicate": (torch.arange(97) // 5).expand(2, 97),
    "fp64 epoch": 1.7e9 + randint(3000, 2, 97).double() / 16,
    "offset": randint(400, 2, 97) + 10**12,
}


@pytest.mark.parametrize(("kind", "weights", "distance"), VARIANTS)
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.usefixtures("pairs")
def test_blockwise_equals_reference_in_float64(kind, weights, distance, times):
    z = randn(2, 97, 6)
    kw = {"kind": kind, "weights": weights, "distance": distance, "margin": 9.0}
    upstream = {"none": torch.tensor([-2.0, 0.5]).double(), "mean": -1.7, "sum": 3.0}
    windows = 10.0, torch.tensor([3.0, 40.0])
    for reduction, lengths in itertools.product(REDUCTIONS, (None, [97, 13], [0, 81])):
        pair = [
            loss_and_grad(
                z,
                TIMES[times],
                upstream=upstream[reduction],
                reduction=reduction,
                lengths=lengths,
                window=windows[reduction == "sum"],
                backend=backend,
                **kw,
            )
            for backend in BACKENDS
        ]
        for want, got in zip(*pair, strict=True):
            assert relative(got, want) < 1e-12


def _call(frames, backend, **kw):
    return loss_and_grad(randn(3, frames, 17) / 4, reduction="sum", backend=backend, **kw)


_expected = functools.cache(_call)  # shared by all block sizes


@pytest.mark.sweep
@pytest.mark.parametrize("frames", [0, 1, 2, 63, 64, 65, 97, 300])
@pytest.mark.parametrize("elements", [1 << 6, 1 << 12, 1 << 20])
@pytest.mark.usefixtures("pairs")
def test_blockwise_over_lengths_and_block_sizes(frames, elements, monkeypatch):
    import fastseq.ops.contrastive_idm.torch as blockwise

    monkeypatch.setattr(blockwise, "SHORT_ELEMENTS", elements)
    monkeypatch.setattr(blockwise, "LONG_ELEMENTS", elements)
    for kw in ({}, {"window": 70}, {"kind": "sfa"}):
        pair = _expected(frames, "reference", **kw), _call(frames, "torch", **kw)
        for want, got in zip(*pair, strict=True):
            assert relative(got, want) < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("frames", "backend"), [(480, "reference"), (480, "torch"), (4096, "torch")]
)
def test_float32_gradients_where_no_pair_is_at_the_margin(frames, backend):
    if frames == 480:
        z = unit(1, frames, 128)
        margin = clear_of_margin(z, 2.0, 1e-5)
    else:
        z, margin = two_scales(frames), 1.3
    want = loss_and_grad(z, margin=margin, backend="torch")
    # The hinge is active: with all pairs inside the margin, the gradient differs.
    every = loss_and_grad(z, margin=1e3, backend="torch")
    assert 0.01 < float(want[1].norm() / every[1].norm()) < 0.99
    got = loss_and_grad(z.float(), margin=margin, backend=backend)
    # At 4096 frames the definition would need gigabytes, so only the floors apply.
    plain = loss_and_grad(z.float(), margin=margin, backend="reference") if frames == 480 else want
    as_accurate_as(got, plain, want)


@pytest.mark.sweep
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.usefixtures("pairs")
def test_float32_gradients_at_the_margin(distance):
    """Random directions: thousands of pairs are within 1e-3 of the paper's margin, some of them
    within rounding. float64 decides on which side they are.
    """
    z = unit(2, 1500, 128, dtype=torch.float32)
    kw = {"margin": 2.0 if distance == "sqeuclidean" else 2**0.5, "distance": distance}
    want = loss_and_grad(z.double(), backend="torch", **kw)
    as_accurate_as(loss_and_grad(z, backend="torch", **kw), want, want)


@pytest.mark.usefixtures("pairs")
def test_frames_at_exactly_the_margin_have_no_gradient():
    """All pairs of 300 orthogonal frames, more than are processed at once."""
    z = torch.eye(300)[None]
    loss, dz = loss_and_grad(z, margin=2.0, window=0, backend="torch")
    assert loss == 0
    assert (dz == 0).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.usefixtures("pairs")
def test_float32_of_embeddings_far_from_the_origin(distance):
    """Distances of 1 between norms of 1200: products of the embeddings alone would have no correct
    digits.
    """
    z = (unit(2, 200, 16) + 300 * unit(1, 1, 16, seed=1)).float()
    kw = {"margin": 1.5, "distance": distance}
    want = loss_and_grad(z.double(), backend="reference", **kw)
    plain, got = (loss_and_grad(z, backend=b, **kw) for b in BACKENDS)
    as_accurate_as(got, plain, want)


@pytest.mark.sweep
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("margin", [0.5, 2.0])
@pytest.mark.usefixtures("pairs")
def test_float32_is_at_most_twice_as_far_off_as_plain_torch(distance, margin):
    for seed, z in enumerate((unit(2, 240, 64), randn(2, 240, 64) / 8, randn(2, 240, 2))):
        walk = z.cumsum(1) / 10 if seed == 2 else z  # smooth, as videos are
        z = walk.float()
        kw = {"margin": margin, "distance": distance}
        want = loss_and_grad(z.double(), backend="reference", **kw)
        plain, got = (loss_and_grad(z, backend=b, **kw) for b in BACKENDS)
        as_accurate_as(got, plain, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.usefixtures("pairs")
def test_padding_never_matters(backend, distance):
    z, t, lengths = randn(3, 90, 5), randint(300, 3, 90).float(), [90, 0, 31]
    padded = torch.arange(90) >= torch.tensor(lengths)[:, None]
    for kind in KINDS:
        kw = {"lengths": lengths, "kind": kind, "distance": distance, "backend": backend}
        clean = loss_and_grad(z, t, **kw)
        for garbage in (torch.nan, torch.inf):
            dirty = loss_and_grad(
                z.masked_fill(padded[..., None], garbage), t.masked_fill(padded, garbage), **kw
            )
            assert all(map(torch.equal, clean, dirty))
        assert (clean[1][padded] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("pairs")
def test_nan_in_a_real_frame_or_time_is_not_hidden(backend, kind):
    for distance, weights in itertools.product(DISTANCES, WEIGHTS):
        kw = {"kind": kind, "distance": distance, "weights": weights, "backend": backend}
        bad = randn(2, 40, 3)
        bad[0, 30, 1] = torch.nan
        time = torch.arange(40.0).expand(2, 40).clone()
        time[0, 7] = torch.nan
        clean = loss_and_grad(randn(2, 40, 3), reduction="none", **kw)
        for args in ((bad,), (randn(2, 40, 3), time)):
            loss, dz = loss_and_grad(*args, reduction="none", **kw)
            assert loss[0].isnan()
            assert dz[0].isnan().any(-1).all()
            assert relative(loss[1], clean[0][1]) < 1e-12
            assert relative(dz[1], clean[1][1]) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_real_gives_zero_and_zero_gradients(backend, reduction):
    z = randn(2, 4, 3)
    for num, frames, lengths in ((2, 4, [0, 0]), (0, 4, None), (2, 0, None), (0, 0, [])):
        some = z[:num, :frames]
        for t in (None, torch.arange(4)[:frames]):
            loss, dz = loss_and_grad(some, t, lengths=lengths, reduction=reduction, backend=backend)
            assert loss.shape == ((num,) if reduction == "none" else ())
            assert (loss == 0).all()
            assert dz.shape == some.shape
            assert (dz == 0).all()


@pytest.mark.usefixtures("pairs")
def test_layouts_and_repeatability():
    base = randn(3, 8, 150, dtype=torch.float32)
    for z in (base.mT, base[:1].expand(3, 8, 150).mT):
        want = loss_and_grad(z.contiguous(), backend="torch")
        for _ in range(2):
            assert all(map(torch.equal, loss_and_grad(z, backend="torch"), want))


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize(("kind", "weights", "distance"), VARIANTS)
def test_a_backward_leaves_what_was_kept(kind, weights, distance):
    z = randn(2, 200, 8, dtype=torch.float32).requires_grad_()
    kw = {"kind": kind, "weights": weights, "distance": distance, "lengths": [200, 31]}
    loss = fastseq.contrastive_idm(z, margin=9.0, backend="torch", **kw)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (twice,) = torch.autograd.grad(loss, z, torch.tensor(2.0), retain_graph=True)
    assert torch.equal(2 * first, twice)
    assert torch.equal(first, *torch.autograd.grad(loss, z))
    with torch.no_grad():
        assert fastseq.contrastive_idm(z, margin=9.0, backend="torch", **kw) == loss
