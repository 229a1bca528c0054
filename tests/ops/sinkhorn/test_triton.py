"""The Triton kernels of sinkhorn_alignment against float64, interpreted where there is no GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted

import fastseq
from fastseq.ops.sinkhorn import op as sinkhorn_op
from fastseq.ops.sinkhorn import triton as sinkhorn_triton
from fastseq.ops.sinkhorn.options import Numbers, SinkhornOptions
from fastseq.ops.sinkhorn.triton import Tiles

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread"),
    # NumPy warns about infinities, which places without a frame contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(randn(*shape, seed=seed), dim=-1)


def run(x, y, centres=None, lengths_x=None, lengths_y=None, *, dtype, backend, **numbers):
    """Values and both gradients for different upstream gradients, by the backends' contract."""
    numbers = {name: number for name, number in numbers.items() if number is not None}
    opts = SinkhornOptions(numbers.pop("iterations", 3), "virtual_cost" in numbers)
    double = torch.float64 if dtype == torch.float64 else torch.float32
    lengths = [
        torch.full((len(z),), z.shape[1]) if n is None else torch.as_tensor(n)
        for n, z in ((lengths_x, x), (lengths_y, y))
    ]
    n, m = ((n.double() + opts.virtual).clamp(min=1) for n in lengths)
    plain = {
        "inverse_epsilon": 1 / numbers.pop("epsilon", 0.1),
        "step_a": 1 / n,
        "step_b": 1 / m,
        "rate": 0.0,
        "kappa": 0.0,
        "phi": 1.0,
        "virtual_cost": 0.0,
        "log_virtual": 0.0,
    }
    pairs = Numbers(**plain | numbers).stacked(len(x), double, x.device)
    x, y = (z.to(dtype).to(DEVICE).requires_grad_() for z in (x, y))
    rest = [None if centres is None else centres.to(double), *lengths, pairs]
    if lengths_x is None:
        rest[1] = None
    rest = [None if t is None else t.to(DEVICE) for t in rest]
    value = sinkhorn_op.FUSED["sinkhorn_alignment"](backend, opts, x, y, *rest)
    upstream = torch.linspace(1, -2, len(x), dtype=value.dtype, device=DEVICE)
    return value, *torch.autograd.grad((value * upstream).sum(), (x, y))


def check(x, y, *args, dtype=torch.float32, grad=None, **kwargs):
    """Asserts that Triton in ``dtype`` is as accurate as the reference in it, on the same rounded
    inputs; ``grad`` replaces the floor of the gradients.
    """
    x, y = x.to(dtype), y.to(dtype)
    got = run(x, y, *args, dtype=dtype, backend="triton", **kwargs)
    plain = run(x, y, *args, dtype=dtype, backend="reference", **kwargs)
    want = run(x, y, *args, dtype=torch.float64, backend="reference", **kwargs)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == got[2].dtype == dtype
    as_accurate_as(got[0], plain[0], want[0])
    as_accurate_as(got[1:], plain[1:], want[1:], floor=grad, what=("dx", "dy"))
    return got


VAVA = {"rate": 3.0, "kappa": 0.3, "phi": 0.7}


@pytest.mark.parametrize(
    ("virtual", "two_priors", "epsilon"),
    [(False, False, 0.1), (False, True, 0.01), (True, False, 0.01), (True, True, 0.1)],
)
def test_kinds(virtual, two_priors, epsilon):
    """Two blocks of rows and of columns, whole and empty pairs, and every term of the scores."""
    x, y = unit(4, 70, 17), unit(4, 65, 17, seed=1)
    numbers = {"epsilon": epsilon, "rate": 2.0}
    if virtual:
        numbers |= {"virtual_cost": 0.5, "log_virtual": -0.2}
    centres = None
    if two_priors:
        numbers |= VAVA
        centres = torch.rand(4, 70, dtype=torch.float64)
    got = check(x, y, centres, [70, 64, 63, 0], [65, 9, 64, 3], **numbers)
    assert got[0][3] == 0
    assert not got[1][3].any()
    assert not got[2][3].any()
    assert not got[1][1, 64:].any()


@pytest.mark.parametrize("frames", [(1, 1), (1, 63), (64, 2), (300, 3)])
@pytest.mark.parametrize("virtual_cost", [None, 0.4])
def test_frames(frames, virtual_cost):
    x, y = (unit(2, t, 3, seed=s) for s, t in enumerate(frames))
    check(x, y, virtual_cost=virtual_cost, iterations=2)


@pytest.mark.parametrize("channels", [1, 3, 130, 300])
def test_channels(channels):
    check(unit(1, 33, channels), unit(1, 20, channels, seed=1), iterations=2)


@pytest.mark.parametrize("iterations", [1, 2, 8])
def test_iterations(iterations):
    x, y = unit(1, 24, 8), unit(1, 30, 8, seed=1)
    check(x, y, epsilon=0.05, iterations=iterations)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_half(dtype, scale):
    """Products of frames are exact. Only plans are rounded, to 16 bits, and the results."""
    x, y = scale * unit(2, 66, 40), scale * unit(2, 30, 40, seed=1)
    kwargs = {"epsilon": 0.1 * scale**2, "virtual_cost": scale**2}
    check(x, y, None, [66, 20], [30, 11], dtype=dtype, grad=interpreted(dtype, DEVICE), **kwargs)


