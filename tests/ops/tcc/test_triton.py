"""The Triton kernels of tcc_loss against float64, interpreted on machines without a GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted

import fastseq
from fastseq.ops.common import launch
from fastseq.ops.tcc import triton as tcc_triton
from fastseq.ops.tcc.options import LOSS_TYPES, REDUCTIONS, SIMILARITIES, VARIANCE_FLOOR, TCCOptions
from ops.tcc.cases import brute_force, randn
from ops.tcc.cases import loss_and_grads as call

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRAMES = [(1, 1), (1, 2), (2, 1), (63, 64), (64, 65), (65, 97), (97, 63), (130, 40)]


def there(x):
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


def run(x, y=None, *times, dtype=torch.float32, backend="triton", **kwargs):
    """Loss and gradients on the device under test."""
    x, y = (None if z is None else there(z.to(dtype)) for z in (x, y))
    kwargs = {k: there(v) for k, v in kwargs.items()}
    return call(x, y, *map(there, times), backend=backend, **kwargs)


def check(x, y=None, *times, dtype=torch.float32, loss=None, grad=None, plain=True, **kwargs):
    """Asserts that Triton in ``dtype`` is as accurate as the reference in it, on the same rounded
    inputs. ``loss`` and ``grad`` replace the floors; without ``plain`` they are the whole bound.
    """
    x, y = (None if z is None else z.to(dtype) for z in (x, y))
    got = run(x, y, *times, dtype=dtype, **kwargs)
    want = run(x, y, *times, dtype=torch.float64, backend="torch", **kwargs)
    peer = run(x, y, *times, dtype=dtype, backend="reference", **kwargs) if plain else want
    assert got[0].dtype == torch.float32
    assert all(g.dtype == dtype for g in got[1:])
    as_accurate_as(got[0], peer[0], want[0], floor=loss)
    as_accurate_as(got[1:], peer[1:], want[1:], floor=grad, what=("dx", "dy")[: len(got) - 1])
    return got


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equals_loops(loss_type, similarity):
    x, y = randn(2, 9, 5), randn(2, 7, 5, seed=1)
    t, s = [[3, 1, 4, 1, 5, 9, 2, 6, 8]] * 2, [[2, 7, 1, 8, 2, 8, 1]] * 2
    kw = {"loss_type": loss_type, "temperature": 0.7, "variance_lambda": 0.03, "huber_delta": 0.05}
    numbers = [9, 4], [7, 6], [12.0, 20.0], [11.0, 9.0]
    names = ("lengths_x", "lengths_y", "duration_x", "duration_y")
    want = brute_force(x, y, t, s, *numbers, similarity_kind=similarity, **kw)["none"]
    kw |= dict(zip(names, numbers, strict=True)) | {"similarity": similarity}
    inputs = [there(z) for z in (x.float(), y.float(), torch.tensor(t), torch.tensor(s))]
    inputs = tuple(inputs)
    got, plain = (
        fastseq.tcc_loss(*inputs, reduction="none", backend=b, **kw)
        for b in ("triton", "reference")
    )
    as_accurate_as(got.cpu(), plain.cpu(), want)


@pytest.mark.parametrize(
    ("loss_type", "frames"),
    [
        *(("regression_mse_var", frames) for frames in FRAMES),
        *(("classification", frames) for frames in ((2, 1), (65, 97))),
    ],
    ids=str,
)
def test_frames(loss_type, frames):
    x, y = (randn(1, n, 17, seed=n) for n in frames)
    check(x, y, temperature=0.5, loss_type=loss_type)


@pytest.mark.parametrize(
    ("loss_type", "similarity"),
    [
        pytest.param(t, s, marks=[pytest.mark.slow] if (k + j) % 2 else [])
        for k, t in enumerate(LOSS_TYPES)
        for j, s in enumerate(SIMILARITIES)
    ],
)
def test_kinds_and_reductions(loss_type, similarity):
    """Ragged pairs and all ordered pairs, with empty sequences."""
    x, y = randn(3, 30, 12), randn(3, 20, 12, seed=1)
    reduction = REDUCTIONS[LOSS_TYPES.index(loss_type) % 3]
    upstream = torch.tensor([-2.0, 0.5, 3.0]) if reduction == "none" else -2.5
    kw = {"loss_type": loss_type, "similarity": similarity, "reduction": reduction}
    kw |= {"upstream": upstream, "temperature": 0.6, "huber_delta": 0.02}
    check(x, y, lengths_x=[30, 5, 13], lengths_y=[7, 20, 0], **kw)
    check(y, lengths_x=[20, 0, 13], normalize_indices=False, **kw)


@pytest.mark.parametrize("channels", [1, 8, 17, 64, 200, 512])
def test_channels(channels):
    x, y = randn(1, 20, channels), randn(1, 15, channels, seed=1)
    check(x, y, temperature=0.5)


@pytest.mark.parametrize(
    ("shape", "dtype", "floors"),
    [
        ((32, 32, 16, 16), torch.float32, {}),
        ((32, 16, 32, 64), torch.float16, {"loss": 1e-5}),
    ],
    ids=["chunks", "steps"],
)
def test_channel_steps_and_chunks(monkeypatch, shape, dtype, floors):
    """Scores in steps over the channels, nearest neighbours and gradients in chunks of them."""
    tile = tcc_triton.Tiles(*shape, 4, 1)
    monkeypatch.setattr(tcc_triton, "tiles", lambda *_: tile)
    x, y = randn(1, 20, 40), randn(1, 18, 40, seed=1)
    check(x, y, temperature=0.5, dtype=dtype, **floors)


@pytest.mark.parametrize(
    ("dtype", "similarity"),
    [(torch.float16, "l2"), (torch.bfloat16, "l2"), (torch.bfloat16, "cosine")],
)
def test_half(dtype, similarity):
    """Products of frames are exact; everything else is rounded to tf32 or better, then the
    result.
    """
    x, y = randn(2, 20, 24) / 2, randn(2, 30, 24, seed=1) / 2
    kw = {"dtype": dtype, "similarity": similarity, "temperature": 0.3}
    # fp16 has no more bits than tf32, which a GPU uses as well.
    eps16 = torch.finfo(dtype).eps / (1 if DEVICE == "cuda" else 2)
    grad = eps16 if dtype == torch.float16 else interpreted(dtype, DEVICE)
    kw |= {"loss": 1e-5, "grad": grad}
    check(x, y, lengths_x=[20, 11], **kw)
    check(x, loss_type="classification", **kw)
    # Outside the range of fp16: times in frames, with slopes in the thousands, and a small share.
    check(x[:1], y[:1], normalize_indices=False, upstream=1e-3, **kw)


def test_mixed_dtypes():
    x, y = randn(1, 20, 8).half(), randn(1, 25, 8, seed=1).float()
    got, plain = (call(there(x), there(y), backend=b) for b in ("triton", "reference"))
    want = call(there(x.double()), there(y.double()))
    assert (got[1].dtype, got[2].dtype) == (torch.float16, torch.float32)
    as_accurate_as(got, plain, want)


def test_tiles_and_conversions_of_another_architecture(monkeypatch):
    """For sm_100, float32 is converted with rounding where others truncate; interpreted here."""
    launch.clear()
    monkeypatch.setattr(launch, "architecture", lambda _: 100)
    check(randn(2, 70, 40), randn(2, 33, 40, seed=1))
    launch.clear()


def test_all_pairs_in_groups_of_shifts(monkeypatch):
    """Two shifts and one shift return the same bits: each hop is added to the sum of the earlier
    ones.
    """
    x = randn(4, 9, 16)
    kw = {"lengths_x": [9, 4, 8, 1], "temperature": 0.5, "reduction": "sum"}
    want = run(x, **kw)
    monkeypatch.setattr(tcc_triton, "ELEMENTS", 2 * 4 * 64 * 16)
    assert all(map(torch.equal, check(x, **kw), want))


def test_far_from_the_origin():
    """Differences are taken before products, so the digits that plain PyTorch loses are kept."""
    x, y = ((randn(1, 40, 16, seed=n) + 100).float().double() for n in (0, 1))
    check(x, y, loss=1e-5, grad=1e-5, plain=False)
    check(torch.cat([x, y]), loss=1e-5, grad=1e-5, plain=False)


def test_spread_from_soft_to_nearly_hard():
    """A softmax over all frames, over tens of them, and over one or two."""
    x = randn(1, 70, 32)
    y = x + 0.5 * randn(1, 70, 32, seed=1)
    var, classes = "regression_mse_var", "classification"
    for scale, loss_type in ((0.1, var), (0.6, classes), (1.2, var), (1.2, classes)):
        # A sharp softmax propagates the rounding of its logits, through two of them.
        check(x * scale, y * scale, loss_type=loss_type, loss=1e-5, grad=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.003, 0.001])
def test_nearly_collapsed_is_as_exact_as_float64(temperature):
    """Variances from 1e-3 to below the floor, the regime in which training ends."""
    x = randn(1, 30, 8) * 0.7
    y = x + 0.01 * randn(1, 30, 8, seed=1)
    got = check(x, y, temperature=temperature, loss=1e-4, grad=2e-3, plain=False)
    assert all(g.isfinite().all() for g in got)


def test_collapsed_on_the_right_frame():
    x = 100 * randn(2, 20, 16)
    x[1] = x[0]
    loss, dx = run(x)
    assert loss.item() == pytest.approx(0.001 * math.log(VARIANCE_FLOOR))
    assert (dx == 0).all()


def test_collapsed_on_a_wrong_frame():
    """All frames of x are nearest to the one frame of y, which returns to the frame of x next to
    it.
    """
    x, y = 100 * torch.eye(6)[None], 100 * torch.eye(6)[None, 2:3]
    loss, *grads = run(x, y, reduction="none")
    errors = (torch.arange(6) - 2) / 6.0
    want = errors.square().sum() / VARIANCE_FLOOR + 7 * 0.001 * math.log(VARIANCE_FLOOR)
    torch.testing.assert_close(loss.cpu(), want[None], rtol=1e-5, atol=0)
    assert all((g == 0).all() for g in grads)


def spoilt(z, t, n):
    """NaN, infinities and absurd times in padding."""
    padded = torch.arange(z.shape[1]) >= n[:, None]
    value = torch.tensor([math.nan, math.inf, -math.inf]).double()[:, None, None]
    return torch.where(padded[..., None], value, z), t.masked_fill(padded, -(2**62))


@pytest.mark.parametrize(
    ("loss_type", "similarity", "pairs"),
    [("regression_mse_var", "l2", True), ("classification", "cosine", False)],
)
def test_padding_never_matters(loss_type, similarity, pairs):
    x, y = randn(3, 20, 7), randn(3, 33, 7, seed=1)
    tx, ty = torch.arange(60).view(3, 20) * 2, torch.arange(99).view(3, 33) ** 2
    n, m = torch.tensor([20, 0, 9]), torch.tensor([31, 33, 3])
    (bad_x, bad_tx), (bad_y, bad_ty) = spoilt(x, tx, n), spoilt(y, ty, m)
    kw = {"loss_type": loss_type, "similarity": similarity, "temperature": 0.5, "lengths_x": n}
    if pairs:
        clean = check(x, y, tx, ty, lengths_y=m, **kw)
        got = run(bad_x, bad_y, bad_tx, bad_ty, lengths_y=m, **kw)
    else:
        clean, got = check(x, None, tx, **kw), run(bad_x, None, bad_tx, **kw)
    assert all(map(torch.equal, got, clean))
    assert (got[1][1] == 0).all()
    assert (got[1][2, 9:] == 0).all()


def test_lengths_are_clamped():
    """The host never reads lengths on a GPU, so kernels have to handle any value."""
    opts = TCCOptions.checked("", "regression_mse_var", "l2", 0.1, 0.001, 0.1, 0.1, True, "mean")
    x, y = there(randn(3, 20, 4).float()), there(randn(3, 9, 4, seed=1).float())
    wild, tame = there(torch.tensor([-3, 2**40, 7])), there(torch.tensor([0, 20, 7]))
    got, want = (
        tcc_triton.forward(x, y, None, None, None, n, None, None, None, opts, (True, True, False))
        for n in (wild, tame)
    )
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("loss_type", ["regression_mse_var", "regression_huber", "classification"])
def test_nan_in_a_real_frame_or_time_is_not_hidden(loss_type):
    x, y, t = randn(2, 20, 5), randn(2, 20, 5, seed=1), torch.arange(20.0).repeat(2, 1)
    bad, late = x.clone(), t.clone()
    bad[1, 16, 1] = late[1, 16] = math.nan
    kw = {"reduction": "none", "loss_type": loss_type}
    calls = [run(bad, y, **kw)]
    if loss_type != "classification":  # it does not use times
        calls.append(run(y, x, t, late, **kw))
    for loss, *grads in calls:
        assert loss.isnan().tolist() == [False, True]
        for g in grads:
            assert g[1].isnan().any()
            assert g[0].isfinite().all()
    assert fastseq.tcc_loss(there(bad.float()), backend="triton", **kw).isnan().all()


TIMES = {
    "unsorted": torch.randperm(20, generator=torch.Generator().manual_seed(0)) * 3,
    "offset": torch.arange(20) ** 2 + 1_700_000_000 * 10**9,
    "int32": (torch.arange(20) - 100).int(),
    "int32 span": torch.tensor([-(2**31), 2**31 - 1] * 10).int(),
    "fp32 thirds": torch.arange(20) / 3,
    "fp64 epoch": 1.7e9 + torch.arange(20).double() / 16,
    "fp16": (torch.arange(20) / 4).half(),
}


@pytest.mark.parametrize("kind", TIMES)
def test_times(kind):
    """As (N, T), and as (T,) beside times of another type."""
    x, y, t = randn(2, 20, 8), randn(2, 10, 8, seed=1), TIMES[kind]
    kw = {"duration_x": [80.0, 200.0], "temperature": 0.5}
    check(x, None, t.expand(2, 20).clone(), **kw)
    kw |= {"lengths_x": [20, 12], "duration_y": torch.tensor(90)}
    check(x, y, t, torch.arange(10) / 2, **kw)


def test_a_prediction_right_to_a_part_of_a_frame_in_a_long_video():
    """Frame numbers about 10^7: means of t and t^2 would lose the variance; differences keep it."""
    x = 4 * randn(1, 40, 32)
    y, t = x + randn(1, 40, 32, seed=1), torch.arange(40) * 5 + 10_000_000
    kw = {"duration_x": 2e7, "duration_y": 2e7, "temperature": 1.0}
    check(x, y, t, t, loss=1e-5, grad=3e-5, plain=False, **kw)


def test_inputs_of_any_layout():
    x, y = randn(2, 20, 5), randn(2, 13, 5, seed=1)
    want = run(x, y)
    swapped, turned = y.transpose(0, 1).contiguous().transpose(0, 1), y.mT.contiguous().mT
    for a, b in ((torch.stack([x, x], 3)[..., 0], swapped), (x, turned)):
        assert not b.is_contiguous()
        assert all(map(torch.equal, run(a, b), want))
    same = x[:1].expand(2, 20, 5)
    assert all(map(torch.equal, run(same, y), run(same.clone(), y)))
    one = run(x[0], y[0], reduction="none")
    assert (one[0].shape, one[1].shape) == ((), (20, 5))


def test_upstream_layouts():
    """An upstream gradient expanded from one number, and one with a stride."""
    x, y = randn(2, 20, 5), randn(2, 13, 5, seed=1)
    strided, expanded = torch.tensor([2.0, 9.0, -1.0, 9.0])[::2], torch.tensor(3.0).expand(2)
    check(x, y, reduction="none", upstream=strided)
    check(x, reduction="none", upstream=strided)
    check(x, y, reduction="none", upstream=expanded)


def test_gradient_of_one_input_alone_and_of_none():
    x, y = (there(randn(2, n, 5, seed=n).float()) for n in (20, 13))
    loss, dx, dy = run(x[:1], y[:1])
    for k, want in enumerate((dx, dy)):
        inputs = [x[:1].clone(), y[:1].clone()]
        inputs[k].requires_grad_()
        out = fastseq.tcc_loss(*inputs, backend="triton")
        assert torch.equal(torch.autograd.grad(out, inputs[k])[0], want)
    assert torch.equal(fastseq.tcc_loss(x[:1], y[:1], backend="triton"), loss)
    assert torch.equal(fastseq.tcc_loss(x, backend="triton"), run(x)[0])


def test_same_bits_alone_and_in_a_batch():
    x, y = randn(2, 70, 16), randn(2, 66, 16, seed=1)
    lengths = {"lengths_x": [70, 64], "lengths_y": [5, 66]}
    batch = run(x, y, reduction="none", **lengths)
    assert all(map(torch.equal, run(x, y, reduction="none", **lengths), batch))
    for n, (i, j) in enumerate(zip(*lengths.values(), strict=True)):
        loss, dx, dy = run(x[n, :i], y[n, :j], reduction="none")
        assert torch.equal(loss, batch[0][n])
        assert torch.equal(dx, batch[1][n, :i])
        assert torch.equal(dy, batch[2][n, :j])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_compare_gives_zero_and_zero_gradients(reduction):
    for x, y, more in (
        (randn(1, 4, 3), None, {}),
        (randn(0, 4, 3), None, {}),
        (randn(2, 0, 3), None, {}),
        (randn(0, 4, 3), randn(0, 2, 3), {}),
        (randn(2, 4, 3), randn(2, 0, 3), {}),
        (randn(2, 4, 3), None, {"lengths_x": [0, 4]}),
        (randn(2, 4, 3), randn(2, 3, 3), {"lengths_x": [0, 4], "lengths_y": [3, 0]}),
    ):
        loss, *grads = run(x, y, reduction=reduction, **more)
        assert loss.shape == ((len(x),) if reduction == "none" else ())
        assert (loss == 0).all()
        for z, dz in zip((x, y), grads, strict=False):
            assert dz.shape == z.shape
            assert (dz == 0).all()


def test_one_frame():
    """A single frame always returns to itself: no error, no variance, no entropy."""
    x = randn(1, 1, 3)
    for loss_type in LOSS_TYPES:
        loss, dx, dy = run(x, x, loss_type=loss_type)
        floor = 0.001 * math.log(VARIANCE_FLOOR)
        assert loss.item() == pytest.approx(floor if "var" in loss_type else 0, abs=1e-7)
        assert (dx == 0).all()
        assert (dy == 0).all()


def test_many_pairs():
    """More sequences than the reduction processes at once."""
    x, y = randn(17, 3, 4), randn(17, 2, 4, seed=1)
    check(x, y, lengths_x=(torch.arange(17) % 4).tolist(), temperature=2.0)


def test_differentiating_twice_raises():
    x = there(randn(2, 5, 3).float()).requires_grad_()
    loss = fastseq.tcc_loss(x, backend="triton")
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dx.square().sum().backward()
