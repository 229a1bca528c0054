"""lav_loss: both forms against loops, against their parts and against each other."""

import pytest
import torch
from tolerance import as_accurate_as

import fastseq
from ops.contrastive_idm.cases import brute_force
from ops.lav.cases import LENGTH_A, LENGTH_B, STEPS_A, STEPS_B, golden, released
from ops.soft_dtw.cases import recursion, squared

BACKENDS = ["reference", "torch", "auto"]
pytestmark = pytest.mark.usefixtures("nan_empty")


def unit(*shape, seed=0, dtype=torch.float64):
    z = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1).to(dtype)


def steps(high, *shape, seed=0):
    """Sorted frame indices, including gaps of exactly ten frames."""
    t = torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))
    t = t.sort(-1).values
    t[..., 1] = t[..., 0] + 10
    return t.sort(-1).values


def values_and_grads(x, y, *args, upstream=1.0, **kwargs):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = fastseq.lav_loss(x, y, *args, **kwargs)
    return (value.detach(), *torch.autograd.grad((value * upstream).sum(), (x, y)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_case_with_a_released_value(backend, dtype):
    a, b = golden(dtype)
    assert fastseq.soft_dtw(a, b, gamma=0.1).item() == pytest.approx(7.451766, abs=1e-5)
    got = fastseq.lav_loss(
        a,
        b,
        torch.tensor(STEPS_A),
        torch.tensor(STEPS_B),
        duration_x=LENGTH_A,
        duration_y=[LENGTH_B],
        form="code",
        backend=backend,
    )
    want = released(a[0], b[0], STEPS_A, STEPS_B, LENGTH_A, LENGTH_B)
    assert got.item() == pytest.approx(want, rel=1e-6)
    alone = fastseq.lav_loss(a, b, duration_x=6, duration_y=6, form="code", alpha=0.0)
    assert alone.item() == pytest.approx(7.451766 / 6, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_code_equals_the_released_formula(backend, dtype):
    """Gaps of exactly the window are on the side where the released float32 division puts them."""
    x, y = unit(3, 20, 16, dtype=dtype), unit(3, 20, 16, seed=1, dtype=dtype)
    tx, ty = steps(240, 3, 20), steps(200, 3, 20, seed=1)
    dx, dy = torch.tensor([240, 250, 263]), torch.tensor([207.0, 211.0, 300.0])
    kw = {"duration_x": dx, "duration_y": dy, "form": "code", "gamma": 0.2, "alpha": 0.3}
    got = fastseq.lav_loss(x, y, tx, ty, reduction="none", backend=backend, **kw)
    for n in range(3):
        args = x[n], y[n], tx[n], ty[n], float(dx[n]), float(dy[n])
        want = released(*args, gamma=0.2, alpha=0.3)
        assert got[n].item() == pytest.approx(want, rel=1e-5 if dtype == torch.float32 else 1e-12)
    mean = fastseq.lav_loss(x, y, tx, ty, backend=backend, **kw)
    total = fastseq.lav_loss(x, y, tx, ty, reduction="sum", backend=backend, **kw)
    torch.testing.assert_close(mean, got.mean())
    torch.testing.assert_close(total, got.sum())
    one = fastseq.lav_loss(
        x[0],
        y[0],
        tx[0],
        ty[0],
        reduction="none",
        backend=backend,
        **(kw | {"duration_x": 240, "duration_y": 207}),
    )
    assert one.shape == ()
    torch.testing.assert_close(one, got[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("divergence", [False, True])
def test_paper_equals_equation_8(backend, cost, divergence):
    x, y, lengths_x, lengths_y = unit(4, 9, 5), unit(4, 7, 5, seed=1), [9, 0, 4, 5], [7, 6, 0, 3]
    tx, ty = steps(40, 4, 9), steps(40, 4, 7, seed=1)
    kw = {"gamma": 0.3, "window": 6.0, "margin": 1.8}

    def align(a, b):
        c = squared(a, b) if cost == "sqeuclidean" else squared(a, b) / 2
        return recursion(c, 0.3)[0]

    want = []
    for n, (p, q) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        a, b = x[n, :p], y[n, :q]
        if p == 0 or q == 0:
            want.append(0.0)
            continue
        value = align(a, b) - (align(a, a) + align(b, b)) / 2 * divergence
        for z, t in ((a, tx[n, :p]), (b, ty[n, :q])):
            value += 0.7 * brute_force(z, t, window=6.0, margin=1.8)
        want.append(value)
    want = torch.tensor(want, dtype=torch.float64)
    kw |= {"lengths_x": lengths_x, "lengths_y": lengths_y, "alpha": 0.7, "cost": cost}
    kw |= {"divergence": divergence, "backend": backend}
    got = fastseq.lav_loss(x, y, tx, ty, reduction="none", **kw)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    mean = fastseq.lav_loss(x, y, tx, ty, **kw)
    torch.testing.assert_close(mean, want.sum() / 2, rtol=1e-9, atol=1e-9)  # two pairs count


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_backends_agree_and_padding_never_matters(form, reduction):
    x, y, lengths_x, lengths_y = unit(3, 40, 8), unit(3, 50, 8, seed=1), [40, 0, 13], [50, 7, 31]
    tx, ty = steps(300, 3, 40), steps(300, 3, 50, seed=1)
    kw = {"lengths_x": lengths_x, "lengths_y": lengths_y, "form": form, "reduction": reduction}
    kw |= {"duration_x": 300, "duration_y": torch.tensor([300, 310, 320])}
    upstream = torch.tensor([-2.0, 5.0, 0.5]) if reduction == "none" else -1.5
    want = values_and_grads(x, y, tx, ty, upstream=upstream, backend="reference", **kw)
    assert want[0].abs().sum() > 0
    assert (want[2][1] == 0).all()  # one side is empty, so the other one gets no gradient either
    bad = [
        z.masked_fill((torch.arange(z.shape[1]) >= torch.tensor(k)[:, None])[..., None], torch.nan)
        for z, k in ((x, lengths_x), (y, lengths_y))
    ]
    for backend in BACKENDS:
        got = values_and_grads(*bad, tx, ty, upstream=upstream, backend=backend, **kw)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_padding_does_not_change_the_total_of_code():
    x, y = unit(1, 20, 8), unit(1, 20, 8, seed=1)
    kw = {"duration_x": 100, "duration_y": 100, "form": "code"}
    short = fastseq.lav_loss(x[:, :12], y[:, :16], **kw)
    padded = fastseq.lav_loss(x, y, lengths_x=[12], lengths_y=[16], **kw)
    torch.testing.assert_close(short, padded)


def test_default_times_are_frame_indices():
    x, y = unit(2, 15, 8), unit(2, 12, 8, seed=1)
    tx, ty = torch.arange(15), torch.arange(12).expand(2, 12)
    for kw in ({}, {"form": "code", "duration_x": 15, "duration_y": 12}):
        torch.testing.assert_close(
            fastseq.lav_loss(x, y, **kw), fastseq.lav_loss(x, y, tx, ty, **kw)
        )
    # Frames are spread evenly over the video, so only the unit of the window differs.
    a = fastseq.lav_loss(x, y, form="code", duration_x=15, duration_y=12, window=3)
    b = fastseq.lav_loss(
        x, y, tx * 8, ty * 8, form="code", duration_x=120, duration_y=96, window=24
    )
    torch.testing.assert_close(a, b)


def test_reference_is_differentiable_twice_and_the_others_say_that_they_are_not():
    x, y = unit(1, 4, 3).requires_grad_(), unit(1, 5, 3, seed=1).requires_grad_()
    kw = {"form": "code", "duration_x": 40, "duration_y": 50}

    def loss(a, b, backend="reference"):
        return fastseq.lav_loss(
            a, b, torch.arange(4) * 9, torch.arange(5) * 9, backend=backend, **kw
        )

    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y))
    for backend in ("torch", "auto"):
        (dx,) = torch.autograd.grad(loss(x, y, backend), x, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            dx.square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["paper", "code"])
def test_nothing_real_gives_zero(backend, form):
    kw = {"form": form, "duration_x": 10, "duration_y": 10, "backend": backend}
    for num, n, m, lengths in (
        (0, 4, 4, None),
        (2, 0, 4, None),
        (2, 4, 0, None),
        (2, 4, 4, [0, 0]),
    ):
        value, dx, dy = values_and_grads(unit(num, n, 3), unit(num, m, 3), lengths_x=lengths, **kw)
        assert value == 0
        assert (dx == 0).all()
        assert (dy == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype):
    x, y = unit(2, 20, 16, dtype=dtype), unit(2, 20, 16, seed=1, dtype=dtype)
    kw = {"form": "code", "duration_x": 200, "duration_y": 200}
    got, plain = (values_and_grads(x, y, backend=b, **kw) for b in ("auto", "reference"))
    want = values_and_grads(x.double(), y.double(), backend="reference", **kw)
    assert (got[0].dtype, got[1].dtype) == (torch.float32, dtype)
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_autocast_changes_nothing(backend):
    x, y = unit(2, 20, 16, dtype=torch.float32), unit(2, 20, 16, seed=1, dtype=torch.float32)
    kw = {"form": "code", "duration_x": 200, "duration_y": 200, "backend": backend}
    want = fastseq.lav_loss(x, y, **kw)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastseq.lav_loss(x, y, **kw) == want


@pytest.mark.compile
@pytest.mark.parametrize("form", ["paper", "code"])
def test_compiled_equals_eager(form):
    x, y = unit(2, 20, 8, dtype=torch.float32), unit(2, 18, 8, seed=1, dtype=torch.float32)
    tx, ty = steps(200, 2, 20), steps(200, 2, 18)
    durations = {"duration_x": torch.tensor([200, 210]), "duration_y": 205}

    def train(a, b):
        kw = {"lengths_x": torch.tensor([20, 9]), "backend": "torch", **durations}
        return fastseq.lav_loss(a * 2, b, tx, ty, form=form, **kw)

    def both(function):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss = function(a, b)
        return (loss, *torch.autograd.grad(loss, (a, b)))

    torch._dynamo.reset()
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    for want, got in zip(both(train), both(compiled), strict=True):
        assert torch.equal(want, got)


def test_module_and_repr():
    x, y = unit(2, 8, 4), unit(2, 8, 4, seed=1)
    module = fastseq.nn.LAVLoss(form="code", alpha=0.2, backend="torch")
    kw = {"duration_x": 80, "duration_y": 90, "lengths_x": [8, 3]}
    want = fastseq.lav_loss(x, y, form="code", alpha=0.2, backend="torch", **kw)
    assert module(x, y, **kw) == want
    assert "alpha=0.2" in repr(module)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"y": torch.zeros(3, 4, 3)}, ValueError, "x and y must agree in N and D"),
        ({"form": "code"}, ValueError, "form='code' needs duration_x"),
        ({"form": "code", "duration_x": 5}, ValueError, "needs duration_y"),
        ({"form": "code", "duration_x": [1, 2, 3], "duration_y": 4}, ValueError, r"shape \(2,\)"),
        ({"form": "code", "duration_x": 0, "duration_y": 4}, ValueError, "duration_x must"),
        ({"form": "eq8"}, ValueError, "'paper', 'code'"),
        ({"alpha": -1}, ValueError, "alpha must be finite and at least 0"),
        ({"gamma": 0}, ValueError, "gamma"),
        ({"window": torch.ones(2)}, TypeError, "window must be a"),
        ({"cost": "l1"}, ValueError, "'sqeuclidean', 'cosine'"),
        ({"divergence": 1}, TypeError, "True or False"),
        ({"tx": torch.arange(3)}, ValueError, "tx must have shape"),
        ({"lengths_y": [5, 1]}, ValueError, "between 0 and T = 4"),
        ({"reduction": "avg"}, ValueError, "'none', 'mean', 'sum'"),
        ({"backend": "triton"}, ValueError, "unknown backend 'triton'"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.lav_loss(**({"x": torch.zeros(2, 4, 3), "y": torch.zeros(2, 4, 3)} | change))
