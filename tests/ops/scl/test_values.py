"""scl_loss: the definition against loops, the blockwise backend against the definition."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tolerance import as_accurate_as, relative

import fastseq
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS
from ops.scl.cases import brute_force, golden, loss_and_grads, reduce

LINEAR = "torch"
pytestmark = pytest.mark.usefixtures("nan_empty")


def _randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _ragged(n=3, t1=9, t2=13, dtype=torch.float64):
    z1, z2 = _randn(n, t1, 5, dtype=dtype), _randn(n, t2, 5, dtype=dtype, seed=1)
    times = torch.randint(0, 120, (n, t1 + t2), generator=torch.Generator().manual_seed(2))
    lengths1 = [t1, 0, 4][:n]
    valid2 = torch.rand(n, t2, generator=torch.Generator().manual_seed(3)) < 0.7
    return z1, z2, times[:, :t1], times[:, t1:], lengths1, valid2


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", [True, False])
def test_reference_equals_loops(negatives, objective, normalize):
    z1, z2, t1, t2, lengths1, valid2 = _ragged()
    m1 = valid_mask(torch.tensor(lengths1), 3, 9, z1.device)
    kw = {
        "negatives": negatives,
        "objective": objective,
        "normalize": normalize,
        "temperature": 0.3,
    }
    rows = brute_force(z1, z2, t1, t2, m1, valid2, **kw)
    for reduction in REDUCTIONS:
        got = fastseq.scl_loss(
            z1,
            z2,
            t1,
            t2,
            lengths1=lengths1,
            valid2=valid2,
            reduction=reduction,
            backend="reference",
            **kw,
        )
        torch.testing.assert_close(
            got, reduce(*rows, m1, valid2, reduction), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("backend", ["reference", LINEAR])
def test_golden_clean_value_and_gradient(backend):
    z, steps, _ = golden()
    z.requires_grad_()
    loss = fastseq.scl_loss(
        z[:, 0], z[:, 1], steps[:, 0], steps[:, 1], normalize=False, backend=backend
    )
    (dz,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(9.19701, rel=1e-5)
    assert dz.norm().item() == pytest.approx(5.54309, rel=1e-5)


def test_reference_is_differentiable_twice():
    z1, z2, t1, t2, _, valid2 = _ragged(n=2, t1=3, t2=4)

    def loss(a, b):
        return fastseq.scl_loss(
            a, b, t1, t2, lengths1=[3, 2], valid2=valid2, temperature=0.5, backend="reference"
        )

    inputs = (z1.requires_grad_(), z2.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize(
    ("negatives", "reduction", "objective"),
    list(itertools.product(NEGATIVES, REDUCTIONS, OBJECTIVES)),
)
@pytest.mark.parametrize("temperature", [0.01, 0.1])  # with and without running maximum
@pytest.mark.usefixtures("pairs")
def test_blockwise_equals_reference_in_float64(negatives, reduction, objective, temperature):
    kw = {
        "negatives": negatives,
        "reduction": reduction,
        "objective": objective,
        "temperature": temperature,
    }
    z1, z2, t1, t2, lengths1, valid2 = _ragged()
    upstream = -1.7 * _randn(3, seed=9) if reduction == "none" else -1.7
    times = (t1, t2), (t1[:1].expand_as(t1), t2[:1].expand_as(t2)), ()
    for normalize in (True, False):
        for extra, t in itertools.product(({}, {"lengths1": lengths1, "valid2": valid2}), times):
            args = (z1, z2, *t)
            pair = [
                loss_and_grads(
                    *args, upstream=upstream, normalize=normalize, backend=backend, **kw, **extra
                )
                for backend in ("reference", LINEAR)
            ]
            for want, got in zip(*pair, strict=True):
                assert relative(got, want) < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("frames1", "frames2"),
    [(1, 1), (2, 63), (64, 65), (97, 480), (600, 600), (0, 3), (3, 0), (0, 0)],
)
@pytest.mark.parametrize("elements", [1 << 8, 1 << 12, 1 << 20])
@pytest.mark.usefixtures("pairs")
def test_blockwise_over_lengths_and_block_sizes(frames1, frames2, elements, monkeypatch):
    import fastseq.ops.scl.torch_problem as blockwise

    monkeypatch.setattr(blockwise, "SHORT_ELEMENTS", elements)
    monkeypatch.setattr(blockwise, "LONG_ELEMENTS", elements)
    z1, z2 = _randn(2, frames1, 17), _randn(2, frames2, 17, seed=1)
    t1, t2 = torch.arange(frames1) * 2.5, torch.arange(frames2) * 1.5 + 4
    pair = [loss_and_grads(z1, z2, t1, t2, backend=b) for b in ("reference", LINEAR)]
    for want, got in zip(*pair, strict=True):
        assert relative(got, want) < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["reference", LINEAR])
@pytest.mark.parametrize("frames", [240, 480, 1024])
def test_float32_against_float64(backend, frames):
    z1, z2 = _randn(2, frames, 128), _randn(2, frames, 128, seed=1)
    generator = torch.Generator().manual_seed(2)
    times = torch.rand(2, 2, frames, generator=generator).mul(3 * frames).sort(-1).values
    want = loss_and_grads(z1, z2, *times, backend="reference")
    z1, z2 = z1.float(), z2.float()
    plain, got = (loss_and_grads(z1, z2, *times, backend=b) for b in ("reference", backend))
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1, 10])
def test_temperatures_no_worse_than_plain_float32(temperature):
    z1, z2 = _randn(2, 100, 64), _randn(2, 100, 64, seed=1)
    want = loss_and_grads(z1, z2, temperature=temperature, backend="reference")
    plain, got = (
        loss_and_grads(z1.float(), z2.float(), temperature=temperature, backend=b)
        for b in ("reference", LINEAR)
    )
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("temperature", [1e-3, 0.005, 0.02, 0.03])
def test_equal_embeddings_at_small_temperatures(temperature):
    """Cosines of 1: where exp without a running maximum would overflow."""
    z = _randn(1, 50, 8)
    want = loss_and_grads(z, z, temperature=temperature, backend="reference")
    plain, got = (
        loss_and_grads(z.float(), z.float(), temperature=temperature, backend=b)
        for b in ("reference", LINEAR)
    )
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_unnormalised_input(scale):
    z1, z2 = _randn(2, 50, 8) * scale, _randn(2, 50, 8, seed=1) * scale
    for normalize in (True, False):
        want = loss_and_grads(z1, z2, normalize=normalize, backend="reference")
        got = loss_and_grads(z1, z2, normalize=normalize, backend=LINEAR)
        for a, b in zip(got, want, strict=True):
            assert relative(a, b) < 1e-11


@pytest.mark.parametrize("backend", ["reference", LINEAR])
@pytest.mark.usefixtures("pairs")
def test_padding_never_matters(backend):
    z1, z2, t1, t2, lengths1, valid2 = _ragged(dtype=torch.float32)
    kw = {"lengths1": lengths1, "valid2": valid2, "backend": backend}
    for negatives in NEGATIVES:
        clean = loss_and_grads(z1, z2, t1, t2, negatives=negatives, **kw)
        bad1, bad2 = z1.clone(), z2.clone()
        m1 = valid_mask(torch.tensor(lengths1), 3, 9, z1.device)
        bad1[~m1], bad2[~valid2] = torch.nan, torch.inf
        late1, late2 = t1.clone(), t2.clone()
        late1[~m1], late2[~valid2] = -(2**62), 2**62
        dirty = loss_and_grads(bad1, bad2, late1, late2, negatives=negatives, **kw)
        for a, b in zip(clean, dirty, strict=True):
            assert torch.equal(a, b)
        assert (dirty[1][~m1] == 0).all()
        assert (dirty[2][~valid2] == 0).all()


@pytest.mark.parametrize("backend", ["reference", LINEAR])
@pytest.mark.usefixtures("pairs")
def test_nan_in_a_real_frame_is_not_hidden(backend):
    z1, z2 = _randn(1, 4, 3), _randn(1, 4, 3, seed=1)
    z1[0, 2, 1] = torch.nan
    assert loss_and_grads(z1, z2, backend=backend)[0].isnan()


@pytest.mark.parametrize("backend", ["reference", LINEAR])
@pytest.mark.usefixtures("pairs")
def test_zero_and_tiny_embeddings_differentiate_as_in_normalize(backend):
    z1, z2 = _randn(1, 5, 3), _randn(1, 5, 3, seed=1)
    z1[0, 2] = z2[0, 4] = 0
    z1[0, 1] *= 1e-13  # below 1e-12, which replaces the norm
    unit = [F.normalize(z.requires_grad_(), dim=-1) for z in (z1, z2)]
    loss = fastseq.scl_loss(*unit, normalize=False, backend="reference")
    got = loss_and_grads(z1, z2, backend=backend)
    for a, b in zip(got, (loss, *torch.autograd.grad(loss, (z1, z2))), strict=True):
        torch.testing.assert_close(a, b)
    assert got[1][0, 2].norm() > 1e6


@pytest.mark.parametrize("backend", ["reference", LINEAR])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_real_gives_zero_and_zero_gradients(backend, reduction):
    z = _randn(2, 4, 3)
    for kw in ({"lengths1": [0, 0], "lengths2": [0, 0]}, {"lengths2": [0, 0]}):
        loss, dz1, dz2 = loss_and_grads(z, z, reduction=reduction, backend=backend, **kw)
        assert (loss == 0).all()
        assert (dz1 == 0).all()
        assert (dz2 == 0).all()
    for negatives in NEGATIVES:
        for videos, frames in ((0, 4), (2, 0), (0, 0)):
            empty = z[:videos, :frames]
            loss, dz1, _ = loss_and_grads(
                empty, empty, reduction=reduction, negatives=negatives, backend=backend
            )
            assert loss.shape == ((videos,) if reduction == "none" else ())
            assert (loss == 0).all()
            assert dz1.shape == empty.shape


@pytest.mark.parametrize("backend", ["reference", LINEAR])
def test_forms_of_the_same_call(backend):
    z1, z2 = _randn(2, 6, 4), _randn(2, 6, 4, seed=1)
    loss = fastseq.scl_loss(z1, z2, lengths1=[6, 4], lengths2=[6, 4], backend=backend)
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    lengths = torch.tensor([6, 4], dtype=torch.int32)
    for kw in (
        {"valid1": mask, "valid2": mask},
        {"lengths1": lengths, "lengths2": lengths},
        {"lengths1": lengths, "valid2": mask},
    ):
        assert fastseq.scl_loss(z1, z2, backend=backend, **kw) == loss
    t = torch.arange(6)
    every = fastseq.scl_loss(z1, z2, backend=backend)
    torch.testing.assert_close(fastseq.scl_loss(z1, z2, t, t, backend=backend), every)
    torch.testing.assert_close(
        fastseq.scl_loss(z1, z2, t.expand(2, 6), t.double() + 0.0, backend=backend), every
    )
    none = fastseq.scl_loss(z1, z2, reduction="none", backend=backend)
    total = fastseq.scl_loss(z1, z2, reduction="sum", backend=backend)
    torch.testing.assert_close(none.sum(), total)
    torch.testing.assert_close(total / 24, every)
    paper = fastseq.scl_loss(z1, z2, reduction="paper", backend=backend)
    torch.testing.assert_close(paper, 2 * every)  # equal lengths
    # A video without real frames does not count in the mean.
    first = {"lengths1": [6, 0], "lengths2": [6, 0], "reduction": "paper", "backend": backend}
    alone = fastseq.scl_loss(z1[:1], z2[:1], reduction="paper", backend=backend)
    torch.testing.assert_close(fastseq.scl_loss(z1, z2, **first), alone)
    one = fastseq.scl_loss(z1[0], z2[0], reduction="none", backend=backend)
    assert one.shape == ()
    torch.testing.assert_close(one, none[0])
    torch.testing.assert_close(
        fastseq.scl_loss(z1[1], z2[1], lengths1=4, lengths2=4, backend=backend),
        fastseq.scl_loss(z1[1, :4], z2[1, :4], backend=backend),
    )
    module = fastseq.nn.SCLLoss(backend=backend, temperature=0.2)
    assert module(z1, z2) == fastseq.scl_loss(z1, z2, temperature=0.2, backend=backend)
    assert "temperature=0.2" in repr(module)


@pytest.mark.parametrize("backend", ["reference", LINEAR])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_give_float32_loss_and_their_own_gradients(backend, dtype):
    z1, z2 = _randn(2, 40, 16).to(dtype), _randn(2, 40, 16, seed=1).to(dtype)
    got, plain = (loss_and_grads(z1, z2, backend=b) for b in (backend, "reference"))
    assert got[0].dtype == torch.float32
    assert got[1].dtype == got[2].dtype == dtype
    as_accurate_as(got, plain, loss_and_grads(z1.double(), z2.double(), backend="reference"))
    mixed = fastseq.scl_loss(z1, z2.float() + 1e-3, backend=backend)
    assert mixed == fastseq.scl_loss(z1.float(), z2.float() + 1e-3, backend=backend)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("backend", ["reference", LINEAR])
def test_autocast_changes_nothing(backend, negatives):
    kw = {"backend": backend, "negatives": negatives}
    z1, z2 = _randn(2, 20, 8, dtype=torch.float32), _randn(2, 20, 8, dtype=torch.float32, seed=1)
    plain = loss_and_grads(z1, z2, **kw)
    a, b = z1.requires_grad_(), z2.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fastseq.scl_loss(a, b, **kw)
        if backend == LINEAR:  # its backward is fastseq's own and may run under autocast too
            inside = torch.autograd.grad(loss, (a, b), retain_graph=True)
            assert all(map(torch.equal, plain[1:], inside))
    assert all(map(torch.equal, plain, (loss, *torch.autograd.grad(loss, (a, b)))))


@pytest.mark.usefixtures("pairs")
def test_layouts_partial_gradients_and_repeatability():
    base1, base2 = _randn(3, 8, 12, dtype=torch.float32), _randn(3, 8, 12, dtype=torch.float32)
    z1, z2 = base1.mT, base2[:1].expand(3, 8, 12).mT  # transposed, expanded
    want = loss_and_grads(z1.contiguous(), z2.contiguous(), backend=LINEAR)
    got = loss_and_grads(z1, z2, backend=LINEAR)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    a = z1.contiguous().requires_grad_()
    loss = fastseq.scl_loss(a, z2, backend=LINEAR)
    (da,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(da, want[1])
    a.grad = torch.ones_like(a)
    fastseq.scl_loss(a, z2, backend=LINEAR).backward()
    torch.testing.assert_close(a.grad, want[1] + 1)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_a_backward_leaves_what_was_kept(negatives, temperature):
    z1, z2 = (_randn(2, 90, 8, seed=k, dtype=torch.float32).requires_grad_() for k in (0, 1))
    kw = {"negatives": negatives, "temperature": temperature, "lengths1": [90, 31]}
    loss = fastseq.scl_loss(z1, z2, backend=LINEAR, **kw)
    first = torch.autograd.grad(loss, (z1, z2), retain_graph=True)
    twice = torch.autograd.grad(loss, (z1, z2), torch.tensor(2.0), retain_graph=True)
    assert all(torch.equal(2 * a, b) for a, b in zip(first, twice, strict=True))
    assert all(map(torch.equal, first, torch.autograd.grad(loss, (z1, z2))))
    with torch.no_grad():
        assert fastseq.scl_loss(z1, z2, backend=LINEAR, **kw) == loss


def test_changing_an_input_before_backward_is_an_error():
    z1, z2 = _randn(1, 4, 3), _randn(1, 4, 3, seed=1).requires_grad_()
    loss = fastseq.scl_loss(z1, z2, backend=LINEAR)
    z1.mul_(2)
    # Lengths are copied, so the caller may reuse the buffer.
    lengths = torch.tensor([4])
    later = fastseq.scl_loss(z1, z2, lengths1=lengths, backend=LINEAR)
    lengths.fill_(1)
    later.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_differentiating_twice_is_an_error_not_a_wrong_number():
    z1, z2 = _randn(1, 4, 3).requires_grad_(), _randn(1, 4, 3, seed=1)
    (dz,) = torch.autograd.grad(fastseq.scl_loss(z1, z2, backend=LINEAR), z1, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dz.square().sum().backward()


@pytest.mark.usefixtures("pairs")
def test_gradcheck_of_the_blockwise_backend():
    z1, z2, t1, t2, _, valid2 = _ragged(n=2, t1=3, t2=4)

    def loss(a, b):
        return fastseq.scl_loss(
            a, b, t1, t2, lengths1=[3, 2], valid2=valid2, temperature=0.5, backend=LINEAR
        )

    assert torch.autograd.gradcheck(loss, (z1.requires_grad_(), z2.requires_grad_()))
