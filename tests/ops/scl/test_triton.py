"""The Triton kernels of scl_loss against float64, interpreted on machines without a GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted

import fastseq
from fastseq.ops.scl import triton as scl_triton
from fastseq.ops.scl.options import SCLOptions
from ops.scl.cases import brute_force, loss_and_grads

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (0, 1, 2, 63, 64, 65, 97)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randint(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def run(z1, z2, *args, dtype=torch.float32, backend="triton", upstream=1.0, **kwargs):
    """Loss and both gradients on the device under test."""

    def there(x):
        return x.to(DEVICE) if isinstance(x, torch.Tensor) else x

    z1, z2 = there(z1.to(dtype)), there(z2.to(dtype))
    args, kwargs = map(there, args), {k: there(v) for k, v in kwargs.items()}
    return loss_and_grads(z1, z2, *args, backend=backend, upstream=there(upstream), **kwargs)


# For gradients in fp32. Targets for both directions come from one exp whose exponent, up to 149,
# has 16 bits after the point; plain PyTorch subtracts the largest of a row first.
EXPONENT = 5e-6


def check(z1, z2, *args, dtype=torch.float32, loss=None, grad=None, **kwargs):
    """Asserts that Triton in ``dtype`` is as accurate as the reference in it, on the same rounded
    inputs; ``loss`` and ``grad`` replace the floors.
    """
    if grad is None and dtype == torch.float32:
        grad = EXPONENT
    z1, z2 = z1.to(dtype), z2.to(dtype)
    got = run(z1, z2, *args, dtype=dtype, **kwargs)
    plain = run(z1, z2, *args, dtype=dtype, backend="reference", **kwargs)
    want = run(z1, z2, *args, dtype=torch.float64, backend="reference", **kwargs)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == got[2].dtype == dtype
    as_accurate_as(got[0], plain[0], want[0], floor=loss)
    as_accurate_as(got[1:], plain[1:], want[1:], floor=grad, what=("dz1", "dz2"))
    return got


def test_equals_loops():
    z1, z2 = randn(2, 7, 5), randn(2, 9, 5, seed=1)
    t1, t2 = randint(0, 60, 2, 7), randint(0, 60, 2, 9, seed=1)
    m1, m2 = randint(0, 4, 2, 7, seed=2) > 0, randint(0, 4, 2, 9, seed=3) > 0
    rows = brute_force(z1, z2, t1, t2, m1, m2)
    want = sum(r.sum(1) for r in rows)
    kwargs = {"valid1": m1, "valid2": m2, "reduction": "none"}
    got, plain = (run(z1, z2, t1, t2, backend=b, **kwargs)[0] for b in ("triton", "reference"))
    as_accurate_as(got.cpu(), plain.cpu(), want)


@pytest.mark.parametrize("frames1", LENGTHS)
def test_frames(frames1):
    frames2 = LENGTHS[::-1][LENGTHS.index(frames1)]
    for pair in {(frames1, frames2), (frames1, frames1)}:
        check(*(randn(2, t, 17, seed=t) for t in pair))


def test_long():
    check(randn(1, 480, 128), randn(1, 480, 128, seed=1), torch.arange(480) * 2, torch.arange(480))


@pytest.mark.parametrize("channels", [1, 17, 64, 128, 200, 512])
def test_channels(channels):
    check(randn(1, 70, channels), randn(1, 33, channels, seed=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [17, 128])
def test_half(dtype, channels):
    """Operands are exact and accumulators fp32, so that only p - w and the result are rounded."""
    z1, z2 = randn(2, 97, channels), randn(2, 65, channels, seed=1)
    kwargs = {"dtype": dtype, "grad": interpreted(dtype, DEVICE)}
    check(z1, z2, lengths1=[97, 30], **kwargs)
    check(z1, z2, temperature=0.01, **kwargs)
    check(z1, z2, normalize=False, temperature=5.0, **kwargs)


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_fp16_range(scale):
    """1 / norm and 1 / frames would be outside the range of fp16 where p - w is rounded."""
    z1, z2 = randn(1, 65, 17) * scale, randn(1, 40, 17, seed=1) * scale
    check(z1, z2, dtype=torch.float16, upstream=1e3 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zero_frame(dtype):
    """Its norm is clamped to 1e-12 as in torch.nn.functional.normalize: no NaN for the others."""
    z1, z2 = randn(1, 10, 8), randn(1, 12, 8, seed=1)
    z2[0, 3] = 0
    z1, z2, others = z1.to(dtype), z2.to(dtype), torch.arange(12) != 3
    got, plain, want = (
        (loss, d1, d2[:, others])
        for loss, d1, d2 in (
            run(z1, z2, dtype=dtype),
            run(z1, z2, dtype=dtype, backend="reference"),
            run(z1, z2, dtype=torch.float64, backend="reference"),
        )
    )
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("kernel_tiles", [(16, 32, 16, 16), (32, 16, 32, 64)])
def test_channel_steps_and_chunks(monkeypatch, kernel_tiles):
    """The similarity in steps over the channels, the gradient in chunks of them."""
    tile = scl_triton.Tiles(*kernel_tiles, 4, 1)
    monkeypatch.setattr(scl_triton, "tiles", lambda *_: tile)
    z1, z2 = randn(1, 33, 40), randn(1, 20, 40, seed=1)
    check(z1, z2, valid1=randint(0, 3, 1, 33) > 0, temperature=0.07)
    check(z1, z2, dtype=torch.float16, temperature=0.01)
    check(z1, z2, normalize=False, temperature=8.0)


def test_rows_of_two_units(monkeypatch):
    """Tiles of 128 rows, as long sequences have. Times are relative to a unit of 64 frames, and the
    first unit may have no real frame.
    """
    tile = scl_triton.Tiles(128, 64, 16, 16, 4, 1)
    monkeypatch.setattr(scl_triton, "tiles", lambda *_: tile)
    z1, z2 = randn(2, 150, 16), randn(2, 200, 16, seed=1)
    t1, t2 = torch.arange(150) * 2 + 10**12, torch.arange(200) * 3 + 10**12 - 100
    valid1 = torch.ones(2, 150, dtype=torch.bool)
    valid1[0, :70] = False
    check(z1, z2, t1, t2, valid1=valid1)
    check(z1, z2, lengths1=[20, 150], lengths2=[200, 65])


def test_nan_in_a_real_timestamp_is_not_hidden():
    """Its video is NaN, the other video is unchanged; in padding NaN has no effect."""
    z1, z2, t = randn(2, 40, 8), randn(2, 40, 8, seed=1), torch.arange(40.0).expand(2, 40).clone()
    kwargs = {"lengths1": [30, 40], "reduction": "none"}
    clean = run(z1, z2, t, t, **kwargs)[0]
    for frame in (3, 35):
        bad = t.clone()
        bad[0, frame] = math.nan
        got = run(z1, z2, bad, t, **kwargs)[0]
        assert got[0].isnan() == (frame == 3)
        assert got[1] == clean[1]


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 0.025, 0.03, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_temperature(temperature, normalize):
    z1, z2 = randn(1, 40, 16), randn(1, 70, 16, seed=1)
    if not normalize:
        z1, z2 = z1 / 4, z2 / 4
    kwargs = {"temperature": temperature, "normalize": normalize}
    # At 1000 the rounding of a logit alone changes exp by 6e-5, and tensor cores sum in a different
    # order.
    if temperature <= 0.01:
        kwargs["grad"] = 1e-5 if DEVICE == "cpu" else 1e-3
    check(z1, z2, **kwargs)
    # Similar views: tiny losses, where 1 / temperature would cancel, and p close to 1.
    check(z1, z1 + 1e-2 * z2[:, :40], **kwargs)


@pytest.mark.parametrize("objective", ["kl", "ce"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "paper"])
def test_reductions(objective, reduction):
    z1, z2 = randn(3, 66, 17), randn(3, 40, 17, seed=1)
    lengths2, valid1 = torch.tensor([40, 0, 7]), randint(0, 3, 3, 66, seed=2) > 0
    valid1[2] = False
    times = randint(0, 300, 3, 66, seed=3), randint(0, 300, 3, 40, seed=4)
    weights = torch.tensor([-2.0, 0.5, 3.0]) if reduction == "none" else -2.5
    kwargs = {"objective": objective, "reduction": reduction, "upstream": weights}
    check(z1, z2, lengths2=lengths2, **kwargs)
    check(z1, z2, *times, valid1=valid1, lengths2=lengths2, variance=40.0, **kwargs)


def test_many_sequences():
    """More sequences than the reduction processes at once."""
    z1, z2 = randn(17, 3, 4), randn(17, 2, 4, seed=1)
    for reduction in ("mean", "paper"):
        check(z1, z2, lengths1=randint(0, 4, 17), reduction=reduction)


@pytest.mark.parametrize("which", ["lengths", "masks", "mixed"])
def test_padding_never_leaks(which):
    z1, z2 = randn(3, 97, 17), randn(3, 65, 17, seed=1)
    lengths = torch.tensor([97, 0, 30]), torch.tensor([12, 65, 64])
    valid = [torch.arange(z.shape[1]) < n[:, None] for z, n in zip((z1, z2), lengths, strict=True)]
    if which == "masks":
        valid = [randint(0, 3, *m.shape, seed=s) > 0 for s, m in enumerate(valid)]
        valid[0][1] = False
    kwargs = {
        "lengths": {"lengths1": lengths[0], "lengths2": lengths[1].int()},
        "masks": {"valid1": valid[0], "valid2": valid[1]},
        "mixed": {"lengths1": lengths[0], "valid2": valid[1]},
    }[which]
    clean = check(z1, z2, **kwargs)
    for garbage in (math.nan, math.inf):
        dirty = [
            torch.where(m[..., None], z, garbage) for z, m in zip((z1, z2), valid, strict=True)
        ]
        for a, b in zip(run(*dirty, **kwargs), clean, strict=True):
            assert torch.equal(a, b)
    for g, m in zip(clean[1:], valid, strict=True):
        assert (g.cpu()[~m] == 0).all()


def test_lengths_are_clamped():
    """The host never reads lengths on a GPU, so kernels have to handle any value."""
    opts = SCLOptions(10.0, 0.1, True, "kl", "cross", "none")
    z1, z2 = (randn(2, 20, 4, seed=s).float().to(DEVICE) for s in (0, 1))
    wild = torch.tensor([-3, 2**40], device=DEVICE)
    tame = torch.tensor([0, 20], device=DEVICE)
    none, needs = [None] * 4, (True, True, False)
    got, want = (scl_triton.forward(z1, z2, *none, n, None, opts, needs)[0] for n in (wild, tame))
    assert torch.equal(got, want)


def test_nan_frame_shows():
    z1, z2 = randn(2, 40, 8), randn(2, 65, 8, seed=1)
    z2[0, 60] = math.nan
    for temperature in (0.1, 0.01):
        loss, d1, d2 = run(z1, z2, reduction="none", temperature=temperature)
        assert loss[0].isnan()
        assert loss[1].isfinite()
        assert d1[0].isnan().all()
        assert d2[0, 60].isnan().all()
        assert d1[1].isfinite().all()
        assert d2[1].isfinite().all()


TIMES = {
    "unsorted": lambda s: torch.randperm(97, generator=torch.Generator().manual_seed(s)) * 3,
    "duplicate": lambda s: randint(0, 20, 97, seed=s),
    "offset": lambda s: randint(0, 400, 2, 97, seed=s) + 10**12,
    "negative int32": lambda s: randint(-300, 300, 2, 97, seed=s).int(),
    "fp32 seconds": lambda s: randint(0, 2000, 2, 97, seed=s).float() / 30,
    "fp64 epoch": lambda s: 1.7e9 + randint(0, 2000, 2, 97, seed=s).double() / 16,
}


@pytest.mark.parametrize("kind", TIMES)
def test_times(kind):
    z1, z2 = randn(2, 97, 16), randn(2, 97, 16, seed=1)
    # For most frames the nearest frame is far away, at large exponents.
    kwargs = {"variance": 0.05, "grad": 1e-5} if kind == "fp32 seconds" else {}
    check(z1, z2, TIMES[kind](0), TIMES[kind](1), **kwargs)
    if kind == "offset":
        valid = randint(0, 2, 2, 97) > 0
        t1 = torch.where(valid, TIMES[kind](0), -(2**62))
        check(z1, z2, t1, TIMES[kind](1), valid1=valid)
        check(z1, z2, TIMES[kind](0), TIMES[kind](1).double())


def test_far_times():
    """Ranges of tiles within reach that start late, end early, have holes or are empty."""
    z1, z2 = randn(1, 97, 16), randn(1, 200, 16, seed=1)
    t1 = torch.arange(97) + 1000
    check(z1, z2, t1, torch.arange(200) + 1000 - 70)
    check(z1, z2, t1, torch.arange(200) * 100)
    holes = torch.where(torch.arange(200) % 90 < 40, torch.arange(200), 10**6)
    check(z1, z2, torch.arange(97), holes)
    loss, d1, d2 = run(z1, z2, t1, torch.arange(200) + 10**6)
    assert loss == 0
    assert (d1 == 0).all()
    assert (d2 == 0).all()


def test_isolated_rows():
    """Without a target within reach, a frame has exactly no loss and no gradient of its own loss;
    it counts in the mean and is a candidate in the other view's softmax.
    """
    z1, z2 = randn(1, 20, 8), randn(1, 30, 8, seed=1)
    t1, t2 = torch.arange(20), torch.arange(30)
    t1 = torch.where(torch.arange(20) < 4, t1 + 10_000, t1)
    for temperature in (0.1, 0.01):
        _, d1, _ = check(z1, z2, t1, t2, temperature=temperature)
        assert (d1[0, :4] != 0).any()
    t2[:] = -10_000
    t2[7] = 0  # one column remains within reach of view 1's rows 4 to 19
    check(z1, z2, t1, t2)


def test_every_gap_within_reach():
    """With the nearest frame 0 to 45 frames away, each row's targets still sum to 1."""
    z1, z2 = randn(46, 1, 8), randn(46, 3, 8, seed=1)
    gaps = torch.arange(46)
    t1, t2 = torch.zeros(46, 1), torch.stack([gaps, gaps + 1, gaps + 3], 1).float()
    kwargs = {"reduction": "none"}
    got = check(z1, z2, t1, t2, **kwargs)
    z1, z2 = z1.float(), z2.float()
    plain, want = (
        run(z1, z2, t1, t2, dtype=dtype, backend="reference", **kwargs)
        for dtype in (torch.float32, torch.float64)
    )
    for loss, exact, *rows in zip(got[0], want[0], *got[1:], *plain[1:], *want[1:], strict=True):
        assert abs(loss.item() - exact.item()) <= 1e-5  # a difference of terms of about 5
        as_accurate_as(rows[:2], rows[2:4], rows[4:], floor=EXPONENT, what=("dz1", "dz2"))


