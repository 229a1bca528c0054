"""sinkhorn_alignment and sinkhorn_plan: wrong input, padding, empty sides, reductions, modules."""

import numpy as np
import pytest
import torch

import fastseq
from fastseq.nn import SinkhornAlignment
from ops.sinkhorn.cases import units

BACKENDS = ("reference", "torch")
OPTIONS = {"epsilon": 0.2, "prior_width": 0.2, "virtual_cost": 0.5}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"y": torch.zeros(3, 4, 3)}, ValueError, "agree in N and D"),
        ({"epsilon": 0}, ValueError, "epsilon must be finite.*greater than 0, got 0"),
        ({"iterations": 0}, ValueError, "iterations must lie between 1 and 10,000, got 0"),
        ({"iterations": 2.0}, TypeError, "iterations must be an integer, got 2.0"),
        ({"iterations": True}, TypeError, "iterations must be an integer, got True"),
        ({"cost": "l1"}, ValueError, "'sqeuclidean', 'cosine'"),
        ({"prior_width": -1.0}, ValueError, "prior_width must be finite"),
        ({"virtual_cost": -0.1}, ValueError, "virtual_cost must be.*at least 0, got -0.1"),
        ({"lengths_x": [4, 5]}, ValueError, "lengths_x must lie between 0 and T = 4, got 5"),
        ({"reduction": "avg"}, ValueError, "'none', 'mean', 'sum'"),
        ({"backend": "numba"}, ValueError, "unknown backend 'numba'"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    z = torch.zeros(2, 4, 3)
    with pytest.raises(error, match=f"^sinkhorn_alignment: .*{text}"):
        fastseq.sinkhorn_alignment(**{"x": z, "y": z, **change})


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_ignored_and_a_batch_equals_its_pairs(backend):
    x, y = units(3, 7, 4), units(3, 6, 4, seed=1)
    lengths_x, lengths_y = [7, 3, 5], [2, 6, 4]
    for k in range(3):
        x[k, lengths_x[k] :] = torch.nan
        y[k, lengths_y[k] :] = torch.inf
    x.requires_grad_()
    y.requires_grad_()
    kw = OPTIONS | {"backend": backend}
    values = fastseq.sinkhorn_alignment(x, y, lengths_x=lengths_x, lengths_y=lengths_y, **kw)
    dx, dy = torch.autograd.grad(values.sum(), (x, y))
    plans = fastseq.sinkhorn_plan(x, y, lengths_x=lengths_x, lengths_y=lengths_y, **OPTIONS)
    for k, (n, m) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        a, b = (z.detach().clone().requires_grad_() for z in (x[k, :n], y[k, :m]))
        value = fastseq.sinkhorn_alignment(a, b, **kw)
        torch.testing.assert_close(values[k], value, rtol=1e-12, atol=0)
        for got, want in zip((dx[k], dy[k]), torch.autograd.grad(value, (a, b)), strict=True):
            torch.testing.assert_close(got[: len(want)], want, rtol=1e-10, atol=1e-13)
            assert not got[len(want) :].any()
        plan = fastseq.sinkhorn_plan(a, b, **OPTIONS)
        torch.testing.assert_close(plans[k, : n + 1, : m + 1], plan, rtol=1e-11, atol=1e-15)
        assert not plans[k, n + 1 :].any()
        assert not plans[k, :, m + 1 :].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("virtual_cost", [None, 0.5])
def test_masks_remove_frames(backend, virtual_cost):
    x, y = units(2, 7, 4), units(2, 6, 4, seed=1)
    valid_x = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1]]).bool()
    valid_y = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]]).bool()
    kw = OPTIONS | {"virtual_cost": virtual_cost}
    masks = {"valid_x": valid_x, "valid_y": valid_y}
    values = fastseq.sinkhorn_alignment(x, y, backend=backend, **masks, **kw)
    plans = fastseq.sinkhorn_plan(x, y, **masks, **kw)
    for k in range(2):
        a, b = x[k, valid_x[k]], y[k, valid_y[k]]
        want = fastseq.sinkhorn_alignment(a, b, **kw)
        torch.testing.assert_close(values[k], want, rtol=1e-12, atol=0)
        v = int(virtual_cost is not None)
        rows, columns = (
            torch.cat([torch.ones(v, dtype=torch.bool), m[k]]) for m in (valid_x, valid_y)
        )
        plan = fastseq.sinkhorn_plan(a, b, **kw)
        torch.testing.assert_close(plans[k][rows][:, columns], plan, rtol=1e-11, atol=1e-15)
        assert not plans[k][~rows].any()
        assert not plans[k][:, ~columns].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("virtual_cost", [None, 0.5])
