"""Lengths, padding, forbidden matches, NaN, empty sequences, dtypes, reductions, wrong input."""

import math
import re

import pytest
import torch
from tolerance import as_accurate_as

import fastseq
from ops.drop_dtw.cases import (
    BACKENDS,
    EVERY,
    MODES,
    backends,
    otam_and_grad,
    randn,
    sum_over_matchings,
    value_and_grads,
)

INF, NAN = math.inf, math.nan
LENGTHS = {"lengths_x": [4, 2, 1, 3], "lengths_y": [6, 5, 1, 3]}


def draw(*shape, seed=0, dtype=torch.float64):
    return randn(*shape, seed=seed, dtype=dtype)


@pytest.mark.parametrize("softmin", ["logsumexp", "prob"])
@backends(EVERY)
def test_padding_is_ignored(backend, softmin):
    """The same as each pair alone, bit for bit but in the definition; padding may be NaN and has
    no gradient.
    """

    def same(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12 if backend == "reference" else 0, atol=0)

    cost, drop_cost = draw(4, 4, 6), draw(4, 6, seed=1)
    upstream = torch.tensor([1.0, -2.0, 3.0, 0.5])
    options = {"gamma": 0.3, "softmin": softmin, "backend": backend, "exclusive": False}
    padded, padded_drops = cost.clone(), drop_cost.clone()
    for b, (n, m) in enumerate(zip(*LENGTHS.values(), strict=True)):
        padded[b, n:], padded[b, :, m:], padded_drops[b, m:] = NAN, INF, NAN
    got = value_and_grads(padded, padded_drops, upstream, **options, **LENGTHS)
    flat = otam_and_grad(padded, upstream, gamma=0.3, softmin=softmin, backend=backend, **LENGTHS)
    for b, (n, m) in enumerate(zip(*LENGTHS.values(), strict=True)):
        real, drops = cost[b, :n, :m], drop_cost[b, :m]
        alone = value_and_grads(real, drops, upstream[b], **options)
        same(alone[0], got[0][b])
        same(alone[1], got[1][b, :n, :m])
        same(alone[2], got[2][b, :m])
        alone = otam_and_grad(real, upstream[b], gamma=0.3, softmin=softmin, backend=backend)
        same(alone[0], flat[0][b])
        same(alone[1], flat[1][b, :n, :m])
        for gradient in (got[1], flat[1]):
            assert not gradient[b, n:].any()
            assert not gradient[b, :, m:].any()
        assert not got[2][b, m:].any()


@pytest.mark.parametrize("softmin", ["logsumexp", "prob"])
@pytest.mark.parametrize(("contiguous", "exclusive"), MODES)
@backends(EVERY)
def test_forbidden_matches_and_drops(backend, contiguous, exclusive, softmin):
    mode = {"contiguous": contiguous, "exclusive": exclusive}
    blocked = 0
    for seed in range(8):
        cost, drop_cost = draw(3, 5, seed=seed), draw(5, seed=50 + seed)
        masks = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) < 0.3
        cost[masks[:3]], drop_cost[masks[3]] = INF, INF
        got = value_and_grads(cost, drop_cost, gamma=0.3, softmin=softmin, backend=backend, **mode)
        want = sum_over_matchings(cost, drop_cost, 0.3, **mode)
        assert (got[0] == INF) == (want[0] == INF)
        assert not got[1][masks[:3]].any()
        assert not got[2][masks[3]].any()
        assert not got[1][want[1] == 0].any()  # on no matching
        blocked += want[0] == INF
        if softmin == "logsumexp" or want[0] == INF:
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-9, atol=1e-9)
    assert 0 < blocked < 8


@backends(EVERY)
def test_pairs_without_a_matching(backend):
    """More steps than frames; the others of the batch are unchanged."""
    cost, drop_cost = draw(3, 5, 6), draw(3, 6, seed=1)
    lengths = {"lengths_y": [6, 4, 5]}
    value, dcost, ddrop = value_and_grads(cost, drop_cost, backend=backend, **lengths)
    assert (value == INF).tolist() == [False, True, False]
    assert not dcost[1].any()
    assert not ddrop[1].any()
    assert dcost.isfinite().all()
    for b in (0, 2):
        want = value_and_grads(cost[b], drop_cost[b], backend=backend, lengths_y=[6, 4, 5][b])
        assert torch.equal(value[b], want[0])
    # The released code repeats the frames; a frame may also match several steps.
    twice = [z[1, ..., :4].repeat_interleave(2, -1) for z in (cost, drop_cost)]
    assert fastseq.drop_dtw(*twice, backend=backend).isfinite()
    shared = fastseq.drop_dtw(cost, drop_cost, exclusive=False, backend=backend, **lengths)
    assert shared.isfinite().all()


