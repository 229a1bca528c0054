"""tcc_loss: the definition against loops, the blockwise backend against the definition."""

import functools
import itertools
import math

import pytest
import torch
from tolerance import as_accurate_as, relative

import fastseq
import fastseq.ops.tcc.torch as blockwise
from fastseq.ops.tcc.options import LOSS_TYPES, REDUCTIONS, SIMILARITIES, VARIANCE_FLOOR, TCCOptions
from ops.tcc.cases import brute_force, loss_and_grads, randn

BOTH = ["reference", "torch"]


def _ragged():
    """x, y, and the keywords that every form of a call supports: times, lengths, durations."""
    x, y = randn(3, 9, 5), randn(3, 13, 5, seed=1)
    generator = torch.Generator().manual_seed(2)
    t = torch.randint(0, 120, (3, 22), generator=generator)
    own = {"tx": t[:, :9], "lengths_x": [9, 0, 4], "duration_x": [130.0, 90.0, 122.5]}
    other = {"ty": t[:, 9:], "lengths_y": [5, 3, 13], "duration_y": [200, 121, 160]}
    return x, y, own, other


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equals_loops(loss_type, similarity):
    x, y, own, other = _ragged()
    options = {
        "loss_type": loss_type,
        "temperature": 0.7,
        "variance_lambda": 0.03,
        "label_smoothing": 0.2,
        "huber_delta": 0.15,
    }
    index_x, index_y = [list(range(9))] * 3, [list(range(13))] * 3
    full_x, full_y = [9] * 3, [13] * 3
    lists = (
        *(own["tx"].tolist(), other["ty"].tolist(), own["lengths_x"], other["lengths_y"]),
        *(own["duration_x"], other["duration_y"]),
    )
    for normalize in (True, False):
        for two, kwargs, numbers in (
            (y, {}, (index_x, index_y, full_x, full_y, full_x, full_y)),
            (y, {**own, **other}, lists),
            (None, {}, (index_x, None, full_x, None, full_x, None)),
            (None, own, lists),
        ):
            options["normalize_indices"] = normalize
            want = brute_force(x, two, *numbers, similarity_kind=similarity, **options)
            kw = options | kwargs | {"similarity": similarity}
            for reduction, backend in itertools.product(REDUCTIONS, BOTH):
                got = fastseq.tcc_loss(x, two, reduction=reduction, backend=backend, **kw)
                torch.testing.assert_close(got, want[reduction], rtol=1e-11, atol=1e-12)


def test_without_y_two_sequences_are_a_pair():
    z = randn(2, 12, 6)
    pair = loss_and_grads(z[0], z[1], temperature=0.5)
    batch = loss_and_grads(z, temperature=0.5)
    assert relative(batch[0], pair[0]) < 1e-14
    assert relative(batch[1], torch.stack(pair[1:])) < 1e-13


def test_default_duration_is_the_number_of_real_frames():
    x = randn(2, 8, 4)
    for lengths in (None, [8, 5]):
        want = fastseq.tcc_loss(x, lengths_x=lengths, duration_x=lengths or 8)
        assert fastseq.tcc_loss(x, lengths_x=lengths) == want


@pytest.mark.sweep
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_reference_is_differentiable_twice(loss_type, similarity):
    x, y = randn(2, 3, 2).requires_grad_(), randn(2, 4, 2, seed=1).requires_grad_()
    kw = {"loss_type": loss_type, "similarity": similarity, "temperature": 1.5}

    def loss(a, b):
        return fastseq.tcc_loss(a, b, lengths_y=[4, 2], backend="reference", **kw)

    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_blockwise_equals_reference_in_float64(loss_type, similarity):
    x, y, own, other = _ragged()
    for normalize, reduction in itertools.product((True, False), REDUCTIONS):
        upstream = -1.7 * randn(3, seed=9) if reduction == "none" else -1.7
        kw = {
            "loss_type": loss_type,
            "similarity": similarity,
            "normalize_indices": normalize,
            "reduction": reduction,
            "upstream": upstream,
            "temperature": 0.4,
        }
        for two, more in ((y, {}), (y, own | other), (None, {}), (None, own)):
            times = [more.get("tx"), more.get("ty")]
            rest = {k: v for k, v in more.items() if k not in ("tx", "ty")}
            want, got = (loss_and_grads(x, two, *times, backend=b, **kw, **rest) for b in BOTH)
            for a, b in zip(got, want, strict=True):
                assert relative(a, b) < 1e-11


def _call(frames1, frames2, loss_type, pair, backend):
    x, y = randn(3, frames1, 17), randn(3, frames2, 17, seed=1)
    kw = {"loss_type": loss_type, "temperature": 0.5, "backend": backend}
    return loss_and_grads(x, y if pair else None, **kw)


