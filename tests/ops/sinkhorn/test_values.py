"""sinkhorn_alignment: values against loops, optimality of the plan, gradients, precision."""

import itertools

import pytest
import torch
from tolerance import as_accurate_as

import fastseq
from fastseq.ops.common import short
from fastseq.ops.sinkhorn import torch as backend
from fastseq.ops.sinkhorn import torch_short
from ops.sinkhorn.cases import brute_force, general, randn, units, value_and_grads


@pytest.fixture(params=["scaled", "kept", "small blocks"])
def blocks(request, monkeypatch):
    """Short pairs scale one plan, or keep their scores where f and g move far; other pairs form
    blocks of a few rows again in each pass."""
    if request.param == "kept":
        monkeypatch.setattr(torch_short, "FAR", 0.0)
    if request.param == "small blocks":
        monkeypatch.setattr(backend, "BLOCK", 30)
        monkeypatch.setattr(short, "KEPT_BYTES", 10)


OPTIONS = [
    {},
    {"epsilon": 1.0, "iterations": 1},
    {"prior_width": 0.2},
    {"virtual_cost": 0.7},
    {"virtual_cost": 0.0, "prior_width": 0.1, "epsilon": 0.5},
]


@pytest.mark.parametrize("kw", OPTIONS)
@pytest.mark.parametrize("name", ["reference", "torch"])
def test_equals_the_loops(kw, name, blocks):
    x, y = units(2, 6, 3), units(2, 5, 3, seed=1)
    want = [brute_force(a, b, **kw) for a, b in zip(x, y, strict=True)]
    values = fastseq.sinkhorn_alignment(x, y, backend=name, **kw)
    torch.testing.assert_close(values, values.new_tensor([v for v, _ in want]), rtol=1e-11, atol=0)
    plans = values.new_tensor([plan for _, plan in want])
    got = fastseq.sinkhorn_plan(x, y, **kw)
    torch.testing.assert_close(got, plans, rtol=1e-11, atol=1e-14)


def test_cosine_cost():
    x, y = randn(1, 6, 3), randn(1, 5, 3, seed=1)
    a, b = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    got = fastseq.sinkhorn_alignment(x, y, cost="cosine", epsilon=0.05)
    want = fastseq.sinkhorn_alignment(a, b, epsilon=0.1) / 2
    torch.testing.assert_close(got, want, rtol=1e-11, atol=0)


@pytest.mark.parametrize("virtual_cost", [None, 0.3])
def test_the_plan_is_the_optimum(virtual_cost):
    """Both marginals are right, and every other plan with these marginals is worse."""
    kw = {"epsilon": 0.3, "iterations": 300, "prior_width": 0.3, "virtual_cost": virtual_cost}
    x, y = units(1, 6, 3), units(1, 5, 3, seed=1)
    (plan,) = fastseq.sinkhorn_plan(x, y, **kw)
    n, m = plan.shape
    torch.testing.assert_close(plan.sum(1), plan.new_full((n,), 1 / n), rtol=1e-12, atol=0)
    torch.testing.assert_close(plan.sum(0), plan.new_full((m,), 1 / m), rtol=1e-12, atol=0)
    cost = (x[0, :, None] - y[0]).square().sum(2)
    gap = torch.arange(1, n + 1)[:, None] / n - torch.arange(1, m + 1) / m
    prior = torch.exp(-gap.double().square() / (2 * 0.3**2))
    if virtual_cost is not None:
        cost = torch.nn.functional.pad(cost, (1, 0, 1, 0), value=virtual_cost)
        prior[0, 1:], prior[1:, 0] = 1, 1

    def objective(p):
        return (p * cost).sum() + 0.3 * (p * (p / prior).log() - p).sum()

    for seed in range(20):
        change = randn(n, m, seed=seed)
        change = change - change.mean(0) - change.mean(1, keepdim=True) + change.mean()
        step = change * 0.1 * (plan / change.abs()).min()
        assert objective(plan + step) > objective(plan) < objective(plan - step)


def test_small_epsilon_is_the_best_assignment():
    x, y = units(1, 5, 3), units(1, 5, 3, seed=1)
    cost = (x[0, :, None] - y[0]).square().sum(2)
    best = min(
        sum(float(cost[i, j]) for i, j in enumerate(order)) / 5
        for order in itertools.permutations(range(5))
    )
    value = fastseq.sinkhorn_alignment(x, y, epsilon=0.01, iterations=2000)
    assert abs(float(value) - best) < 1e-4


