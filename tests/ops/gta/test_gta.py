"""gta_loss: against the released form in loops, ragged pairs, gradients, collapse."""

import math

import pytest
import torch
from tolerance import as_accurate_as

import fastseq
from ops.gta.cases import released_gta
from ops.soft_dtw.cases import EVERY, backends, randn

MINIMA = pytest.mark.parametrize("softmin", ["prob", "logsumexp"])
TERMS = pytest.mark.parametrize("consistency", [True, False])
DOUBLE = torch.float64


def frames(num, t, d=6, seed=0):
    """Of norms other than 1: the loss normalises."""
    return randn(num, t, d, seed=seed, dtype=DOUBLE) * 3


def value_and_grads(x, y, upstream=1.0, **kwargs):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = fastseq.gta_loss(x, y, **kwargs)
    return (value.detach(), *torch.autograd.grad((value * upstream).sum(), (x, y)))


def backend_for(backend, consistency):
    """Without the cross-entropy the backends are those of soft_dtw."""
    return backend if consistency or backend == "reference" else "auto"


@backends(EVERY)
@MINIMA
@TERMS
def test_equals_the_released_formula(backend, softmin, consistency):
    x, y = frames(3, 9), frames(3, 7, seed=1)
    options = {"gamma": 0.2, "temperature": 0.3, "softmin": softmin, "consistency": consistency}
    for smoothing in (0.0, 0.1):
        options["label_smoothing"] = smoothing
        got = fastseq.gta_loss(
            x, y, reduction="none", backend=backend_for(backend, consistency), **options
        )
        want = [released_gta(a, b, **options) for a, b in zip(x, y, strict=True)]
        assert got.tolist() == pytest.approx(want, rel=1e-9)


def test_default_options_are_the_released_ones():
    x, y = frames(2, 20, 16), frames(2, 20, 16, seed=1)
    want = [released_gta(a, b) for a, b in zip(x, y, strict=True)]
    assert fastseq.gta_loss(x, y).item() == pytest.approx(sum(want) / 2, rel=1e-9)
    assert fastseq.gta_loss(x, y, reduction="sum").item() == pytest.approx(sum(want), rel=1e-9)
    one = fastseq.gta_loss(x[0], y[0], reduction="none")
    assert (one.shape, one.item()) == ((), pytest.approx(want[0], rel=1e-9))


@backends(EVERY)
@TERMS
def test_ragged_pairs_equal_pairs_alone(backend, consistency):
    x, y, upstream = frames(5, 6), frames(5, 5, seed=1), torch.tensor([1.0, -2.0, 1.0, 1.0, 3.0])
    real_x, real_y = [6, 4, 0, 3, 1], [5, 2, 3, 0, 4]
    # Real frames in random places, and NaN in the others.
    valid = []
    for z, real in ((x, real_x), (y, real_y)):
        places = torch.stack([torch.randperm(z.shape[1]) for _ in real])
        valid.append(places < torch.tensor(real)[:, None])
        z[~valid[-1]] = torch.nan
    options = {"backend": backend_for(backend, consistency), "consistency": consistency}
    options["reduction"] = "none"
    masks = {"valid_x": valid[0], "valid_y": valid[1]}
    got, dx, dy = value_and_grads(x, y, upstream, **masks, **options)
    for n, (a, b) in enumerate(zip(x, y, strict=True)):
        pair = a[valid[0][n]], b[valid[1][n]]
        if 0 in (real_x[n], real_y[n]):
            assert got[n] == 0
            assert not dx[n].any()
            assert not dy[n].any()
            continue
        want, *grads = value_and_grads(*pair, upstream[n].item(), **options)
        torch.testing.assert_close(got[n], want)
        torch.testing.assert_close((dx[n][valid[0][n]], dy[n][valid[1][n]]), tuple(grads))
        assert not dx[n][~valid[0][n]].any()
        assert not dy[n][~valid[1][n]].any()
    mean = fastseq.gta_loss(x, y, **masks, **options | {"reduction": "mean"})
    torch.testing.assert_close(mean, got.sum() / 3)
    order = [(~m).byte().argsort(stable=True, dim=1) for m in valid]
    first = [z.gather(1, o[:, :, None].expand_as(z)) for z, o in zip((x, y), order, strict=True)]
    lengths = fastseq.gta_loss(*first, lengths_x=real_x, lengths_y=real_y, **options)
    torch.testing.assert_close(lengths, got)