_expected = functools.cache(_call)  # shared by all block sizes


@pytest.mark.sweep
@pytest.mark.parametrize(
    "frames",
    [(1, 1), (1, 5), (2, 63), (64, 65), (97, 200), (300, 130), (0, 3), (3, 0), (0, 0)],
)
@pytest.mark.parametrize(("rows", "elements"), [(7, 1 << 8), (128, 1 << 12), (128, 1 << 20)])
def test_blockwise_over_lengths_and_block_sizes(frames, rows, elements, monkeypatch):
    monkeypatch.setattr(blockwise, "ROWS", rows)
    monkeypatch.setitem(blockwise.ELEMENTS, "cpu", elements)
    for case in itertools.product(("regression_mse_var", "classification"), (True, False)):
        want, got = _expected(*frames, *case, "reference"), _call(*frames, *case, "torch")
        for a, b in zip(got, want, strict=True):
            assert relative(a, b) < 1e-11


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_all_pairs_of_six_in_groups_of_shifts(at_once, monkeypatch):
    x = randn(6, 7, 4)
    monkeypatch.setitem(blockwise.ELEMENTS, "cpu", at_once * x.numel())
    kw = {"lengths_x": [7, 3, 0, 5, 7, 1], "temperature": 0.5, "upstream": randn(6, seed=4)}
    for reduction in REDUCTIONS:
        want, got = (loss_and_grads(x, reduction=reduction, backend=b, **kw) for b in BOTH)
        for a, b in zip(got, want, strict=True):
            assert relative(a, b) < 1e-11


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(("similarity", "scale"), [("l2", 0.6), ("l2", 1.0), ("cosine", 1.0)])
def test_float32_against_float64(loss_type, similarity, scale):
    """Soft (the softmax spreads over hundreds of frames) and nearly hard (over one or two)."""
    x = randn(1, 480, 128) * scale
    y = (x + 0.5 * scale * randn(1, 480, 128, seed=1))[:, torch.arange(0, 480, 2)]
    kw = {"loss_type": loss_type, "similarity": similarity}
    want = loss_and_grads(x, y, backend="reference", **kw)
    plain, got = (loss_and_grads(x.float(), y.float(), backend=b, **kw) for b in BOTH)
    as_accurate_as(got, plain, want)


