"""soft_dtw with cost="softmax" against AE2's values and against soft_dtw_from_cost of the dense
cost."""

import functools

import pytest
import torch
from torch.nn.functional import normalize

import fastseq
from ops.soft_dtw.cases import BACKENDS, EVERY, backends, randn, relative, value_and_grads

# float32 with digits as those of the cost itself, about 1e-7 / temperature
CLOSE = {torch.float64: 1e-11, torch.float32: 2e-5}


def dense_cost(x, y, temperature=0.1):
    """(T, S) of one pair: -log softmax_i(cos(x_i, y_j) / temperature)."""
    cosine = torch.cosine_similarity(x[:, None], y[None], dim=-1, eps=1e-12)
    return -torch.log_softmax(cosine / temperature, 0)


def one_by_one(x, y, real_x, real_y, temperature=0.1, **options):
    """Values of the pairs, of their real frames alone, through the dense cost."""
    values = []
    for k in range(len(x)):
        cost = dense_cost(x[k][real_x[k]], y[k][real_y[k]], temperature)
        own = {n: v[k] if isinstance(v, torch.Tensor) else v for n, v in options.items()}
        values.append(fastseq.soft_dtw_from_cost(cost, backend="reference", **own))
    return torch.stack(values)


def masks(frames, num, lengths=None, valid=None):
    if valid is not None:
        return valid
    return torch.arange(frames) < torch.tensor(lengths or [frames] * num)[:, None]


@pytest.mark.parametrize("backend", EVERY)
def test_values_of_ae2(backend):
    """Of AE2's released code (torch.manual_seed(0)), both temperatures 0.1."""
    generator = torch.manual_seed(0)
    for frames, want in ((32, 116.1397), (64, 270.2760)):
        x, y = (
            normalize(torch.randn(1, frames, 128, generator=generator), dim=-1) for _ in range(2)
        )
        got = fastseq.soft_dtw(x, y, gamma=0.1, cost="softmax", backend=backend)
        assert got.item() == pytest.approx(want, abs=1e-4)


RAGGED = {"lengths_x": [70, 9, 33], "lengths_y": [80, 40, 1]}
VALID = {
    "valid_x": (randn(3, 70, seed=40) > -0.5),
    "valid_y": (randn(3, 80, seed=41) > 0.0),
}
CASES = {
    "plain": {},
    "ragged": RAGGED,
    "masks": VALID,
    "band": {**RAGGED, "bandwidth": 6},
    "per pair": {
        **RAGGED,
        "gamma": torch.tensor([0.05, 0.4, 3.0], dtype=torch.float64),
        "bandwidth": torch.tensor([5, 3, 9]),
    },
    "free ends": {**VALID, "begin": "free", "end": "free", "warp_penalty": 0.2},
    "cold": {"temperature": 0.01, **RAGGED},
}


