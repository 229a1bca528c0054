"""``negatives="video"`` and ``"batch"`` on Triton against float64, interpreted without a GPU."""

import functools
import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted

import fastseq
from fastseq.ops.common import launch
from fastseq.ops.scl import negatives as launcher
from ops.scl.cases import brute_force
from ops.scl.test_triton import DEVICE, check, randint, randn, run

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread", "nan_empty"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

BOTH = pytest.mark.parametrize("negatives", ["video", "batch"])


@pytest.fixture(autouse=True, scope="module")
def large_copies():
    """Under the interpreter a program costs more than its rows, so frames are copied 64 at a
    time.
    """
    if DEVICE == "cuda":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "GATHERED", 64)
        launch.clear()
        yield
    launch.clear()


@BOTH
def test_equals_loops(negatives):
    z1, z2 = randn(3, 7, 5), randn(3, 9, 5, seed=1)
    t1, t2 = randint(0, 60, 3, 7), randint(0, 60, 3, 9, seed=1)
    m1, m2 = randint(0, 4, 3, 7, seed=2) > 0, randint(0, 4, 3, 9, seed=3) > 0
    rows = brute_force(z1, z2, t1, t2, m1, m2, negatives=negatives)
    want = sum(r.sum(1) for r in rows)
    kwargs = {"valid1": m1, "valid2": m2, "reduction": "none", "negatives": negatives}
    got, plain = (run(z1, z2, t1, t2, backend=b, **kwargs)[0] for b in ("triton", "reference"))
    as_accurate_as(got.cpu(), plain.cpu(), want)


@BOTH
@pytest.mark.parametrize("pair", [(1, 2), (63, 65), (64, 64), (97, 0), (33, 130)])
def test_frames(negatives, pair):
    """Views that are slightly shorter or longer than a tile, so that neither they nor videos begin
    at tile boundaries. There are three videos, so that a video has negatives before and after it;
    the longest shape has two.
    """
    check(*(randn(2 if 130 in pair else 3, t, 17, seed=t) for t in pair), negatives=negatives)


@BOTH
@pytest.mark.parametrize("channels", [1, 128, 200])
def test_channels(negatives, channels):
    check(randn(2, 20, channels), randn(2, 33, channels, seed=1), negatives=negatives)


@BOTH
def test_channel_steps_and_chunks(monkeypatch, negatives):
    """Scores in steps over the channels, gradients in chunks of them, copies of a few frames, and
    two sizes of tiles.
    """

    def small(kernel, *_):
        return launch.Tiles(16, 32, 16, 32, 4, 1) if kernel == "more" else small.grad

    small.grad = launch.Tiles(32, 16, 32, 16, 4, 1)
    launch.clear()
    monkeypatch.setattr(launcher, "tiles", small)
    monkeypatch.setattr(launcher, "GATHERED", 16)
    z1, z2 = randn(2, 33, 40), randn(2, 20, 40, seed=1)
    try:
        check(z1, z2, valid1=randint(0, 3, 2, 33) > 0, negatives=negatives)
        # 2 rows of tiles and one column, or the reverse.
        z1, z2 = z1[:, :17], z2[:, :9]
        check(z1, z2, dtype=torch.float16, temperature=0.01, negatives=negatives)
    finally:
        launch.clear()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(dtype, negatives):
    """Operands are exact, sums are float32, and the gradient of all candidates is rounded once."""
    z1, z2 = randn(2, 70, 17), randn(2, 65, 17, seed=1)
    kwargs = {"dtype": dtype, "negatives": negatives, "grad": interpreted(dtype, DEVICE)}
    check(z1, z2, lengths1=[70, 30], **kwargs)
    z1, z2 = z1[:, :40], z2[:, :33]  # two tiles of columns in "batch", too
    check(z1, z2, temperature=0.01, **kwargs)
    check(z1, z2, normalize=False, temperature=5.0, **kwargs)


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 1e2])
def test_fp16_range(negatives, scale):
    """1 / norm and 1 / frames would be outside the range of fp16 where probabilities are
    rounded.
    """
    z1, z2 = randn(2, 33, 17) * scale, randn(2, 40, 17, seed=1) * scale
    check(z1, z2, dtype=torch.float16, upstream=1e3 * scale, negatives=negatives)