@pytest.mark.parametrize("columns", [False, True])
def test_outlier(columns):
    """Its scores are 240 below all others: the sums of the first iteration would underflow."""
    x, y = randn(1, 40, 6) / 4, randn(1, 35, 6, seed=1) / 4
    (y if columns else x)[0, 3] += 2
    check(x, y)
    check(x, y, virtual_cost=1.0)


def test_offset():
    """A common offset of the frames changes no distance; their products would lose its digits."""
    check(unit(1, 40, 8) + 512, unit(1, 40, 8, seed=1) + 512, epsilon=0.05)


def test_similar_videos():
    """Distances between matching frames are far below the others."""
    x = unit(1, 50, 16)
    check(x, x + 0.05 * randn(1, 50, 16, seed=1), epsilon=0.02)


@pytest.mark.parametrize(
    ("kernel_tiles", "dtype"),
    [((16, 32, 16, 16), torch.bfloat16), ((32, 16, 32, 64), torch.float32)],
)
def test_channel_steps_and_chunks(monkeypatch, kernel_tiles, dtype):
    """Products in steps over the channels, gradients in chunks of them, many blocks of rows."""
    monkeypatch.setattr(sinkhorn_triton, "tiles", lambda *_: Tiles(*kernel_tiles, 4, 1))
    monkeypatch.setattr(sinkhorn_triton, "_choose", sinkhorn_triton._choose.__wrapped__)
    x, y = unit(1, 45, 40), unit(1, 40, 40, seed=1)
    centres = torch.rand(1, 45, dtype=torch.float64)
    numbers = VAVA | {"virtual_cost": 0.5, "log_virtual": 0.3, "iterations": 2}
    check(x, y, centres, dtype=dtype, grad=interpreted(dtype, DEVICE), **numbers)


def align(x, y, **kwargs):
    """Value and gradients of the public function."""
    x, y = (z.detach().requires_grad_() for z in (x, y))
    value = fastseq.sinkhorn_alignment(x, y, backend="triton", **kwargs)
    return value, *torch.autograd.grad(value.sum(), (x, y))


def test_same_bits_alone():
    """And with another number of padded frames."""
    x, y = unit(3, 80, 10).float().to(DEVICE), unit(3, 50, 10, seed=1).float().to(DEVICE)
    kwargs = {"iterations": 2, "virtual_cost": 0.5, "prior_width": 0.3}
    lengths = {"lengths_x": [80, 33, 70], "lengths_y": [5, 50, 41]}
    value, dx, dy = align(x, y, **lengths, **kwargs)
    for i, (n, m) in enumerate(zip(*lengths.values(), strict=True)):
        alone = align(x[i : i + 1, :n], y[i : i + 1, :m], **kwargs)
        assert torch.equal(alone[0], value[i : i + 1])
        assert torch.equal(alone[1], dx[i : i + 1, :n])
        assert torch.equal(alone[2], dy[i : i + 1, :m])


def test_strides():
    x, y = unit(2, 20, 6).float().to(DEVICE), unit(2, 30, 6, seed=1).float().to(DEVICE)
    want = align(x, y, iterations=1)
    got = align(x.mT.contiguous().mT, y[:, None].expand(2, 3, 30, 6)[:, 1], iterations=1)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_nan():
    """In padding it has no effect; in a real frame it reaches the value of its pair only."""
    x, y = unit(2, 20, 6).float().to(DEVICE), unit(2, 30, 6, seed=1).float().to(DEVICE)
    clean = align(x, y, lengths_x=[12, 20], iterations=2)
    for frame in (3, 15):
        bad = x.clone()
        bad[0, frame, 2] = math.nan
        got = align(bad, y, lengths_x=[12, 20], iterations=2)
        assert got[0][0].isnan() == (frame == 3)
        assert got[0][1] == clean[0][1]
        assert torch.equal(got[1][1], clean[1][1])
        if frame == 15:
            assert torch.equal(got[1], clean[1])


def test_one_gradient():
    x, y = unit(1, 20, 6).float().to(DEVICE), unit(1, 30, 6, seed=1).float().to(DEVICE)
    _, dx, dy = align(x, y, iterations=2)
    for k, want in enumerate((dx, dy)):
        sides = [z.clone().requires_grad_(k == s) for s, z in enumerate((x, y))]
        fastseq.sinkhorn_alignment(*sides, iterations=2, backend="triton").sum().backward()
        assert torch.equal(sides[k].grad, want)
        assert sides[1 - k].grad is None


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_no_frames(shape):
    n, t, s = shape
    x, y = torch.zeros(n, t, 3, device=DEVICE), torch.zeros(n, s, 3, device=DEVICE)
    value, dx, dy = align(x, y)
    assert torch.equal(value.cpu(), torch.zeros(n))
    assert not dx.any()
    assert not dy.any()
