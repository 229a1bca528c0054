"""The Triton kernels of column_lse against float64, interpreted on machines without a GPU."""

import pytest
import torch
from tolerance import as_accurate_as

from ops.column_lse.cases import inputs, plain, value_and_grads

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(x, y, grad, *lengths, floor=None, **options):
    """Asserts that Triton is as accurate as plain float32, on the same inputs."""
    there = [z if z is None else z.to(DEVICE) for z in (x, y, grad, *lengths)]
    wide = [z if z is None or z.dtype == torch.int64 else z.double() for z in there]
    got, other = value_and_grads(*there, backend="triton", **options), plain(*there, **options)
    want = value_and_grads(*wide, backend="reference", **options)
    for found in got:
        assert found.dtype == torch.float32
    as_accurate_as(got, other, want, floor=floor, what=("value", "dx", "dy"))
    return got


@pytest.mark.parametrize("rate", [1.0, 10.0, 100.0, 2000.0])
def test_rates(rate):
    """With and without a shift by the maximum."""
    # The backward forms each product again, from the other side. The rate multiplies its rounding.
    floor = rate * torch.finfo(torch.float32).eps if rate > 1000 else None
    check(*inputs(2, 70, 80, 20), rate=rate, floor=floor)


@pytest.mark.parametrize(("frames", "columns"), [(1, 1), (64, 1), (1, 65), (63, 64), (65, 63)])
@pytest.mark.parametrize("rate", [10.0, 100.0])
def test_sizes(frames, columns, rate):
    check(*inputs(2, frames, columns, 16), rate=rate)


@pytest.mark.parametrize("d", [1, 17, 128, 200])
def test_channels(d):
    check(*inputs(1, 40, 50, d))


@pytest.mark.parametrize("rate", [10.0, 100.0])
def test_lengths_and_nan_in_the_padding(rate):
    x, y, grad = inputs(4, 80, 70, 16)
    n, m = torch.tensor([80, 13, 1, 65]), torch.tensor([70, 64, 9, 0])
    value, dx, dy = check(x, y, grad, n, m, rate=rate)
    for k in range(4):
        x[k, n[k] :], y[k, m[k] :] = torch.nan, torch.nan
    spoiled = value_and_grads(
        *(z.to(DEVICE) for z in (x, y, grad, n, m)), rate=rate, backend="triton"
    )
    for got, want in zip(spoiled, (value, dx, dy), strict=True):
        assert torch.equal(got, want)
    for k in range(4):
        assert (value[k, m[k] :] == 0).all()
        assert (dx[k, n[k] :] == 0).all()
        assert (dy[k, m[k] :] == 0).all()


@pytest.mark.parametrize("rate", [10.0, 100.0])
def test_no_real_frame(rate):
    args = *inputs(2, 70, 66, 16), torch.tensor([0, 70]), torch.tensor([66, 0])
    for found in value_and_grads(*(z.to(DEVICE) for z in args), rate=rate, backend="triton"):
        assert (found == 0).all()


@pytest.mark.parametrize("rate", [10.0, 100.0])
def test_nan_in_a_real_frame_is_seen(rate):
    x, y, grad = (z.to(DEVICE) for z in inputs(2, 70, 66, 16))
    x[0, 3] = torch.nan
    y[1, 5] = torch.nan
    value, *_ = value_and_grads(x, y, grad, rate=rate, backend="triton")
    assert value[0].isnan().all()
    assert value[1].isnan().nonzero().flatten().tolist() == [5]


def test_alone_equals_in_a_batch():
    x, y, grad = (z.to(DEVICE) for z in inputs(3, 80, 70, 16))
    n, m = (torch.tensor(t, device=DEVICE) for t in ([80, 30, 66], [12, 70, 69]))
    together = value_and_grads(x, y, grad, n, m, backend="triton")
    for k in range(3):
        one = [x[k : k + 1, : n[k]], y[k : k + 1, : m[k]], grad[k : k + 1, : m[k]]]
        value, dx, dy = value_and_grads(*one, backend="triton")
        assert torch.equal(value[0], together[0][k, : m[k]])
        assert torch.equal(dx[0], together[1][k, : n[k]])
        assert torch.equal(dy[0], together[2][k, : m[k]])


def test_a_gradient_of_any_strides_and_only_one_gradient():
    x, y, grad = (z.to(DEVICE) for z in inputs(2, 20, 30, 16))
    want = value_and_grads(x, y, grad, backend="triton")
    _, dx, dy = value_and_grads(x, y, grad.mT.contiguous().mT, backend="triton")
    assert torch.equal(dx, want[1])
    assert torch.equal(dy, want[2])
    ones = torch.ones((), device=DEVICE).expand(2, 30)
    for got, exact in zip(
        value_and_grads(x, y, ones, backend="triton"),
        value_and_grads(x, y, ones.contiguous(), backend="triton"),
        strict=True,
    ):
        assert torch.equal(got, exact)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 5, 0)])
def test_nothing(shape):
    for found in value_and_grads(*(z.to(DEVICE) for z in inputs(*shape, 16)), backend="triton"):
        assert (found == 0).all()