# Only with normalised frames does the temperature determine how exponents are kept in range. Tested
# on both sides of that limit, and at the extremes.
@BOTH
@pytest.mark.parametrize(
    ("normalize", "temperature"),
    [(True, 1e-3), (True, 0.02), (True, 0.025), (True, 1.0), (False, 1e-3), (False, 1.0)],
)
def test_temperature(temperature, normalize, negatives):
    z1, z2 = randn(2, 40, 16), randn(2, 70, 16, seed=1)
    if not normalize:
        z1, z2 = z1 / 4, z2 / 4
    kwargs = {"temperature": temperature, "normalize": normalize, "negatives": negatives}
    if temperature <= 0.01:  # as in test_triton.py
        kwargs["grad"] = 1e-5 if DEVICE == "cpu" else 1e-3
    check(z1, z2, **kwargs)
    z1, z2 = z1[:, :20], z2[:, :20]
    check(z1, z1 + 1e-2 * z2, **kwargs)  # similar views


# Every pair of reduction, objective and negatives.
@pytest.mark.parametrize(
    ("reduction", "objective", "negatives"),
    [
        ("none", "kl", "batch"),
        ("none", "ce", "video"),
        ("mean", "kl", "video"),
        ("mean", "ce", "batch"),
        ("sum", "kl", "batch"),
        ("sum", "ce", "video"),
        ("paper", "kl", "video"),
        ("paper", "ce", "batch"),
    ],
)
def test_reductions(objective, reduction, negatives):
    """A video without upstream gradient still gets its gradient as a negative of others."""
    z1, z2 = randn(3, 40, 17), randn(3, 33, 17, seed=1)
    valid1 = randint(0, 3, 3, 40, seed=2) > 0
    valid1[2] = False
    times = randint(0, 300, 3, 40, seed=3), randint(0, 300, 3, 33, seed=4)
    upstream = torch.tensor([-2.0, 0.0, 3.0]) if reduction == "none" else -2.5
    kwargs = {"objective": objective, "reduction": reduction, "upstream": upstream}
    kwargs |= {"negatives": negatives, "variance": 40.0}
    got = check(z1, z2, *times, valid1=valid1, lengths2=torch.tensor([33, 12, 0]), **kwargs)
    if reduction == "none":
        assert (got[1][1].cpu()[valid1[1]] != 0).any() == (negatives == "batch")


@BOTH
def test_without_upstream_gradient(negatives):
    z1, z2 = randn(2, 20, 5), randn(2, 20, 5, seed=1)
    _, *grads = run(z1, z2, upstream=0.0, negatives=negatives)
    assert all((g == 0).all() for g in grads)


@BOTH
@pytest.mark.parametrize("which", ["lengths", "masks"])
def test_padding_never_leaks(which, negatives):
    z1, z2 = randn(2, 70, 17), randn(2, 66, 17, seed=1)
    lengths = torch.tensor([66, 0]), torch.tensor([12, 65])
    valid = [torch.arange(z.shape[1]) < n[:, None] for z, n in zip((z1, z2), lengths, strict=True)]
    kwargs = {"lengths1": lengths[0], "lengths2": lengths[1].int()}
    if which == "masks":
        valid = [randint(0, 3, *m.shape, seed=s) > 0 for s, m in enumerate(valid)]
        valid[0][1] = False
        kwargs = {"valid1": valid[0], "valid2": valid[1]}
    clean = check(z1, z2, negatives=negatives, **kwargs)
    garbage = torch.where(torch.arange(70) % 2 == 0, math.nan, math.inf)[:, None]
    dirty = [
        torch.where(m[..., None], z, garbage[: z.shape[1]])
        for z, m in zip((z1, z2), valid, strict=True)
    ]
    for a, b in zip(run(*dirty, negatives=negatives, **kwargs), clean, strict=True):
        assert torch.equal(a, b)
    for g, m in zip(clean[1:], valid, strict=True):
        assert (g.cpu()[~m] == 0).all()


@BOTH
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_nan_frame_shows(negatives, temperature):
    """In "batch" it is a negative of every other video."""
    z1, z2 = randn(2, 40, 8), randn(2, 65, 8, seed=1)
    z2[0, 60] = math.nan
    kwargs = {"negatives": negatives, "reduction": "none", "temperature": temperature}
    loss, d1, d2 = run(z1, z2, **kwargs)
    assert loss[0].isnan()
    assert d1[0].isnan().all()
    assert d2[0].isnan().all() or negatives == "batch"
    assert d2[0, 60].isnan().all()
    if negatives == "video":
        assert all(x[1].isfinite().all() for x in (loss, d1, d2))
    else:
        assert all(x[1].isnan().all() for x in (loss, d1, d2))


@BOTH
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_isolated_rows(negatives, temperature):
    """Without a target within reach, a frame has no loss itself but is a candidate in other
    softmaxes.
    """
    z1, z2 = randn(2, 20, 8), randn(2, 30, 8, seed=1)
    t1, t2 = torch.arange(20).repeat(2, 1), torch.arange(30).repeat(2, 1)
    t1[0, :4] += 10_000
    t2[1] += 10_000
    _, d1, d2 = check(z1, z2, t1, t2, negatives=negatives, temperature=temperature)
    assert (d1[0, :4] != 0).any()
    if negatives == "batch":  # none of the second video's frames has a target
        assert (d1[1] != 0).any()
        assert (d2[1] != 0).any()