def test_distances_do_not_see_a_common_offset():
    """Embeddings far from the origin: products lose digits that differences keep."""
    x, y = randn(2, 100, 32), randn(2, 100, 32, seed=1)
    want = loss_and_grads(x, y, backend="reference")
    moved = loss_and_grads((x + 100).float(), (y + 100).float())
    for a, b in zip(moved, want, strict=True):
        assert relative(a, b) < 2e-3  # rounding of the inputs alone: 4e-6 of an embedding
    with torch.no_grad():
        x, y = ((z + 100).float().double() for z in (x, y))
    want = loss_and_grads(x, y, backend="reference")
    for a, b in zip(moved, want, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("backend", BOTH)
def test_collapsed_on_the_right_frame(backend):
    """Distant frames that return to themselves: variance 0 in float32, its floor in the loss."""
    x = 100 * randn(2, 20, 16, dtype=torch.float32)
    x[1] = x[0]
    loss, dx = loss_and_grads(x, backend=backend)
    assert loss.item() == pytest.approx(0.001 * math.log(VARIANCE_FLOOR))
    assert (dx == 0).all()


@pytest.mark.parametrize("backend", BOTH)
def test_collapsed_on_a_wrong_frame(backend):
    """All frames of x are nearest to the one frame of y, which returns to the frame of x next to
    it.
    """
    x, y = 100 * torch.eye(6)[None], 100 * torch.eye(6)[None, 2:3]
    loss, *grads = loss_and_grads(x, y, backend=backend, reduction="none")
    errors = (torch.arange(6) - 2) / 6.0
    log_floor = 0.001 * math.log(VARIANCE_FLOOR)
    want = errors.square().sum() / VARIANCE_FLOOR + 7 * log_floor
    torch.testing.assert_close(loss, want[None], rtol=1e-5, atol=0)
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("temperature", [0.01, 0.003, 0.001])
def test_nearly_collapsed_is_as_exact_as_float64(temperature):
    """Variances from 1e-3 to below the floor, the regime in which training ends."""
    x = randn(1, 30, 8) * 0.7
    y = x + 0.01 * randn(1, 30, 8, seed=1)
    kw = {"temperature": temperature}
    want = loss_and_grads(x.float().double(), y.float().double(), backend="reference", **kw)
    got = loss_and_grads(x.float(), y.float(), **kw)
    assert relative(got[0], want[0]) < 1e-4
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a.isfinite().all()
        assert relative(a, b) < 2e-3


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_never_matters(backend, loss_type):
    x, y, own, other = _ragged()
    tx, ty = own.pop("tx"), other.pop("ty")
    kw = {"loss_type": loss_type, "temperature": 0.5, "backend": backend, "reduction": "none"}
    for two, more in ((y, own | other), (None, own)):
        clean = loss_and_grads(x, two, tx, None if two is None else ty, **kw, **more)
        bad_x, bad_y = x.clone(), y.clone()
        late_x, late_y = tx.clone(), ty.clone()
        for z, t, lengths in (
            (bad_x, late_x, own["lengths_x"]),
            (bad_y, late_y, other["lengths_y"]),
        ):
            for k, length in enumerate(lengths):
                z[k, length:] = torch.nan if k else torch.inf
                t[k, length:] = -(2**62)
        two = None if two is None else bad_y
        dirty = loss_and_grads(bad_x, two, late_x, None if two is None else late_y, **kw, **more)
        for a, b in zip(clean, dirty, strict=True):
            assert torch.equal(a, b)
        assert (dirty[1][1] == 0).all()
        assert (dirty[1][2, 4:] == 0).all()


@pytest.mark.parametrize("backend", BOTH)
def test_nan_in_a_real_frame_or_time_is_not_hidden(backend):
    x, y = randn(3, 4, 3), randn(3, 4, 3, seed=1)
    t = torch.arange(4.0).expand(3, 4).clone()
    t[1, 2] = torch.nan
    bad = x.clone()
    bad[1, 2, 1] = torch.nan
    kw = {"reduction": "none", "backend": backend}
    for got in (loss_and_grads(bad, y, **kw), loss_and_grads(x, y, t, t, **kw)):
        assert got[0].isnan().tolist() == [False, True, False]
        assert got[1][1].isnan().any()
        assert got[1][[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_compare_gives_zero_and_zero_gradients(backend, reduction):
    kw = {"reduction": reduction, "backend": backend}
    for x, y, more in (
        (randn(1, 4, 3), None, {}),
        (randn(0, 4, 3), None, {}),
        (randn(0, 4, 3), randn(0, 2, 3), {}),
        (randn(2, 4, 3), None, {"lengths_x": [0, 4]}),
        (randn(2, 4, 3), randn(2, 3, 3), {"lengths_x": [0, 4], "lengths_y": [3, 0]}),
    ):
        loss, *grads = loss_and_grads(x, y, **kw, **more)
        assert loss.shape == ((len(x),) if reduction == "none" else ())
        assert (loss == 0).all()
        for z, dz in zip((x, y), grads, strict=False):
            assert dz.shape == z.shape
            assert (dz == 0).all()


@pytest.mark.parametrize("backend", BOTH)
def test_one_frame(backend):
    """A single frame always returns to itself: no error, no variance, no entropy."""
    x, y = randn(1, 1, 3), randn(1, 5, 3, seed=1)
    for loss_type in LOSS_TYPES:
        kw = {"loss_type": loss_type, "backend": backend}
        loss, dx, dy = loss_and_grads(x, x, **kw)
        floor = 0.001 * math.log(VARIANCE_FLOOR)
        assert loss.item() == pytest.approx(floor if "var" in loss_type else 0, abs=1e-15)
        assert (dx == 0).all()
        assert (dy == 0).all()
        assert all(g.isfinite().all() for g in loss_and_grads(x, y, **kw))


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(backend, dtype):
    x, y = randn(2, 20, 16).to(dtype), randn(2, 25, 16, seed=1).to(dtype)
    want = loss_and_grads(x.double(), y.double())
    got, plain = (loss_and_grads(x, y, backend=b) for b in (backend, "reference"))
    assert (got[0].dtype, got[1].dtype, got[2].dtype) == (torch.float32, dtype, dtype)
    as_accurate_as(got, plain, want)
    mixed = loss_and_grads(x, y.float(), backend=backend)
    assert (mixed[1].dtype, mixed[2].dtype) == (dtype, torch.float32)
    assert torch.equal(mixed[0], got[0])


@pytest.mark.parametrize("backend", BOTH)
def test_autocast_changes_nothing(backend):
    x, y = randn(2, 20, 16, dtype=torch.float32), randn(2, 25, 16, dtype=torch.float32, seed=1)
    want = fastseq.tcc_loss(x, y, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fastseq.tcc_loss(x, y, backend=backend), want)
        got = loss_and_grads(x, y)
    for a, b in zip(got, loss_and_grads(x, y), strict=True):
        assert torch.equal(a, b)


def test_same_bits_every_time_and_alone_as_in_a_batch_to_rounding():
    x, y = randn(4, 150, 32, dtype=torch.float32), randn(4, 97, 32, dtype=torch.float32, seed=1)
    first = loss_and_grads(x, y, reduction="none")
    for _ in range(3):
        again = loss_and_grads(x, y, reduction="none")
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    alone = loss_and_grads(x[2:3], y[2:3], reduction="none")
    want = loss_and_grads(x[2:3].double(), y[2:3].double(), reduction="none")
    as_accurate_as(alone, [b[2:3] for b in first], want)


def test_inputs_of_any_layout():
    x, y = randn(3, 9, 5), randn(3, 13, 5, seed=1)
    want = loss_and_grads(x, y)
    strided = torch.stack([x, x], 3)[..., 0].transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    for a, b in zip(loss_and_grads(strided, y), want, strict=True):
        assert torch.equal(a, b)
    same = x[:1].expand(3, 9, 5)
    for a, b in zip(loss_and_grads(same, y), loss_and_grads(same.clone(), y), strict=True):
        assert torch.equal(a, b)
    one = loss_and_grads(x[0], y[0], reduction="none")
    assert (one[0].shape, one[1].shape) == ((), (9, 5))


def test_gradient_of_one_input_alone():
    x, y = randn(2, 9, 5), randn(2, 13, 5, seed=1)
    _, dx, dy = loss_and_grads(x, y)
    for k, want in enumerate((dx, dy)):
        inputs = [x.clone(), y.clone()]
        inputs[k].requires_grad_()
        (got,) = torch.autograd.grad(fastseq.tcc_loss(*inputs), inputs[k])
        assert torch.equal(got, want)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradients_kept_by_the_forward_or_formed_in_the_backward(loss_type):
    x, y = randn(2, 9, 5, dtype=torch.float32), randn(2, 13, 5, dtype=torch.float32, seed=1)
    opts = TCCOptions.checked("", loss_type, "l2", 0.1, 0.001, 0.1, 0.1, True, "mean")
    for two in (y, None):
        tensors = (x, two, *[None] * 7)
        exact = (None if z is None else z.double() for z in (x, two))
        want = loss_and_grads(*exact, upstream=-3.0, loss_type=loss_type)
        grad = torch.tensor(-3.0)
        needs = True, two is not None, False
        kept = blockwise.forward(*tensors, opts, needs)
        bare = blockwise.forward(*tensors, opts, (False, False, False))
        assert torch.equal(kept[0], bare[0])
        assert bare[1:] == (None, None)
        late = blockwise.backward(grad, *tensors, *bare[1:], opts, needs)
        early = blockwise.backward(grad, *tensors, *kept[1:], opts, needs)
        early, late = ([g for g in grads if g is not None] for grads in (early, late))
        as_accurate_as(late, early, want[1:], what=("dx", "dy")[: len(want) - 1])


def test_backward_twice_over_one_graph():
    x = randn(2, 9, 5).requires_grad_()
    loss = fastseq.tcc_loss(x)
    first, again = (torch.autograd.grad(loss * k, x, retain_graph=True)[0] for k in (1, 2))
    assert torch.equal(2 * first, again)


def test_differentiating_twice_raises():
    for y in (None, randn(2, 6, 3, seed=1)):
        x = randn(2, 5, 3).requires_grad_()
        (dx,) = torch.autograd.grad(fastseq.tcc_loss(x, y), x, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            dx.square().sum().backward()


def test_changing_lengths_after_the_call_changes_no_gradient():
    x, lengths, duration = randn(2, 6, 3).requires_grad_(), torch.tensor([6, 4]), torch.ones(2)
    loss = fastseq.tcc_loss(x, lengths_x=lengths, duration_x=duration)
    want = loss_and_grads(x, lengths_x=[6, 4], duration_x=1)[1]
    lengths.fill_(1)
    duration.fill_(9)
    assert torch.equal(torch.autograd.grad(loss, x)[0], want)


def test_times_of_any_size():
    """Nanoseconds since 1970: the earliest time is subtracted before anything is rounded."""
    x = randn(2, 40, 8, dtype=torch.float32)
    index = torch.arange(40)
    plain = loss_and_grads(x, None, index, duration_x=40)
    step = 33_333_333
    got = loss_and_grads(x, None, index * step + 1_700_000_000 * 10**9, duration_x=40 * step)
    as_accurate_as(got, plain, loss_and_grads(x.double(), None, index, duration_x=40))