@pytest.mark.parametrize("softmin", ["logsumexp", "prob"])
@pytest.mark.parametrize(("contiguous", "exclusive"), MODES)
@backends(BACKENDS)
def test_nan_stays_visible_beside_forbidden_cells(backend, contiguous, exclusive, softmin):
    """Wherever a matching passes through it, also where every other term of a minimum is +inf."""
    draws = torch.Generator().manual_seed(3)
    options = {"gamma": 0.3, "softmin": softmin}
    mode = {"contiguous": contiguous, "exclusive": exclusive}
    cost, drop_cost = draw(64, 3, 4), draw(64, 4, seed=1)
    for z in (cost, drop_cost):
        kind = torch.rand(z.shape, generator=draws)
        z[kind < 0.4], z[kind > 0.9] = INF, NAN
    want = fastseq.drop_dtw(cost, drop_cost, backend="reference", **options, **mode)
    value, dcost, ddrop = value_and_grads(cost, drop_cost, backend=backend, **options, **mode)
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert 5 < want.isnan().sum() < 60
    assert (dcost.isnan().any((1, 2)) | ddrop.isnan().any(1))[want.isnan()].all()
    want, got = (fastseq.otam(cost, backend=name, **options) for name in ("reference", backend))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert 5 < want.isnan().sum() < 60


@backends(EVERY)
def test_nan_and_minus_infinity_stay_visible(backend):
    """In the pair that has them; its padding has no gradient."""
    clean = draw(3, 4, 9), draw(3, 9, seed=1)
    clean[0][:, 1, 4] = INF
    options = {"lengths_x": [3] * 3, "lengths_y": [8] * 3, "backend": backend}
    for bad in (NAN, -INF):
        for place in (0, 1):
            args = [z.clone() for z in clean]
            args[place][(1, ..., 5)] = bad
            value, dcost, ddrop = value_and_grads(*args, **options)
            assert value.isnan().tolist() == [False, True, False]
            assert dcost[1].isnan().any()
            assert not dcost[:, 1, 4].any()
            assert not dcost[:, 3:].any()
            assert not dcost[..., 8:].any()
            assert not ddrop[:, 8:].any()
            assert dcost[[0, 2]].isfinite().all()
            assert ddrop[[0, 2]].isfinite().all()
    # A NaN that no matching reaches: the third step at the first frame.
    args = [z.clone() for z in clean]
    args[0][1, 2, 0] = NAN
    value, dcost, _ = value_and_grads(*args, **options)
    assert value.isfinite().all()
    assert dcost[1, 2, 0] == 0


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
@backends(EVERY)
def test_empty(backend, shape):
    cost, drop_cost = draw(*shape), draw(shape[0], shape[2])
    value, dcost, ddrop = value_and_grads(cost, drop_cost, backend=backend)
    assert value.shape == shape[:1]
    assert not value.any()
    assert dcost.shape == cost.shape
    assert not ddrop.any()
    flat, dcost = otam_and_grad(cost, backend=backend)
    assert flat.shape == shape[:1]
    assert not flat.any()
    assert dcost.shape == cost.shape


@backends(EVERY)
def test_lengths_of_0_and_reductions(backend):
    cost, drop_cost = draw(4, 3, 5), draw(4, 5, seed=1)
    options = {"lengths_x": [3, 0, 2, 3], "lengths_y": [5, 4, 0, 4], "backend": backend}
    value, dcost, ddrop = value_and_grads(cost, drop_cost, **options)
    assert (value == 0).tolist() == [False, True, True, False]
    assert not dcost[1:3].any()
    assert not ddrop[1:3].any()
    flat = fastseq.otam(cost, **options)
    assert (flat == 0).tolist() == [False, True, True, False]
    for function, args, values in (
        (fastseq.drop_dtw, (cost, drop_cost), value),
        (fastseq.otam, (cost,), flat),
    ):
        got = function(*args, reduction="sum", **options)
        torch.testing.assert_close(got, values.sum())
        got = function(*args, reduction="mean", **options)
        torch.testing.assert_close(got, values.sum() / 2)
        assert function(*(z[0] for z in args), backend=backend).shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@backends(BACKENDS)
def test_dtypes(backend, dtype):
    cost, drop_cost = draw(2, 5, 40, dtype=dtype), draw(2, 40, seed=1, dtype=dtype)
    for softmin in ("logsumexp", "prob"):
        options = {"gamma": 0.2, "softmin": softmin}
        got = value_and_grads(cost, drop_cost, backend=backend, **options)
        assert [z.dtype for z in got] == [torch.float32, dtype, dtype]
        plain = value_and_grads(cost, drop_cost, backend="reference", **options)
        exact = cost.double(), drop_cost.double()
        as_accurate_as(got, plain, value_and_grads(*exact, backend="reference", **options))
    mixed = value_and_grads(cost, drop_cost.double(), backend=backend)
    assert [z.dtype for z in mixed] == [torch.float64, dtype, torch.float64]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = value_and_grads(cost, drop_cost, backend=backend, **options)
    assert all(map(torch.equal, again, got))