@pytest.mark.parametrize("need", [(True, False), (False, True)])
def test_one_view_without_gradient(need):
    z = [randn(2, 33, 9).float().to(DEVICE), randn(2, 70, 9, seed=1).float().to(DEVICE)]
    both = run(*z)[1:]
    leaves = [x.clone().requires_grad_(n) for x, n in zip(z, need, strict=True)]
    fastseq.scl_loss(*leaves, backend="triton").backward()
    for leaf, n, want in zip(leaves, need, both, strict=True):
        assert torch.equal(leaf.grad, want) if n else leaf.grad is None


def test_upstream_layouts():
    """An upstream gradient expanded from one number, and one with a stride."""
    z1, z2 = randn(3, 20, 5), randn(3, 20, 5, seed=1)
    weights = torch.tensor([2.0, 9.0, -1.0, 9.0, 0.0, 9.0])[::2]
    check(z1, z2, reduction="none", upstream=weights)
    check(z1, z2, reduction="none", upstream=torch.tensor(3.0).expand(3))


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_same_bits_alone_and_in_a_batch(temperature):
    z1, z2 = randn(3, 97, 32), randn(3, 130, 32, seed=1)
    t1, t2 = randint(0, 150, 3, 97, seed=2), randint(0, 150, 3, 130, seed=3)
    lengths = [97, 64, 20], [130, 65, 3]
    kwargs = {"reduction": "none", "temperature": temperature}
    batch = run(z1, z2, t1, t2, lengths1=lengths[0], lengths2=lengths[1], **kwargs)
    again = run(z1, z2, t1, t2, lengths1=lengths[0], lengths2=lengths[1], **kwargs)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    for n, (a, b) in enumerate(zip(*lengths, strict=True)):
        alone = run(z1[n, :a], z2[n, :b], t1[n, :a], t2[n, :b], **kwargs)
        assert torch.equal(alone[0], batch[0][n : n + 1].view_as(alone[0]))
        assert torch.equal(alone[1], batch[1][n, :a])
        assert torch.equal(alone[2], batch[2][n, :b])


