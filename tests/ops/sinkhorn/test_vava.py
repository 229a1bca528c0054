"""vava_loss: the released loss, its terms, gradients, padding, and the module."""

import pytest
import torch
import torch.nn.functional as F

import fastseq
from fastseq.nn import VAVALoss
from fastseq.ops.sinkhorn import vava_phi
from fastseq.ops.sinkhorn.matches import nearest
from ops.sinkhorn.cases import randn, released_loss, released_transport, units


@pytest.mark.parametrize("step", [0, 20_000, 4_000_000])
@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("frames", [20, 33])
def test_code_equals_the_released_loss(step, backend, frames):
    x, y = (randn(2, frames, 16, seed=k).requires_grad_() for k in range(2))
    want = torch.stack([released_loss(a, b, step) for a, b in zip(x, y, strict=True)])
    kw = {"phi": vava_phi(step), "form": "code", "reduction": "none", "backend": backend}
    got = fastseq.vava_loss(x, y, **kw)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    for a, b in zip(*(torch.autograd.grad(v.sum(), (x, y)) for v in (got, want)), strict=True):
        assert (a - b).norm() <= 1e-10 * b.norm()


@pytest.mark.parametrize("step", [0, 4_000_000])
def test_code_equals_the_released_transport(step):
    """Also for unequal lengths, for which the released matches are undefined, and its gradient."""
    x, y = randn(20, 16).requires_grad_(), randn(28, 16, seed=1).requires_grad_()
    want = released_transport(x, y, step)[0] / (20 * 28)
    got = fastseq.vava_loss(x, y, phi=vava_phi(step), form="code", intra=0, inter=0)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    for a, b in zip(*(torch.autograd.grad(v, (x, y)) for v in (got, want)), strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()


def test_schedule():
    assert vava_phi(0) == 0.999
    assert vava_phi(99) == 0.999**10
    assert vava_phi(10**12) == 0.001


def definition(x, y, phi):
    """form="paper" of one pair, dense, from the docstring's formula with its defaults."""
    n, m = len(x) + 1, len(y) + 1
    cost = (x[:, None] - y).square().sum(2)
    place = torch.cat([torch.zeros(1, dtype=torch.int64), cost.argmin(1) + 1])
    a, b = torch.arange(1, n + 1)[:, None].double() / n, torch.arange(1, m + 1).double() / m
    gaps = (a - b).square(), (b[place][:, None] - b).square()
    width = 2 * 2.0**2 * (1 / n**2 + 1 / m**2)
    shares = phi, 1 - phi
    log_q = sum(s * torch.exp(-g / width) for s, g in zip(shares, gaps, strict=True)).log()
    s = sum(k / (g + 1) for k, g in zip(shares, gaps, strict=True))
    far = torch.tensor((15.0 / (n + m)) ** 2).double()
    for part, value in ((log_q, -far / width), (s, 1 / (far + 1))):
        part[0, 1:] = part[1:, 0] = value
    costs = F.pad(cost, (1, 0, 1, 0), value=0.5)
    kernel = ((s - costs) / 0.1 + log_q).exp()
    u = torch.full((n,), 1 / n, dtype=x.dtype)
    for _ in range(21):
        v = 1 / m / (kernel.T @ u)
        u = 1 / n / (kernel @ v)
    plan = u[:, None] * kernel * v

    def within(z):
        gap = (torch.arange(len(z))[:, None] - torch.arange(len(z))).double()
        d = (z[:, None] - z).square().sum(2)
        return torch.where(gap.abs() > 15, torch.relu(2 - d), d / (gap**2 + 1)).mean()

    real = plan[1:, 1:]

    def matched(rows, columns):
        d = (x - y[rows]).square().mean() + (y - x[columns]).square().mean()
        return d / 0.5

    best = matched(real.argmax(1), real.argmax(0))
    worst = matched(real.argmin(1), real.argmin(0))
    return (plan * costs).sum() + 0.5 * (within(x) + within(y)) + 1e-4 * F.softplus(best - worst)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("phi", [1.0, 0.999, 0.4, 0.0])
def test_paper_equals_its_definition(backend, phi):
    lengths_x, lengths_y = [22, 9], [18, 25]
    x, y = units(2, 22, 8), units(2, 25, 8, seed=1)
    for k in range(2):
        x[k, lengths_x[k] :], y[k, lengths_y[k] :] = torch.nan, torch.nan
    x.requires_grad_()
    y.requires_grad_()
    lengths = {"lengths_x": lengths_x, "lengths_y": lengths_y}
    kw = {"phi": phi, "reduction": "none", "backend": backend}
    got = fastseq.vava_loss(x, y, **lengths, **kw)
    dx, dy = torch.autograd.grad(got.sum(), (x, y))
    for k, (n, m) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        a, b = (z.detach().clone().requires_grad_() for z in (x[k, :n], y[k, :m]))
        want = definition(a, b, phi)
        torch.testing.assert_close(got[k], want, rtol=1e-10, atol=0)
        for part, right in zip((dx[k], dy[k]), torch.autograd.grad(want, (a, b)), strict=True):
            assert (part[: len(right)] - right).norm() <= 1e-9 * right.norm()
            assert not part[len(right) :].any()


def test_gradcheck():
    x, y = units(2, 5, 2).requires_grad_(), units(2, 4, 2, seed=1).requires_grad_()
    kw = {"phi": 0.7, "epsilon": 0.5, "iterations": 2, "lengths_x": [5, 3], "window": 2.0}
    # The matches are constants of the gradient, and a step of 1e-6 changes none of them.
    torch.autograd.gradcheck(lambda a, b: fastseq.vava_loss(a, b, inter=0.5, **kw), (x, y))


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("shape_x", [(2, 6, 3), (2, 0, 3), (0, 6, 3)])
def test_empty_sides(form, shape_x):
    x = units(*shape_x).requires_grad_()
    y = units(shape_x[0], 5, 3, seed=1).requires_grad_()
    lengths = [0, 6] if shape_x == (2, 6, 3) else None
    values = fastseq.vava_loss(x, y, form=form, phi=0.5, lengths_x=lengths, reduction="none")
    dx, dy = torch.autograd.grad(values.sum(), (x, y))
    if lengths is None:
        assert not values.any()
        assert not dx.any()
        assert not dy.any()
    else:
        assert values[0] == 0
        assert not dx[0].any()
        assert not dy[0].any()
        assert values[1] > 0
        assert dx[1].any()
        assert dy[1].any()
        assert fastseq.vava_loss(x, y, form=form, phi=0.5, lengths_x=lengths) == values[1]


def test_collapse_costs_the_margin():
    """Collapsed embeddings pay the hinge of C, and only that and the matches' log 2."""
    x = torch.ones(1, 40, 3, dtype=torch.float64)
    far = (torch.arange(40)[:, None] - torch.arange(40)).abs() > 15
    loss = fastseq.vava_loss(x, x, virtual_cost=0.0)
    hinge = 2 * far.double().mean()
    torch.testing.assert_close(loss, hinge + 1e-4 * torch.tensor(2.0).double().log())


@pytest.mark.parametrize("offset", [0, 100])
def test_nearest_frames(monkeypatch, offset):
    from fastseq.ops.sinkhorn import matches

    monkeypatch.setattr(matches, "BLOCK", 20)
    x, y = randn(2, 9, 4) + offset, randn(2, 7, 4, seed=1) + offset
    y[0, 3:] = torch.nan
    found = nearest(x, y, None, torch.tensor([3, 7]))
    for k, m in enumerate((3, 7)):
        assert torch.equal(found[k], torch.cdist(x[k], y[k, :m]).argmin(1))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"phi": 1.5}, "phi must lie between 0 and 1, got 1.5"),
        ({"form": "released"}, "'paper', 'code'"),
        ({"iterations": 0}, "iterations must lie between"),
        ({"window": -1}, "window must be"),
        ({"temperature": 0}, "temperature must be"),
        ({"lengths_y": [4, 9]}, "lengths_y must lie between 0 and T = 4, got 9"),
    ],
)
def test_wrong_input(change, text):
    z = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=f"^vava_loss: .*{text}"):
        fastseq.vava_loss(z, z, **change)


def test_module_passes_everything_on():
    x, y = units(2, 22, 3), units(2, 20, 3, seed=1)
    options = {
        "phi": 0.3,
        "epsilon": 0.3,
        "iterations": 7,
        "structure": 0.5,
        "prior_width": 3.0,
        "virtual_cost": 0.2,
        "virtual_distance": 3.0,
        "window": 4.0,
        "margin": 1.5,
        "intra": 0.7,
        "inter": 0.3,
        "temperature": 0.9,
        "form": "code",
        "reduction": "sum",
        "backend": "reference",
    }
    loss, lengths = VAVALoss(**options), {"lengths_x": [22, 18]}
    want = fastseq.vava_loss(x, y, **lengths, **options)
    assert torch.equal(loss(x, y, **lengths), want)
    other = fastseq.vava_loss(x, y, **lengths, **(options | {"phi": 0.8}))
    assert torch.equal(loss(x, y, phi=0.8, **lengths), other)
    assert other != want
    with pytest.raises(ValueError, match="VAVALoss: phi"):
        VAVALoss(phi=2.0)