@pytest.mark.parametrize(
    ("shape_x", "shape_y", "lengths"),
    [((2, 4, 3), (2, 5, 3), [0, 4]), ((2, 0, 3), (2, 5, 3), None), ((0, 4, 3), (0, 5, 3), None)],
)
def test_empty_sides(backend, virtual_cost, shape_x, shape_y, lengths):
    x, y = units(*shape_x).requires_grad_(), units(*shape_y, seed=1).requires_grad_()
    kw = {"lengths_x": lengths, "backend": backend, "virtual_cost": virtual_cost}
    values = fastseq.sinkhorn_alignment(x, y, **kw)
    assert values.shape == shape_x[:1]
    dx, dy = torch.autograd.grad(values.sum(), (x, y))
    if lengths is None:
        assert not values.any()
        assert not dx.any()
        assert not dy.any()
        return
    assert values[0] == 0
    assert not dx[0].any()
    assert not dy[0].any()
    assert values[1] > 0
    assert dx[1].any()
    assert dy[1].any()
    mean = fastseq.sinkhorn_alignment(x, y, reduction="mean", **kw)
    total = fastseq.sinkhorn_alignment(x, y, reduction="sum", **kw)
    assert mean == values[1] == total


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_frame(backend):
    x, y = units(1, 3), units(4, 3, seed=1)
    value = fastseq.sinkhorn_alignment(x, y, backend=backend)
    torch.testing.assert_close(value, (x - y).square().sum(1).mean(), rtol=1e-12, atol=0)
    assert value.shape == ()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
def test_small_epsilon_does_not_overflow(backend, epsilon):
    """f and g move by 1000 and more, and a scaled plan would lose cells (`torch_short.FAR`)."""
    x, y = (10 * units(1, 30, 8, seed=k) for k in range(2))
    want = fastseq.sinkhorn_alignment(x, y, epsilon=epsilon, backend="reference")
    x, y = (z.float().requires_grad_() for z in (x, y))
    value = fastseq.sinkhorn_alignment(x, y, epsilon=epsilon, backend=backend)
    grads = torch.autograd.grad(value, (x, y))
    # At epsilon = 1e-3 f is up to 4e5, where float32 has steps of 0.03: the plan is off by 3 %.
    torch.testing.assert_close(value.double(), want, rtol=0.01, atol=0)
    assert all(g.isfinite().all() for g in grads)


def test_second_derivatives_need_the_reference():
    x = units(1, 4, 3).requires_grad_()
    (dx,) = torch.autograd.grad(fastseq.sinkhorn_alignment(x, x * 2), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"this backend cannot.*twice"):
        torch.autograd.grad(dx.sum(), x)


def test_numbers_of_numpy_are_numbers():
    x, y = units(2, 6, 3), units(2, 5, 3, seed=1)
    want = fastseq.sinkhorn_alignment(x, y, iterations=3, epsilon=0.5, prior_width=1.0)
    given = {"iterations": np.int16(3), "epsilon": np.float32(0.5), "prior_width": np.int64(1)}
    assert torch.equal(fastseq.sinkhorn_alignment(x, y, **given), want)
    want = fastseq.vava_loss(x, y, iterations=3, phi=0.5, inter=1.0)
    given = {"iterations": np.int16(3), "phi": np.float64(0.5), "inter": np.int8(1)}
    assert torch.equal(fastseq.vava_loss(x, y, **given), want)


@pytest.mark.parametrize("loss", [fastseq.sinkhorn_alignment, fastseq.vava_loss])
def test_transforms_raise_an_error_that_names_the_function(loss):
    x = units(2, 6, 3)
    with pytest.raises(RuntimeError, match=f"^{loss.__name__}: backend 'torch' does not work"):
        torch.func.grad(lambda z: loss(z, x, reduction="sum"))(x)


def test_module_passes_everything_on():
    x, y = units(2, 6, 3), units(2, 5, 3, seed=1)
    options = {
        "epsilon": 0.3,
        "iterations": 7,
        "cost": "cosine",
        "prior_width": 0.4,
        "virtual_cost": 0.2,
        "reduction": "mean",
        "backend": "reference",
    }
    frames = {"lengths_x": [6, 4], "valid_y": torch.ones(2, 5, dtype=torch.bool)}
    loss = SinkhornAlignment(**options)
    assert torch.equal(loss(x, y, **frames), fastseq.sinkhorn_alignment(x, y, **frames, **options))
    with pytest.raises(ValueError, match="SinkhornAlignment: epsilon"):
        SinkhornAlignment(epsilon=-1.0)