@backends(EVERY)
def test_far_apart_costs(backend):
    """Differences of 1e6 gamma, where exp underflows, and costs of 1e30."""
    cost, drop_cost = draw(3, 20), draw(20, seed=1)
    for softmin in ("logsumexp", "prob"):
        got = value_and_grads(cost, drop_cost, gamma=1e-6, softmin=softmin, backend=backend)
        assert all(z.isfinite().all() for z in got)
        got = value_and_grads(
            cost.float() * 1e30, drop_cost.float() * 1e30, softmin=softmin, backend=backend
        )
        assert all(z.isfinite().all() for z in got)


COST, DROPS = torch.rand(2, 3, 4), torch.rand(2, 4)
WRONG = [
    ((COST.tolist(), DROPS), {}, TypeError, "cost must be a torch.Tensor, got list"),
    ((COST.long(), DROPS), {}, TypeError, "cost must be float64, .* got torch.int64"),
    ((COST[0, 0], DROPS), {}, ValueError, r"cost must have shape \(N, K, S\), .* got \(4,\)"),
    ((COST, 0.3), {}, TypeError, "drop_cost must be a torch.Tensor, got float"),
    ((COST, DROPS[0]), {}, ValueError, r"drop_cost must have shape \(2, 4\), .* got \(4,\)"),
    ((COST, DROPS.to("meta")), {}, ValueError, "cost and drop_cost must be on one device, got cpu"),
    ((COST, DROPS), {"gamma": 0}, ValueError, "gamma must be finite .* got 0"),
    ((COST, DROPS), {"softmin": "sparse"}, ValueError, "softmin must be one of"),
    ((COST, DROPS), {"contiguous": 1}, TypeError, "contiguous must be True or False, got 1"),
    ((COST, DROPS), {"exclusive": None}, TypeError, "exclusive must be True or False"),
    ((COST, DROPS), {"lengths_x": [3, 4]}, ValueError, "lengths_x must lie between 0 and T = 3"),
    ((COST, DROPS), {"lengths_y": [1.5, 2]}, TypeError, "lengths_y must be integers"),
    ((COST, DROPS), {"reduction": "avg"}, ValueError, "reduction must be one of"),
    ((COST, DROPS), {"backend": "triton"}, ValueError, "unknown backend 'triton'"),
]


@pytest.mark.parametrize(("args", "options", "error", "text"), WRONG)
def test_wrong_input(args, options, error, text):
    with pytest.raises(error, match="^drop_dtw: " + text):
        fastseq.drop_dtw(*args, **options)


def test_advice_on_drop_costs_of_the_wrong_shape_works():
    for cost, drops in (
        (torch.rand(2, 3, 5), torch.rand(2)),  # per pair
        (torch.rand(2, 3, 5), torch.rand(5)),  # the same in each pair
        (torch.rand(2, 3, 5), torch.rand(2, 1)),
        (torch.rand(2, 2, 2), torch.rand(2)),  # either: both advised
        (torch.rand(3, 5), torch.rand(1)),
        (torch.rand(3, 5), 0.3),
    ):
        with pytest.raises((TypeError, ValueError), match="to fix") as raised:
            fastseq.drop_dtw(cost, drops)
        known = {"drop_cost": drops, "cost": cost, "torch": torch}
        fixes = re.findall(r"(?:drop_cost|torch)[.\[][^;]*", str(raised.value).split("; ", 1)[1])
        found = [eval(fix, known) for fix in fixes]
        assert len(found) == 1 + (cost.shape == (2, 2, 2))
        assert all(
            fastseq.drop_dtw(cost, fixed, backend="torch").isfinite().all() for fixed in found
        )
        if cost.dim() == 3 and drops.shape == (2,):
            assert torch.equal(found[0][:, 0], drops)
            assert torch.equal(found[0][:, 1], drops)
    for frames in (torch.rand(2, 4, 8), torch.rand(2, 5, 8)), (torch.rand(4, 8), torch.rand(5, 8)):
        with pytest.raises(ValueError, match=r"first argument is costs, .* not embeddings"):
            fastseq.drop_dtw(*frames)


def test_wrong_input_of_otam():
    with pytest.raises(ValueError, match=r"^otam: cost must have shape"):
        fastseq.otam(COST[0, 0])
    with pytest.raises(ValueError, match=r"^otam: softmin must be one of"):
        fastseq.otam(COST, softmin="sparse")
    with pytest.raises(TypeError, match=r"^DropDTW: exclusive must be True or False"):
        fastseq.nn.DropDTW(exclusive="yes")
    with pytest.raises(ValueError, match=r"^OTAM: gamma must be"):
        fastseq.nn.OTAM(gamma=-1.0)


def test_modules():
    got = fastseq.nn.DropDTW(gamma=0.2, softmin="prob", exclusive=False)(COST, DROPS)
    want = fastseq.drop_dtw(COST, DROPS, gamma=0.2, softmin="prob", exclusive=False)
    assert torch.equal(got, want)
    got = fastseq.nn.OTAM(reduction="mean")(COST, lengths_y=[4, 2])
    assert torch.equal(got, fastseq.otam(COST, lengths_y=[4, 2]).mean())