def unequal_views():
    return [randn(2, 33, 9).float().to(DEVICE), randn(2, 70, 9, seed=1).float().to(DEVICE)]


@functools.cache
def gradients_of_both_views(negatives):
    return run(*unequal_views(), negatives=negatives)[1:]


@BOTH
@pytest.mark.parametrize("need", [(True, False), (False, True)])
def test_one_view_without_gradient(need, negatives):
    z, both = unequal_views(), gradients_of_both_views(negatives)
    leaves = [x.clone().requires_grad_(n) for x, n in zip(z, need, strict=True)]
    fastseq.scl_loss(*leaves, backend="triton", negatives=negatives).backward()
    for leaf, n, want in zip(leaves, need, both, strict=True):
        assert torch.equal(leaf.grad, want) if n else leaf.grad is None


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_same_bits_alone_and_in_a_batch(temperature):
    z1, z2 = randn(3, 70, 32), randn(3, 66, 32, seed=1)
    kwargs = {"reduction": "none", "temperature": temperature, "negatives": "video"}
    lengths = [70, 64, 20], [66, 65, 3]
    batch = run(z1, z2, lengths1=lengths[0], lengths2=lengths[1], **kwargs)
    for n, (a, b) in enumerate(zip(*lengths, strict=True)):
        one = z1[n : n + 1], z2[n : n + 1]
        alone = run(*one, lengths1=[a], lengths2=[b], **kwargs)
        assert all(torch.equal(x[0], y[n]) for x, y in zip(alone, batch, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_does_not_know_how_much_another_video_counts(dtype):
    z1, z2 = randn(2, 70, 16).to(dtype), randn(2, 66, 16, seed=1).to(dtype)
    z1.requires_grad_()
    z2.requires_grad_()
    loss = fastseq.scl_loss(z1, z2, negatives="video", reduction="none", backend="triton")
    got = [
        torch.autograd.grad(loss, (z1, z2), torch.tensor(upstream), retain_graph=True)
        for upstream in ([1.0, 1.0], [1.0, 3.7], [1.0, math.inf])
    ]
    for other in got[1:]:
        assert all(torch.equal(x[0], y[0]) for x, y in zip(got[0], other, strict=True))


@BOTH
def test_same_bits_again(negatives):
    z1, z2 = randn(2, 70, 32), randn(2, 40, 32, seed=1)
    first, again = (run(z1, z2, negatives=negatives) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_batch_of_one_has_no_more_negatives():
    z1, z2 = randn(1, 70, 9), randn(1, 33, 9, seed=1)
    got, want = (run(z1, z2, negatives=kind) for kind in ("batch", "cross"))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@BOTH
def test_empty_batch(negatives):
    loss, d1, d2 = run(randn(0, 5, 3), randn(0, 4, 3), negatives=negatives)
    assert loss == 0
    assert d1.shape == (0, 5, 3)
    assert d2.shape == (0, 4, 3)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zero_frame(dtype, negatives):
    """Its norm is clamped to 1e-12 as in torch.nn.functional.normalize: no NaN for the others."""
    z1, z2 = randn(2, 10, 8), randn(2, 12, 8, seed=1)
    z2[0, 3] = 0
    z1, z2 = z1.to(dtype), z2.to(dtype)
    others = torch.ones(2, 12, dtype=torch.bool)
    others[0, 3] = False
    got, plain, want = (
        (loss, d1, d2[others.to(d2.device)])
        for loss, d1, d2 in (
            run(z1, z2, dtype=dtype, negatives=negatives),
            run(z1, z2, dtype=dtype, backend="reference", negatives=negatives),
            run(z1, z2, dtype=torch.float64, backend="reference", negatives=negatives),
        )
    )
    as_accurate_as(got, plain, want)


@pytest.mark.compile
@BOTH
def test_compiled_equals_eager(negatives):
    z1, z2 = randn(2, 9, 4).float().to(DEVICE), randn(2, 7, 4, seed=1).float().to(DEVICE)
    options = {"negatives": negatives, "backend": "triton", "lengths1": [9, 4]}

    def both(function):
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        loss = function(a, b, **options)
        return (loss, *torch.autograd.grad(loss, (a, b)))

    torch._dynamo.reset()
    compiled = torch.compile(fastseq.scl_loss, fullgraph=True, backend="aot_eager")
    for want, got in zip(both(fastseq.scl_loss), both(compiled), strict=True):
        assert torch.equal(want, got)