def test_a_virtual_frame_takes_the_outlier():
    """A frame without a counterpart goes to the virtual frame, the others to their copies."""
    axes = 3 * torch.eye(6, dtype=torch.float64)
    y, x = axes[:5], axes[[0, 1, 2, 5, 4]]
    plan = fastseq.sinkhorn_plan(x, y, epsilon=0.05, iterations=200, virtual_cost=1.0)
    # The outlier, the frame that it left alone, and the others.
    for i, j in ((4, 0), (0, 4), (1, 1), (2, 2), (3, 3), (5, 5)):
        assert plan[i, j] > 0.99 / 6
    without = fastseq.sinkhorn_plan(x, y, epsilon=0.05, iterations=200)
    assert without[3, 3] > 0.99 / 5  # no choice
    assert fastseq.sinkhorn_alignment(x, y, epsilon=0.05, virtual_cost=1.0) < 0.4  # 2 / 6
    assert fastseq.sinkhorn_alignment(x, y, epsilon=0.05) > 3.5  # 18 / 5


def test_equal_frames_have_a_gradient_of_zero():
    """Collapsed embeddings are a stationary point with value 0: the loss alone permits collapse."""
    x = torch.ones(1, 6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.ones(1, 5, 3, dtype=torch.float64)
    value = fastseq.sinkhorn_alignment(x, y)
    (dx,) = torch.autograd.grad(value, x)
    assert value.abs() < 1e-15
    assert dx.abs().max() < 1e-15


@pytest.mark.parametrize("kw", OPTIONS)
def test_gradcheck(kw):
    x, y = (units(2, t, 3, seed=t).requires_grad_() for t in (4, 5))
    kw = {"epsilon": 0.5, **kw, "iterations": 4, "lengths_x": [4, 2], "lengths_y": [3, 5]}

    def reference(a, b):
        return fastseq.sinkhorn_alignment(a, b, backend="reference", **kw)

    torch.autograd.gradcheck(reference, (x, y))
    torch.autograd.gradgradcheck(reference, (x, y))
    torch.autograd.gradcheck(lambda a, b: fastseq.sinkhorn_alignment(a, b, **kw), (x, y))


@pytest.mark.parametrize("epsilon", [0.3, 1e-3])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("centres", [False, True])
@pytest.mark.parametrize("virtual", [False, True])
def test_torch_equals_the_reference(virtual, centres, ragged, epsilon, blocks):
    case = general(virtual=virtual, centres=centres, ragged=ragged, epsilon=epsilon)
    want = value_and_grads("reference", *case)
    # At epsilon 1e-3 the gradients are ill-conditioned: their norm is up to 1e3 times that of x.
    tolerance = 1e-11 if epsilon > 0.1 else 1e-7
    for got, right in zip(value_and_grads("torch", *case), want, strict=True):
        assert (got - right).norm() <= tolerance * right.norm()


@pytest.mark.parametrize(
    ("dtype", "epsilon"),
    [(torch.float32, 0.3), (torch.float32, 0.02), (torch.bfloat16, 0.3), (torch.float16, 0.3)],
)
def test_precision(dtype, epsilon, blocks):
    kw = {"epsilon": epsilon, "prior_width": 0.2, "virtual_cost": 0.5, "iterations": 10}

    def run(z, name):
        inputs = [a.clone().requires_grad_() for a in z]
        value = fastseq.sinkhorn_alignment(*inputs, backend=name, **kw).sum()
        return value, *torch.autograd.grad(value, inputs)

    halves = units(1, 29, 16, dtype=dtype), units(1, 25, 16, seed=1, dtype=dtype)
    truth = run([z.double() for z in halves], "reference")
    plain = [
        p.to(dtype if k else torch.float32)
        for k, p in enumerate(run([z.float() for z in halves], "reference"))
    ]
    as_accurate_as(run(halves, "torch"), plain, truth)


def test_large_norms_lose_no_digits():
    """Distances come from products of frames around their mean."""
    x, y = units(1, 30, 8), units(1, 30, 8, seed=1)
    want = fastseq.sinkhorn_alignment(x, y)
    far = [(z + 100).float() for z in (x, y)]
    plain = fastseq.sinkhorn_alignment(*far, backend="reference")
    as_accurate_as(fastseq.sinkhorn_alignment(*far), plain, want)
