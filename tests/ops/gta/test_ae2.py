"""ae2_loss: against the released form in loops, AE2's own values, ragged pairs, collapse."""

import math

import pytest
import torch
from torch.nn.functional import normalize

import fastseq
from ops.gta.cases import released_ae2, table
from ops.soft_dtw.cases import randn

BACKENDS = pytest.mark.parametrize("backend", ["auto", "reference"])
DOUBLE = torch.float64


def frames(num, t, d=6, seed=0):
    """Of norms other than 1: the loss normalises."""
    return randn(num, t, d, seed=seed, dtype=DOUBLE) * 3


def value_and_grads(x, y, upstream=1.0, **kwargs):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = fastseq.ae2_loss(x, y, **kwargs)
    return (value.detach(), *torch.autograd.grad((value * upstream).sum(), (x, y)))


@BACKENDS
def test_values_that_the_released_code_prints(backend):
    """Without the hinge and with scale 1 the loss is one Soft-DTW value."""
    torch.manual_seed(0)
    options = {"scale": 1.0, "ratio": 0.0, "backend": backend}
    for t, want, prob in ((32, 116.1397, 116.2172), (64, 270.2760, 270.3965)):
        x, y = (normalize(torch.randn(1, t, 128), dim=-1) for _ in range(2))
        value = fastseq.ae2_loss(x, y, softmin="logsumexp", **options).item()
        assert value == pytest.approx(want, abs=1e-3)
        assert fastseq.ae2_loss(x, y, **options).item() == pytest.approx(prob, abs=1e-3)
        assert table(x[0], y[0], softmin="logsumexp")[-1, -1] == pytest.approx(want, abs=1e-3)


@BACKENDS
@pytest.mark.parametrize("softmin", ["prob", "logsumexp"])
def test_equals_the_released_formula(backend, softmin):
    x, y = frames(4, 9), frames(4, 7, seed=1)
    generator = torch.Generator().manual_seed(0)
    subset_x, subset_y = (torch.rand(4, t, generator=generator) < 0.6 for t in (9, 7))
    options = {"gamma": 0.2, "temperature": 0.3, "softmin": softmin}
    options |= {"margin": 0.1, "ratio": 2.0, "scale": 0.05}
    for masks in ((None, None), (subset_x, subset_y), (subset_x, None), (None, subset_y)):
        got = fastseq.ae2_loss(
            x, y, subset_x=masks[0], subset_y=masks[1], reduction="none", backend=backend, **options
        )
        chosen = [[None] * 4 if mask is None else mask for mask in masks]
        want = [released_ae2(*pair, **options) for pair in zip(x, y, *chosen, strict=True)]
        assert got.tolist() == pytest.approx(want, rel=1e-9)


def test_default_options_are_the_released_ones():
    x, y = frames(2, 16, 8), frames(2, 16, 8, seed=1)
    want = [released_ae2(a, b) for a, b in zip(x, y, strict=True)]
    assert fastseq.ae2_loss(x, y).item() == pytest.approx(sum(want) / 2, rel=1e-9)
    assert fastseq.ae2_loss(x, y, reduction="sum").item() == pytest.approx(sum(want), rel=1e-9)
    one = fastseq.ae2_loss(x[0], y[0], reduction="none")
    assert (one.shape, one.item()) == ((), pytest.approx(want[0], rel=1e-9))


def ramp(t):
    """A video whose similarities decrease with the distance in time."""
    angle = torch.linspace(0, 3, t, dtype=DOUBLE)
    return torch.stack([angle.cos(), angle.sin()], -1)[None]


@BACKENDS
def test_the_hinge_is_active_for_a_reversed_video_only(backend):
    x, y = ramp(12), ramp(10)
    for other, active in ((y, False), (y.flip(1), True)):
        with_hinge = fastseq.ae2_loss(x, other, backend=backend).item()
        without = fastseq.ae2_loss(x, other, ratio=0.0, backend=backend).item()
        assert (with_hinge > without) == active
        # The value of the pair in its other order of time is the baseline of the hinge.
        flipped = fastseq.ae2_loss(x, other.flip(1), ratio=0.0, backend=backend).item()
        assert with_hinge - without == pytest.approx(max(without - flipped, 0), abs=1e-12)


@BACKENDS
@pytest.mark.parametrize("subset", [False, True])
def test_ragged_pairs_equal_pairs_alone(backend, subset):
    """The reversal leaves padding in its place, and each pair compares its real frames only."""
    x, y, upstream = frames(5, 6), frames(5, 5, seed=1), torch.tensor([1.0, -2.0, 1.0, 1.0, 3.0])
    real_x, real_y = [6, 4, 0, 3, 1], [5, 2, 3, 0, 4]
    valid, places = [], []
    for z, real in ((x, real_x), (y, real_y)):
        places.append(torch.stack([torch.randperm(z.shape[1]) for _ in real]))
        valid.append(places[-1] < torch.tensor(real)[:, None])
        z[~valid[-1]] = torch.nan
    options = {"backend": backend, "margin": 0.05, "reduction": "none"}
    masks = {"valid_x": valid[0], "valid_y": valid[1]}
    if subset:  # it also covers padding, which stays out
        masks |= {"subset_x": places[0] != 2, "subset_y": places[1] != 1}
    got, dx, dy = value_and_grads(x, y, upstream, **masks, **options)
    for n, (a, b) in enumerate(zip(x, y, strict=True)):
        own = valid[0][n], valid[1][n]
        if 0 in (real_x[n], real_y[n]):
            assert got[n] == 0
            assert not dx[n].any()
            assert not dy[n].any()
            continue
        parts = {}
        if subset:
            parts = {"subset_x": masks["subset_x"][n][own[0]]}
            parts["subset_y"] = masks["subset_y"][n][own[1]]
        want, *grads = value_and_grads(a[own[0]], b[own[1]], upstream[n].item(), **parts, **options)
        torch.testing.assert_close(got[n], want)
        torch.testing.assert_close((dx[n][own[0]], dy[n][own[1]]), tuple(grads))
        assert not dx[n][~own[0]].any()
        assert not dy[n][~own[1]].any()
    mean = fastseq.ae2_loss(x, y, **masks, **options | {"reduction": "mean"})
    torch.testing.assert_close(mean, got.sum() / 3)
    order = [(~m).byte().argsort(stable=True, dim=1) for m in valid]
    first = [z.gather(1, o[:, :, None].expand_as(z)) for z, o in zip((x, y), order, strict=True)]
    if not subset:
        lengths = fastseq.ae2_loss(*first, lengths_x=real_x, lengths_y=real_y, **options)
        torch.testing.assert_close(lengths, got)


