"""valid=, valid_x= and valid_y=: masks with holes, for every op that takes lengths."""

import math

import pytest
import torch

import fastseq

N, T, S = 3, 9, 7
WITH_TIMES = ("tcc_loss", "lav_loss")
PAIRS = {
    "soft_dtw": {"divergence": True, "gamma": 0.5},
    "tcc_loss": {"reduction": "none"},
    "lav_loss": {"reduction": "none", "gamma": 0.5},
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks():
    """With holes, with nothing real, and a prefix."""
    valid_x = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0], dtype=torch.bool).expand(N, T).clone()
    valid_y = torch.tensor([0, 1, 1, 0, 1, 0, 1], dtype=torch.bool).expand(N, S).clone()
    valid_x[1], valid_y[2] = False, torch.arange(S) < 4
    return valid_x, valid_y


def dirty(z, valid):
    """Padding that must not be read."""
    return z.masked_fill(~valid[..., None], math.nan)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("op", PAIRS)
def test_pairs_equal_their_real_frames_alone(op, backend):
    x, y, (valid_x, valid_y) = randn(N, T, 4), randn(N, S, 4, seed=1), masks()
    loss, kw = getattr(fastseq, op), PAIRS[op] | {"backend": backend}
    leaves = dirty(x, valid_x).requires_grad_(), dirty(y, valid_y).requires_grad_()
    got = loss(*leaves, valid_x=valid_x, valid_y=valid_y, **kw)
    grads = torch.autograd.grad(got.sum(), leaves)
    alone = x.clone().requires_grad_(), y.clone().requires_grad_()
    want = []
    for a, b, m, k in zip(*alone, valid_x, valid_y, strict=True):
        times = [torch.arange(T)[m][None], torch.arange(S)[k][None]] if op in WITH_TIMES else []
        want.append(loss(a[None, m], b[None, k], *times, **kw)[0])
    want = torch.stack(want)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)
    assert got[1] == 0
    for g, w in zip(grads, torch.autograd.grad(want.sum(), alone), strict=True):
        assert torch.allclose(g, w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_contrastive_idm_equals_its_real_frames_alone(backend):
    z, (valid, _) = randn(N, T, 4), masks()
    leaf = dirty(z, valid).requires_grad_()
    kw = {"window": 3, "margin": 9.0, "reduction": "none", "backend": backend}
    got = fastseq.contrastive_idm(leaf, valid=valid, **kw)
    (grad,) = torch.autograd.grad(got.sum(), leaf)
    alone = z.clone().requires_grad_()
    frames = torch.arange(T)
    sequences = zip(alone, valid, strict=True)
    want = [fastseq.contrastive_idm(a[m], frames[m], **kw) for a, m in sequences]
    want = torch.stack(want)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)
    assert torch.allclose(grad, torch.autograd.grad(want.sum(), alone)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_all_ordered_pairs_of_tcc(backend):
    x, (valid, _) = randn(N, T, 4), masks()
    valid[1] = torch.arange(T) > 3
    order = [valid[k].nonzero()[:, 0] for k in range(N)]
    lengths = [len(frames) for frames in order]
    packed, times = x.clone(), torch.zeros(N, T, dtype=torch.long)
    for k, frames in enumerate(order):
        packed[k, : len(frames)], times[k, : len(frames)] = x[k, frames], frames
    want = fastseq.tcc_loss(packed, tx=times, lengths_x=lengths, backend=backend)
    assert torch.allclose(fastseq.tcc_loss(dirty(x, valid), valid_x=valid, backend=backend), want)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_costs_and_alignment(backend):
    x, y, (valid_x, valid_y) = randn(N, T, 4), randn(N, S, 4, seed=1), masks()
    kw = {"valid_x": valid_x, "valid_y": valid_y, "backend": backend}
    want = fastseq.soft_dtw(x, y, **kw)
    cost = (x[:, :, None] - y[:, None]).square().sum(3)
    real = valid_x[:, :, None] & valid_y[:, None]
    leaf = cost.masked_fill(~real, math.nan).requires_grad_()
    got = fastseq.soft_dtw_from_cost(leaf, **kw)
    assert torch.allclose(got, want)
    expected = fastseq.soft_dtw_alignment(dirty(x, valid_x), dirty(y, valid_y), **kw)
    assert torch.allclose(torch.autograd.grad(got.sum(), leaf)[0], expected)
    assert (expected[~real] == 0).all()
    alone = fastseq.soft_dtw_alignment(x[0, valid_x[0]], y[0, valid_y[0]], backend=backend)
    assert torch.allclose(expected[0][valid_x[0]][:, valid_y[0]], alone)


@pytest.mark.parametrize("op", PAIRS)
def test_a_prefix_is_a_length(op):
    x, y = randn(N, T, 4), randn(N, S, 4, seed=1)
    loss, kw = getattr(fastseq, op), PAIRS[op]
    lengths_x, lengths_y = torch.tensor([9, 0, 4]), torch.tensor([1, 7, 5])
    valid_x = torch.arange(T) < lengths_x[:, None]
    valid_y = torch.arange(S) < lengths_y[:, None]
    by_length = loss(x, y, lengths_x=lengths_x, lengths_y=lengths_y, **kw)
    assert torch.equal(loss(x, y, valid_x=valid_x, valid_y=valid_y, **kw), by_length)
    assert torch.equal(loss(x, y, valid_x=valid_x, lengths_y=lengths_y, **kw), by_length)


@pytest.mark.parametrize("op", [*PAIRS, "contrastive_idm", "soft_dtw_alignment"])
def test_errors(op):
    suffix = "" if op == "contrastive_idm" else "_x"
    inputs = (randn(N, T, 4),) if op == "contrastive_idm" else (randn(N, T, 4), randn(N, S, 4))
    loss, valid = getattr(fastseq, op), f"valid{suffix}"
    mask = torch.ones(N, T, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"{op}: pass lengths{suffix} or {valid}, not both"):
        loss(*inputs, **{valid: mask, f"lengths{suffix}": [1, 2, 3]})
    with pytest.raises(TypeError, match=f"{op}: {valid} must be a bool tensor"):
        loss(*inputs, **{valid: mask.float()})
    with pytest.raises(ValueError, match=rf"{op}: {valid} must have shape \(3, 9\)"):
        loss(*inputs, **{valid: mask[:, :-1]})


def test_tcc_takes_no_mask_of_a_y_that_is_not_there():
    with pytest.raises(ValueError, match="valid_y passed without y"):
        fastseq.tcc_loss(randn(N, T, 4), valid_y=masks()[1])


@pytest.mark.compile
def test_compiled_in_one_graph():
    x, y, (valid_x, valid_y) = randn(N, T, 4), randn(N, S, 4, seed=1), masks()

    def loss(x, valid_x):
        return fastseq.lav_loss(x, y, valid_x=valid_x, valid_y=valid_y)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, valid_x), loss(x, valid_x))
