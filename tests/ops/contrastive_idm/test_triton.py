"""The Triton kernels of contrastive_idm against float64, interpreted on machines without a GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted

from fastseq.ops.contrastive_idm import triton as cidm_triton
from fastseq.ops.contrastive_idm.options import CIDMOptions
from ops.contrastive_idm.cases import brute_force, loss_and_grad

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:contrastive_idm. with more than 128 frames"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (0, 1, 2, 63, 64, 65, 97, 130, 200)
VARIANTS = [
    ("contrastive", "paper", "sqeuclidean"),
    ("contrastive", "code", "sqeuclidean"),
    ("idm", "paper", "sqeuclidean"),
    ("sfa", "paper", "sqeuclidean"),
    ("contrastive", "paper", "euclidean"),
    ("sfa", "paper", "euclidean"),
]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randint(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def run(z, *args, dtype=torch.float32, backend="triton", upstream=1.0, **kwargs):
    """Loss and gradient on the device under test."""

    def there(x):
        return x.to(DEVICE) if isinstance(x, torch.Tensor) else x

    args, kwargs = map(there, args), {k: there(v) for k, v in kwargs.items()}
    return loss_and_grad(
        there(z.to(dtype)), *args, backend=backend, upstream=there(upstream), **kwargs
    )


def check(z, *args, dtype=torch.float32, grad=None, **kwargs):
    """Asserts that Triton in ``dtype`` is as accurate as the reference in it, on the same rounded
    inputs; ``grad`` replaces the gradient's floor.
    """
    z = z.to(dtype)
    got = run(z, *args, dtype=dtype, **kwargs)
    plain = run(z, *args, dtype=dtype, backend="reference", **kwargs)
    want = run(z, *args, dtype=torch.float64, backend="torch", **kwargs)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    as_accurate_as(got[0], plain[0], want[0])
    as_accurate_as(got[1:], plain[1:], want[1:], floor=grad, what=("dz",))
    return got


@pytest.mark.parametrize(("kind", "weights", "distance"), VARIANTS)
def test_equals_loops(kind, weights, distance):
    z, t = randn(2, 9, 5), randint(0, 40, 2, 9)
    kw = {"kind": kind, "weights": weights, "distance": distance, "window": 7, "margin": 6.0}
    want = torch.tensor([brute_force(z[n], t[n], **kw) for n in range(2)], dtype=torch.float64)
    got, plain = (
        run(z, t, reduction="none", backend=b, **kw)[0].cpu() for b in ("triton", "reference")
    )
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_frames(frames, distance):
    """An odd and an even number of blocks, of 64 and of 32 frames."""
    check(randn(2, frames, 17) / 4, distance=distance, weights="code", window=40)


def test_long():
    check(randn(1, 300, 128) / 128**0.5, margin=1.9)


@pytest.mark.parametrize("channels", [1, 8, 17, 64, 200, 512])
@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_channels(channels, distance):
    # The smaller a root is, the larger its slope, and the more cancels in the sum of the slopes.
    grad = 1e-5 if (distance, channels) == ("euclidean", 1) else None
    check(randn(1, 70, channels) / channels**0.5, window=30, distance=distance, grad=grad)


@pytest.mark.parametrize(("kind", "weights", "distance"), VARIANTS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_kinds_and_reductions(kind, weights, distance, reduction):
    z, t = randn(3, 70, 17) / 4, randint(0, 300, 3, 70)
    upstream = torch.tensor([-2.0, 0.5, 3.0]) if reduction == "none" else -2.5
    kw = {"kind": kind, "weights": weights, "distance": distance, "reduction": reduction}
    check(z, t, lengths=torch.tensor([70, 0, 30]), margin=1.5, upstream=upstream, **kw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_half(dtype, distance):
    """Operands are exact and accumulators fp32, so that only slopes and the result are rounded. Of
    three blocks, the outer two have no pair within the window.
    """
    z = randn(2, 130, 24) / 5
    kw = {"dtype": dtype, "distance": distance, "margin": 1.7}
    kw["grad"] = interpreted(dtype, DEVICE)
    check(z, lengths=[130, 40], **kw)
    check(z[:1], torch.arange(130) / 130, window=0.1, weights="code", **kw)


def test_fp16_weights_beyond_its_range():
    """Gaps of 4000 frames have weights of 1.6e7; the mean returns the gradient to the range of
    fp16.
    """
    z, t = randn(1, 97, 16) / 4, torch.arange(97) * 40
    check(z, t, dtype=torch.float16, upstream=1e-4)


@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_fp32_far_from_the_origin(distance):
    """Distances of 1 between embeddings with norms of 1200."""
    z = randn(1, 97, 16) / 4 + 300 * randn(1, 1, 16, seed=1)
    check(z, margin=1.5, distance=distance)


@pytest.mark.parametrize("kernel_tiles", [(16, 32, 16, 16), (32, 16, 32, 64)])
def test_channel_steps_and_chunks(monkeypatch, kernel_tiles):
    """The distance in steps over the channels, the gradient in chunks of them."""
    tile = cidm_triton.Tiles(*kernel_tiles, 4, 1)
    monkeypatch.setattr(cidm_triton, "tiles", lambda *_: tile)
    z = randn(2, 40, 40) / 6  # complete and incomplete blocks of 16 and of 32 frames
    check(z, lengths=[40, 17])
    check(z[:1], dtype=torch.float16, weights="code")
    check(z[:1], distance="euclidean")


def test_single_frame_and_equal_frames():
    for distance in ("sqeuclidean", "euclidean"):
        for z in (randn(2, 1, 5), randn(2, 1, 5).expand(2, 70, 5) * 1e3):
            loss, dz = run(z, window=100, distance=distance)
            assert loss == 0
            assert (dz == 0).all()


def test_exactly_at_the_margin_and_at_the_window():
    z = torch.tensor([[0.0], [2.0]])
    for distance, margin in (("sqeuclidean", 4.0), ("euclidean", 2.0)):
        loss, dz = run(z, window=0, margin=margin, distance=distance)
        assert loss == 0
        assert (dz == 0).all()
    kw = {"kind": "sfa", "reduction": "sum", "margin": 10.0}
    for t, window, want in (([3, 13], 10, 8), ([3, 13], 9.99, 12), ([0.25, 0.5], 0.25, 8)):
        assert run(z, torch.tensor(t), window=window, **kw)[0] == want


@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_padding_never_leaks(distance):
    z, t, lengths = randn(3, 97, 17), randint(0, 300, 3, 97).float(), torch.tensor([97, 0, 30])
    padded = torch.arange(97) >= lengths[:, None]
    kw = {"lengths": lengths.int(), "distance": distance}
    clean = check(z, t, **kw)
    for garbage in (math.nan, math.inf):
        dirty = z.masked_fill(padded[..., None], garbage), t.masked_fill(padded, garbage)
        assert all(map(torch.equal, run(*dirty, **kw), clean))
    assert (clean[1].cpu()[padded] == 0).all()


def test_lengths_are_clamped():
    """The host never reads lengths on a GPU, so kernels have to handle any value."""
    opts = CIDMOptions(5.0, 2.0, "contrastive", "paper", "sqeuclidean", "mean")
    z = randn(3, 20, 4).float().to(DEVICE)
    wild = torch.tensor([-3, 2**40, 7], device=DEVICE)
    tame = torch.tensor([0, 20, 7], device=DEVICE)
    loss, coef, _ = cidm_triton.forward(z, None, wild, None, opts, [True])
    tame_loss, tame_coef, _ = cidm_triton.forward(z, None, tame, None, opts, [True])
    assert torch.equal(loss, tame_loss)
    assert torch.equal(coef, tame_coef)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_in_a_frame_or_a_time_shows(variant):
    kind, weights, distance = variant
    kw = {"kind": kind, "weights": weights, "distance": distance, "reduction": "none"}
    bad, time = randn(2, 70, 8), torch.arange(70.0).expand(2, 70).clone()
    bad[0, 67, 3] = time[0, 5] = math.nan
    for args in ((bad,), (randn(2, 70, 8), time)):
        loss, dz = run(*args, **kw)
        assert loss[0].isnan()
        assert dz[0].isnan().any(-1).all()
        assert loss[1].isfinite()
        assert dz[1].isfinite().all()


TIMES = {
    "unsorted": torch.randperm(97, generator=torch.Generator().manual_seed(0)) * 3,
    "duplicate": randint(0, 20, 97),
    "offset": randint(0, 400, 2, 97) + 10**12,
    "negative int32": randint(-300, 300, 2, 97).int(),
    "spans int32": torch.tensor([-(2**31), 2**31 - 1] * 48 + [0]).int(),
    "fp32 thirds": torch.arange(97) / 3,
    "fp64 epoch": 1.7e9 + randint(0, 2000, 2, 97).double() / 16,
}


@pytest.mark.parametrize("kind", TIMES)
def test_times(kind):
    window = 10 / 3 if "fp32" in kind else 10
    check(randn(2, 97, 16) / 4, TIMES[kind], window=window, weights="code")
    check(randn(2, 97, 16) / 4, TIMES[kind], window=torch.tensor([3.0, 60.0]), lengths=[97, 50])


def test_upstream_layouts():
    """An upstream gradient expanded from one number, and one with a stride."""
    z = randn(3, 20, 5)
    strided = torch.tensor([2.0, 9.0, -1.0, 9.0, 0.0, 9.0])[::2]
    for upstream in (strided, torch.tensor(3.0).expand(3)):
        check(z, reduction="none", upstream=upstream)


@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
def test_same_bits_alone_and_in_a_batch(distance):
    z, t, lengths = randn(3, 130, 16), randint(0, 160, 3, 130), [130, 64, 97]
    kw = {"reduction": "none", "distance": distance}
    batch = run(z, t, lengths=lengths, **kw)
    assert all(map(torch.equal, run(z, t, lengths=lengths, **kw), batch))
    for n, k in enumerate(lengths):
        alone = run(z[n, :k], t[n, :k], **kw)
        assert torch.equal(alone[0], batch[0][n])
        assert torch.equal(alone[1], batch[1][n, :k])


def test_many_sequences():
    """More sequences than the reduction processes at once."""
    check(randn(37, 3, 4), lengths=randint(0, 4, 37))


def test_empty():
    for shape in ((0, 5, 3), (2, 0, 3)):
        loss, dz = run(randn(*shape))
        assert loss == 0
        assert dz.shape == shape