@BACKENDS
def test_gradcheck(backend):
    x, y = frames(2, 4, 3).requires_grad_(), frames(2, 3, 3, seed=1).requires_grad_()
    options = {"gamma": 0.5, "temperature": 0.5, "margin": 5.0, "backend": backend}

    def loss(a, b):
        return fastseq.ae2_loss(a, b, lengths_x=[4, 2], **options)

    assert torch.autograd.gradcheck(loss, (x, y))
    if backend == "reference":
        assert torch.autograd.gradgradcheck(loss, (x, y), fast_mode=True)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty(shape):
    num, t, s = shape
    x, y = frames(num, t).requires_grad_(), frames(num, s).requires_grad_()
    loss = fastseq.ae2_loss(x, y, margin=1.0)
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    assert not y.grad.any()


def test_one_frame_and_an_empty_subset():
    x, y = frames(1, 1), frames(1, 1, seed=1)
    assert fastseq.ae2_loss(x, y, margin=0.5).item() == pytest.approx(0.5)
    x, y = frames(1, 4), frames(1, 3, seed=1)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    half = fastseq.ae2_loss(x, y, subset_x=nothing).item()
    assert half == pytest.approx(fastseq.ae2_loss(x, y, ratio=0.0).item() / 2)


def test_constant_embeddings_are_far_from_the_minimum():
    """All costs are log T, and the hinge is at its margin: both orders of time are equal."""
    t = 32
    constant, aligned = torch.ones(1, t, 32, dtype=DOUBLE), torch.eye(32, dtype=DOUBLE)[None]
    collapsed = fastseq.ae2_loss(constant, constant, margin=0.25).item()
    ends = 0.01 * t * math.log(t)
    assert ends + 0.25 <= collapsed <= 1.1 * ends + 0.25
    assert fastseq.ae2_loss(aligned, aligned).item() < 1e-3
    x = constant.clone().requires_grad_()
    fastseq.ae2_loss(x, aligned).backward()
    assert x.grad.abs().max() > 1e-5  # other videos pull constant frames apart


def test_dtypes():
    x, y = frames(2, 12), frames(2, 9, seed=1)
    truth = fastseq.ae2_loss(x, y)
    for dtype in (torch.float32, torch.bfloat16):
        value, *grads = value_and_grads(x.to(dtype), y.to(dtype))
        assert value.dtype == torch.float32
        assert [g.dtype for g in grads] == [dtype, dtype]
        torch.testing.assert_close(value.double(), truth, rtol=torch.finfo(dtype).eps * 4, atol=0)


def test_wrong_arguments():
    x, y = frames(2, 4), frames(2, 3)
    for error, kwargs, text in [
        (TypeError, {"x": None}, "x must be a torch.Tensor"),
        (ValueError, {"y": y[:1]}, "x and y must agree in N and D"),
        (ValueError, {"gamma": 0.0}, "gamma must be"),
        (ValueError, {"temperature": -1.0}, "temperature must be"),
        (ValueError, {"margin": -1.0}, "margin must be"),
        (ValueError, {"ratio": -1.0}, "ratio must be"),
        (ValueError, {"scale": 0.0}, "scale must be"),
        (ValueError, {"softmin": "min"}, "softmin must be one of"),
        (ValueError, {"reduction": "max"}, "reduction must be one of"),
        (ValueError, {"valid_x": torch.ones(2, 5, dtype=torch.bool)}, "valid_x must have shape"),
        (TypeError, {"subset_x": torch.ones(2, 4)}, "subset_x must be a bool tensor"),
        (ValueError, {"subset_y": torch.ones(2, 4) > 0}, r"subset_y must have shape \(2, 3\)"),
        (ValueError, {"backend": "triton"}, "unknown backend 'triton'"),
    ]:
        with pytest.raises(error, match=rf"^ae2_loss: {text}"):
            fastseq.ae2_loss(**{"x": x, "y": y} | kwargs)


def test_module():
    x, y = frames(2, 6), frames(2, 5)
    subset = torch.arange(6).remainder(2)[None].expand(2, 6) == 0
    loss = fastseq.nn.AE2Loss(gamma=0.2, ratio=3.0, reduction="none")
    options = {"subset_x": subset, "lengths_y": [5, 3]}
    want = fastseq.ae2_loss(x, y, gamma=0.2, ratio=3.0, reduction="none", **options)
    assert torch.equal(loss(x, y, **options), want)
    assert "ratio=3.0" in repr(loss)
    with pytest.raises(ValueError, match=r"^AE2Loss: scale must be"):
        fastseq.nn.AE2Loss(scale=0.0)