def test_swapping_views_swaps_gradients():
    z1, z2 = randn(2, 65, 16), randn(2, 40, 16, seed=1)
    loss, d2, d1 = run(z2, z1, lengths2=[65, 12])
    plain, want = (
        run(z1.float(), z2.float(), lengths1=[65, 12], dtype=dtype, backend="reference")
        for dtype in (torch.float32, torch.float64)
    )
    as_accurate_as((loss, d1, d2), plain, want)


def test_empty_batch():
    loss, d1, d2 = run(randn(0, 5, 3), randn(0, 4, 3))
    assert loss == 0
    assert d1.shape == (0, 5, 3)
    assert d2.shape == (0, 4, 3)


def test_timestamps_of_a_view_without_frames():
    z1, z2 = randn(1, 0, 4), randn(1, 5, 4)
    loss, dz1, dz2 = run(z1, z2, torch.arange(0), torch.arange(5))
    assert loss == 0
    assert dz1.shape == (1, 0, 4)
    assert (dz2 == 0).all()


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e3), (torch.float16, 1.2e4)])
def test_huge_scores_keep_probabilities_at_most_one(dtype, scale):
    """Scores of 10^7 are accurate to one unit: gradients are coarse but stay bounded."""
    z1, z2 = randn(2, 9, 4) * scale, randn(2, 9, 4, seed=1) * scale
    check(z1, z2, normalize=False, dtype=dtype, grad=1)