@functools.cache
def _wanted(case):
    """Inputs with NaN in the padding, the call's options, value and gradients in float64."""
    options = {"gamma": 0.3} | CASES[case]
    x, y = randn(3, 70, 12, seed=1), randn(3, 80, 12, seed=2)
    x[0, 2] = 0  # no direction
    y[1, 0] = 0
    real_x = masks(70, 3, options.get("lengths_x"), options.get("valid_x"))
    real_y = masks(80, 3, options.get("lengths_y"), options.get("valid_y"))
    a, b = x.double().requires_grad_(), y.double().requires_grad_()
    given = {k: v for k, v in options.items() if not k.startswith(("lengths", "valid"))}
    value = one_by_one(a, b, real_x, real_y, **given)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    dx, dy = torch.autograd.grad((value * upstream).sum(), (a, b))
    dx[0, 2], dy[1, 0] = 0, 0  # by definition
    x[~real_x], y[~real_y] = torch.nan, torch.nan
    return (x, y), options, upstream, (value.detach(), dx, dy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
@backends()
def test_equals_the_dense_cost(backend, case, dtype):
    (x, y), options, upstream, want = _wanted(case)
    call = {**options, "cost": "softmax", "backend": backend}
    got = value_and_grads(x.to(dtype), y.to(dtype), upstream, **call)
    assert got[0].dtype == dtype
    bound = CLOSE[dtype] * (4 if options.get("temperature") else 1)
    for found, exact in zip(got, want, strict=True):
        assert relative(found, exact) < bound


@backends()
def test_lengths_of_zero(backend):
    x, y = randn(3, 5, 4, seed=5), randn(3, 6, 4, seed=6)
    lengths = {"lengths_x": [0, 5, 0], "lengths_y": [6, 0, 0]}
    for value in value_and_grads(x, y, cost="softmax", backend=backend, **lengths):
        assert (value == 0).all()
    for shape in ((2, 0, 4), (0, 5, 4)):
        x = randn(*shape).requires_grad_()
        value = fastseq.soft_dtw(x, randn(shape[0], 3, 4), cost="softmax", backend=backend)
        assert torch.autograd.grad(value.sum(), x)[0].shape == shape
        assert (value == 0).all()


@backends()
def test_nan_in_a_real_frame_is_seen(backend):
    x, y = randn(2, 9, 4, seed=7), randn(2, 8, 4, seed=8)
    for side in (x, y):
        spoiled = side.clone()
        spoiled[0, 3] = torch.nan
        pair = (spoiled, y) if side is x else (x, spoiled)
        value = fastseq.soft_dtw(*pair, cost="softmax", backend=backend)
        assert value.isnan().tolist() == [True, False]


@backends(BACKENDS)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_alone_equals_in_a_batch(backend, temperature):
    x, y = randn(3, 90, 20, seed=9), randn(3, 70, 20, seed=10)
    lengths = {"lengths_x": [90, 41, 65], "lengths_y": [12, 70, 70]}
    options = {"cost": "softmax", "temperature": temperature, "gamma": 0.2, "backend": backend}
    together = value_and_grads(x, y, **lengths, **options)
    for k, (n, m) in enumerate(zip(*lengths.values(), strict=True)):
        value, dx, dy = value_and_grads(x[k, :n], y[k, :m], **options)
        assert torch.equal(value, together[0][k])
        assert torch.equal(dx, together[1][k, :n])
        assert torch.equal(dy, together[2][k, :m])


@backends()
def test_alignment(backend):
    x, y = randn(2, 11, 5, seed=11, dtype=torch.float64), randn(2, 9, 5, seed=12).double()
    lengths = {"lengths_x": [11, 6], "lengths_y": [9, 4]}
    got = fastseq.soft_dtw_alignment(
        x, y, gamma=0.2, cost="softmax", temperature=0.3, backend=backend, **lengths
    )
    for k, (n, m) in enumerate(zip(*lengths.values(), strict=True)):
        cost = dense_cost(x[k, :n], y[k, :m], 0.3)
        cost.requires_grad_()
        value = fastseq.soft_dtw_from_cost(cost, gamma=0.2, backend="reference")
        (want,) = torch.autograd.grad(value, cost)
        assert (got[k, :n, :m] - want).abs().max() < 1e-10
        assert (got[k, n:] == 0).all()
        assert (got[k, :, m:] == 0).all()


@pytest.mark.sweep
def test_gradcheck():
    x = randn(2, 5, 3, seed=13, dtype=torch.float64).requires_grad_()
    y = randn(2, 4, 3, seed=14, dtype=torch.float64).requires_grad_()
    for backend in EVERY:

        def call(a, b, backend=backend):
            options = {"lengths_x": [5, 3], "lengths_y": [2, 4], "temperature": 0.4}
            return fastseq.soft_dtw(a, b, gamma=0.5, cost="softmax", backend=backend, **options)

        assert torch.autograd.gradcheck(call, (x, y))
    twice = functools.partial(call, backend="reference")
    assert torch.autograd.gradgradcheck(twice, (x, y), fast_mode=True)


def test_only_one_gradient():
    x, y = randn(2, 30, 6, seed=15), randn(2, 25, 6, seed=16)
    want = value_and_grads(x, y, cost="softmax")
    for k, pair in enumerate(((x.clone().requires_grad_(), y), (x, y.clone().requires_grad_()))):
        value = fastseq.soft_dtw(*pair, cost="softmax")
        assert torch.equal(torch.autograd.grad(value.sum(), pair[k])[0], want[1 + k])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision(half):
    x, y = randn(2, 20, 8, seed=17).to(half), randn(2, 25, 8, seed=18).to(half)
    value, dx, dy = value_and_grads(x, y, cost="softmax")
    want = value_and_grads(x.float(), y.float(), cost="softmax")
    assert torch.equal(value, want[0])
    assert (dx.dtype, dy.dtype) == (half, half)
    assert torch.equal(dx, want[1].to(half))


@backends()
def test_autocast_changes_nothing(backend):
    x, y = randn(2, 10, 4, seed=19), randn(2, 9, 4, seed=20)
    want = value_and_grads(x, y, cost="softmax", backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_grads(x, y, cost="softmax", backend=backend)
    for found, exact in zip(got, want, strict=True):
        assert torch.equal(found, exact)


def test_meta_tensors_give_shapes():
    x = torch.zeros(2, 4, 3, device="meta", requires_grad=True)
    value = fastseq.soft_dtw(x, x[:, :2], cost="softmax", lengths_x=[4, 1])
    assert (value.device.type, value.shape, value.dtype) == ("meta", (2,), torch.float32)
