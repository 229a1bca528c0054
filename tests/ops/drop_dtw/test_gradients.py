"""Second derivatives of the definition, long sequences, what the backward keeps, compilation."""

import pytest
import torch
from peak import kept

import fastseq
from fastseq.ops.drop_dtw.op import FUSED
from ops.drop_dtw.cases import (
    BACKENDS,
    MODES,
    backends,
    otam_and_grad,
    randn,
    value_and_grads,
)


@pytest.mark.parametrize("softmin", ["logsumexp", "prob"])
@pytest.mark.parametrize(("contiguous", "exclusive"), MODES)
def test_gradcheck(contiguous, exclusive, softmin):
    cost, drop_cost = randn(2, 2, 4).double(), randn(2, 4, seed=1).double()
    cost[0, 1, 1], drop_cost[0, 2] = torch.inf, torch.inf
    free = cost.isfinite(), drop_cost.isfinite()
    leaves = [z[f].requires_grad_() for z, f in zip((cost, drop_cost), free, strict=True)]

    def call(*values):
        args = [torch.full(f.shape, torch.inf).double() for f in free]
        args = [z.masked_scatter(f, v) for z, f, v in zip(args, free, values, strict=True)]
        return fastseq.drop_dtw(
            *args,
            gamma=0.7,
            softmin=softmin,
            contiguous=contiguous,
            exclusive=exclusive,
            lengths_y=[4, 3],
            backend="reference",
        )

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("softmin", ["logsumexp", "prob"])
@backends(BACKENDS)
def test_long_sequences(backend, softmin):
    """Many stretches, the last one incomplete."""
    cost, drop_cost = randn(2, 4, 150), randn(2, 150, seed=1)
    cost[1, 2, 50:110] = torch.inf
    for contiguous, exclusive in MODES:
        options = {"softmin": softmin, "contiguous": contiguous, "exclusive": exclusive}
        options |= {"gamma": 0.1, "lengths_y": [150, 131]}
        got = value_and_grads(cost.double(), drop_cost.double(), backend=backend, **options)
        want = value_and_grads(cost.double(), drop_cost.double(), backend="reference", **options)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    square = randn(2, 40, 35).double()
    options = {"softmin": softmin, "lengths_x": [40, 31], "lengths_y": [35, 30]}
    got = otam_and_grad(square, backend=backend, **options)
    want = otam_and_grad(square, backend="reference", **options)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@backends(BACKENDS)
def test_what_is_kept(backend):
    """Beside costs and drop costs: numbers that grow with K sqrt(S), not with K S."""

    def beyond_the_inputs(frames):
        cost = torch.rand(1, 10, frames, requires_grad=True)
        drop_cost = torch.rand(1, frames, requires_grad=True)
        call = kept(lambda: fastseq.drop_dtw(cost, drop_cost, backend=backend).sum())
        return call - 4 * 11 * frames

    small, large = map(beyond_the_inputs, (250, 4000))
    assert large < 4 * 10 * 4000 / 2
    # sqrt(16) = 4. A table of all cells would make it 16, and a single stretch, whose cells
    # the backward holds all at once, would make it 1.
    assert 3 < large / small < 5


@backends(BACKENDS)
def test_one_gradient_alone(backend):
    cost, drop_cost = randn(2, 3, 9), randn(2, 9, seed=1)
    both = value_and_grads(cost, drop_cost, backend=backend)
    for place in (0, 1):
        args = [z.clone().requires_grad_(k == place) for k, z in enumerate((cost, drop_cost))]
        value = fastseq.drop_dtw(*args, backend=backend)
        (alone,) = torch.autograd.grad(value.sum(), args[place])
        assert torch.equal(alone, both[1 + place])


@backends(BACKENDS)
def test_refuses_second_derivatives_and_transforms(backend):
    cost, drop_cost = randn(3, 9).requires_grad_(), randn(9, seed=1)
    for name, call in (
        ("drop_dtw", lambda c: fastseq.drop_dtw(c, drop_cost, backend=backend)),
        ("otam", lambda c: fastseq.otam(c, backend=backend)),
    ):
        (gradient,) = torch.autograd.grad(call(cost), cost, create_graph=True)
        with pytest.raises(RuntimeError, match=f"^{name}: this backend cannot be differentiated"):
            gradient.sum().backward()
        with pytest.raises(RuntimeError, match=f"^{name}: backend .* torch.func"):
            torch.func.grad(call)(cost.detach())


@pytest.mark.compile
@backends(BACKENDS)
def test_compiled_equals_eager(backend):
    cost, drop_cost = randn(2, 4, 12), randn(2, 12, seed=1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(cost, drop_cost):
        lengths = torch.tensor([12, 9])
        value = fastseq.drop_dtw(cost, drop_cost, lengths_y=lengths, backend=backend)
        return value, fastseq.otam(cost, lengths_y=lengths, backend=backend)

    leaves = [z.requires_grad_() for z in (cost, drop_cost)]
    value, flat = both(*leaves)
    grads = torch.autograd.grad((value + 2 * flat).sum(), leaves)
    want = value_and_grads(cost, drop_cost, lengths_y=[12, 9], backend=backend)
    wide = otam_and_grad(cost, lengths_y=[12, 9], backend=backend)
    torch.testing.assert_close(value, want[0])
    torch.testing.assert_close(flat, wide[0])
    torch.testing.assert_close(grads[0], want[1] + 2 * wide[1])
    torch.testing.assert_close(grads[1], want[2])


@pytest.mark.compile
@backends(BACKENDS)
def test_opcheck(backend):
    args = randn(2, 4, 6).requires_grad_(), randn(2, 6, seed=1).requires_grad_()
    options = 0.5, "prob", False, "always"
    for needs in ([True, True], [True, False]):
        inputs = [z.detach().requires_grad_(need) for z, need in zip(args, needs, strict=True)]
        call = (*inputs, torch.tensor([4, 2]), None, backend, *options, needs)
        torch.library.opcheck(FUSED["drop_dtw"].forward_op, call)