@backends(EVERY)
@TERMS
def test_gradcheck(backend, consistency):
    x, y = frames(2, 4, 3).requires_grad_(), frames(2, 3, 3, seed=1).requires_grad_()

    def loss(a, b):
        options = {"backend": backend_for(backend, consistency), "gamma": 0.5, "temperature": 0.5}
        return fastseq.gta_loss(a, b, lengths_x=[4, 2], consistency=consistency, **options)

    assert torch.autograd.gradcheck(loss, (x, y))
    if backend == "reference":
        assert torch.autograd.gradgradcheck(loss, (x, y), fast_mode=True)


@backends(EVERY)
def test_dtypes(backend):
    x, y = frames(2, 30), frames(2, 25, seed=1)
    truth = value_and_grads(x, y, backend="reference")
    for dtype in (torch.float32, torch.bfloat16):
        halves = [z.to(dtype) for z in (x, y)]
        got = value_and_grads(*halves, backend=backend)
        assert [t.dtype for t in got] == [torch.float32, dtype, dtype]
        if dtype == torch.float32:
            as_accurate_as(got, value_and_grads(*halves, backend="reference"), truth)
    with torch.autocast("cpu"):
        again = value_and_grads(x.float(), y.float(), backend=backend)
    assert torch.equal(again[0], value_and_grads(x.float(), y.float(), backend=backend)[0])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
@TERMS
def test_empty(shape, consistency):
    num, t, s = shape
    x, y = frames(num, t).requires_grad_(), frames(num, s).requires_grad_()
    loss = fastseq.gta_loss(x, y, consistency=consistency)
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    assert not y.grad.any()


def test_one_frame_has_nothing_to_compare():
    """Each softmax over the frames of x has one entry."""
    x, y = frames(1, 1), frames(1, 1, seed=1)
    assert fastseq.gta_loss(x, y).item() == pytest.approx(0, abs=1e-12)
    y = frames(1, 3)
    assert fastseq.gta_loss(x, y).item() == pytest.approx(released_gta(x[0], y[0]))


@TERMS
def test_constant_embeddings_are_far_from_the_minimum(consistency):
    """All costs are log T; the best alignment has costs near 0."""
    t, options = 20, {"consistency": consistency, "label_smoothing": 0.0}
    constant = torch.ones(1, t, 32, dtype=DOUBLE)
    aligned = torch.eye(32, dtype=DOUBLE)[None, :t]
    collapsed = fastseq.gta_loss(constant, constant, **options).item()
    ends = 0.2 * t * math.log(t)  # T costs along the diagonal, both ways, weight 0.1
    ce = math.log(t) if consistency else 0
    assert collapsed >= ends
    assert collapsed <= ends * 1.1 + ce + 0.1
    best = fastseq.gta_loss(aligned, aligned, **options).item()
    assert best <= 0.01 + (math.log(t - 1 + math.e) - 1 if consistency else 0)
    x = constant.clone().requires_grad_()
    (fastseq.gta_loss(x, aligned, **options)).backward()
    assert x.grad.abs().max() > 1e-3  # other videos pull constant frames apart


def test_wrong_arguments():
    x, y = frames(2, 4), frames(2, 3)
    for error, kwargs, text in [
        (TypeError, {"x": None}, "x must be a torch.Tensor"),
        (ValueError, {"y": y[:1]}, "x and y must agree in N and D"),
        (ValueError, {"gamma": 0.0}, "gamma must be"),
        (ValueError, {"temperature": -1.0}, "temperature must be"),
        (ValueError, {"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        (TypeError, {"consistency": 1}, "consistency must be True or False"),
        (ValueError, {"softmin": "min"}, "softmin must be one of"),
        (ValueError, {"reduction": "max"}, "reduction must be one of"),
        (ValueError, {"lengths_y": [4, 1]}, "lengths_y must lie between 0 and T = 3"),
        (ValueError, {"backend": "cuda"}, "unknown backend 'cuda'"),
    ]:
        with pytest.raises(error, match=rf"^gta_loss: {text}"):
            fastseq.gta_loss(**{"x": x, "y": y} | kwargs)


def test_module():
    x, y = frames(2, 6), frames(2, 5)
    loss = fastseq.nn.GTALoss(gamma=0.2, label_smoothing=0.0, reduction="none")
    want = fastseq.gta_loss(
        x, y, gamma=0.2, label_smoothing=0.0, reduction="none", lengths_x=[6, 3]
    )
    assert torch.equal(loss(x, y, lengths_x=[6, 3]), want)
    assert "label_smoothing=0.0" in repr(loss)
    with pytest.raises(ValueError, match=r"^GTALoss: gamma must be"):
        fastseq.nn.GTALoss(gamma=-1.0)
