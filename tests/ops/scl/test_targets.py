"""scl_loss with targets other than the Gaussian: values, gradients, edges of reach, SoftCLT."""

import itertools
import math

import pytest
import torch
from tolerance import as_accurate_as, relative

import fastseq
from benchmarks import gate, scl_targets
from benchmarks.case import Case
from benchmarks.scl_peers import softclt
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.scl import torch_problem
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, TARGETS
from ops.scl.cases import brute_force, loss_and_grads, reduce

LINEAR = "torch"
BACKENDS = ["reference", LINEAR]
OTHERS = [target for target in TARGETS if target != "gauss"]
pytestmark = pytest.mark.usefixtures("nan_empty")


def _randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _ragged(dtype=torch.float64):
    """Two ragged views whose times are not sorted and occur more than once."""
    z1, z2 = _randn(3, 9, 5, dtype=dtype), _randn(3, 13, 5, dtype=dtype, seed=1)
    times = torch.randint(0, 60, (3, 22), generator=torch.Generator().manual_seed(2))
    valid2 = torch.rand(3, 13, generator=torch.Generator().manual_seed(3)) < 0.7
    padding = {"lengths1": [9, 0, 4], "valid2": valid2}
    return z1, z2, times[:, :9], times[:, 9:], padding


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("target", OTHERS)
def test_reference_equals_loops(target, objective, negatives):
    z1, z2, t1, t2, padding = _ragged()
    m1 = valid_mask(torch.tensor(padding["lengths1"]), 3, 9, z1.device)
    kw = {"target": target, "objective": objective, "negatives": negatives, "variance": 16.0}
    rows = brute_force(z1, z2, t1, t2, m1, padding["valid2"], **kw)
    got = fastseq.scl_loss(z1, z2, t1, t2, reduction="none", backend="reference", **kw, **padding)
    want = reduce(*rows, m1, padding["valid2"], "none")
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.1])  # with and without running maximum
@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("unread", [False, True])  # True: a variance on a GPU
@pytest.mark.usefixtures("pairs")
def test_blockwise_equals_reference_in_float64(target, temperature, unread, monkeypatch):
    if unread:
        monkeypatch.setattr(torch_problem, "_known", lambda x: x)
    z1, z2, t1, t2, padding = _ragged()
    times = (t1, t2), (t1.sort().values, t2.sort().values), (t1[:1], t2[:1]), ()
    variance = torch.tensor(16.0) if unread else 16.0
    for t, objective, negatives, extra in itertools.product(
        times, OBJECTIVES, ("cross", "video"), ({}, padding)
    ):
        kw = {"objective": objective, "negatives": negatives, "variance": variance, **extra}
        args = (z1, z2, *(x.expand(3, -1) for x in t))
        want, got = (
            loss_and_grads(*args, target=target, temperature=temperature, backend=b, **kw)
            for b in BACKENDS
        )
        for a, b in zip(got, want, strict=True):
            assert relative(a, b) < 1e-12


@pytest.mark.parametrize("target", OTHERS)
def test_gradcheck(target):
    z1, z2, t1, t2, _ = _ragged()
    z1, z2, t1, t2 = z1[:2, :3], z2[:2, :4], t1[:2, :3] % 9, t2[:2, :4] % 9

    def loss(a, b, backend):
        kw = {"target": target, "temperature": 0.5, "lengths1": [3, 2], "backend": backend}
        return fastseq.scl_loss(a, b, t1, t2, **kw)

    inputs = z1.requires_grad_(), z2.requires_grad_()
    for backend in BACKENDS:
        assert torch.autograd.gradcheck(lambda a, b, k=backend: loss(a, b, k), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: loss(a, b, "reference"), inputs)


@pytest.mark.parametrize("target", OTHERS)
def test_float32_against_float64(target):
    z1, z2 = _randn(2, 240, 64), _randn(2, 240, 64, seed=1)
    generator = torch.Generator().manual_seed(2)
    times = torch.rand(2, 2, 240, generator=generator).mul(720).sort(-1).values
    kw = {"target": target, "variance": 40.0}
    want = loss_and_grads(z1, z2, *times, backend="reference", **kw)
    plain, got = (loss_and_grads(z1.float(), z2.float(), *times, backend=b, **kw) for b in BACKENDS)
    as_accurate_as(got, plain, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("target", "gap", "inside"),
    [
        ("laplace", 45, True),
        ("laplace", 46, False),
        ("sigmoid", 45, True),
        ("sigmoid", 46, False),
        ("box", 3, True),
        ("box", 4, False),
    ],
)
def test_edges_of_reach(backend, target, gap, inside):
    """Laplace and sigmoid reach 45.4 frames at variance 10, a box sigma, itself included."""
    z1, z2 = _randn(1, 4, 8, dtype=torch.float32), _randn(1, 3, 8, dtype=torch.float32, seed=1)
    t1, t2 = torch.tensor([[0.0, 1, 2, 500]]), torch.tensor([[0.0, 2, 500 + gap]])
    m1, m2 = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    for variance in (9.0, torch.tensor(9.0)) if target == "box" else (10.0, torch.tensor(10.0)):
        kw = {"target": target, "variance": variance}
        loss, dz1, _ = loss_and_grads(z1, z2, t1, t2, backend=backend, **kw)
        rows = brute_force(z1, z2, t1, t2, m1, m2, target=target, variance=float(variance))
        assert (rows[0][0, 3] > 0) == inside
        assert loss.item() == pytest.approx(float(reduce(*rows, m1, m2, "mean")), rel=1e-5)
        assert dz1.isfinite().all()
        alone, dz, _ = loss_and_grads(
            z1[:, 3:], z2[:, 1:], t1[:, 3:], t2[:, 1:], negatives="video", backend=backend, **kw
        )
        assert (alone > 0) == inside
        assert bool((dz != 0).any()) == inside


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_box_is_uniform(backend):
    """log g = 0, so that KL and cross-entropy differ by the log of the number of targets."""
    z1, z2 = _randn(1, 20, 4), _randn(1, 20, 4, seed=1)
    kw = {"target": "box", "variance": 9.0, "reduction": "sum", "backend": backend}
    kl, ce = (fastseq.scl_loss(z1, z2, objective=o, **kw) for o in ("kl", "ce"))
    targets = [min(i + 3, 19) - max(i - 3, 0) + 1 for i in range(20)]
    assert (ce - kl).item() == pytest.approx(2 * sum(map(math.log, targets)), rel=1e-12)


def test_the_edge_of_a_box_with_rounded_times():
    """Gaps that round to sigma are targets, though the time minus sigma rounds otherwise."""
    t1 = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    t2 = t1 - 0.3
    t2 = torch.cat([torch.nextafter(t2, torch.full_like(t2, s)) for s in (-9, 9)] + [t2], 1)
    t2 = t2.sort().values
    assert ((t1 - t2 <= 0.3) & (t2 < t1 - 0.3)).any()
    z1, z2 = _randn(500, 1, 4), _randn(500, 3, 4, seed=1)
    kw = {"target": "box", "variance": 0.09, "reduction": "none"}
    want, got = (
        fastseq.scl_loss(z1.float(), z2.float(), t1, t2, backend=b, **kw) for b in BACKENDS
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", OTHERS)
def test_nan_and_padding(target, backend):
    """A NaN timestamp makes its video NaN. Padding has no effect."""
    z1, z2 = _randn(2, 4, 3), _randn(2, 4, 3, seed=1)
    t = torch.arange(4.0).expand(2, 4).clone()
    kw = {"lengths1": [3, 4], "reduction": "none", "target": target, "backend": backend}
    clean = loss_and_grads(z1, z2, t, t, **kw)
    for frame in (1, 3):
        bad = t.clone()
        bad[0, frame] = math.nan
        got = fastseq.scl_loss(z1, z2, bad, t, **kw)
        assert got[0].isnan() == (frame == 1)
        assert got[1] == clean[0][1]
    dirty = z1.clone()
    dirty[0, 3] = math.inf
    assert all(map(torch.equal, clean, loss_and_grads(dirty, z2, t, t, **kw)))


@pytest.mark.parametrize("target", OTHERS)
def test_the_module(target):
    z1, z2 = _randn(2, 6, 4), _randn(2, 6, 4, seed=1)
    module = fastseq.nn.SCLLoss(target=target, variance=4.0)
    assert module(z1, z2) == fastseq.scl_loss(z1, z2, target=target, variance=4.0)
    assert f"target='{target}'" in repr(module)


def timelag(frames, target, parameter):
    """SoftCLT's soft assignments of frames 0 to frames - 1, as its code defines them."""
    d = (torch.arange(frames)[:, None] - torch.arange(frames)).abs().double()
    if target == "box":
        return (d <= frames * parameter).double()
    if target == "sigmoid":
        g = 2 / (1 + (d * parameter).exp())
    else:
        g = (-(d**2) / (2 * parameter**2)).exp()
    return torch.where(g < 1e-6, 0, g)


def test_softclt_written_as_loops():
    """The released properties: 2 T - 1 candidates, both views are targets, weights as they are."""
    z1, z2 = _randn(1, 4, 3), _randn(1, 4, 3, seed=1)
    lag, total = timelag(4, "sigmoid", 0.7), 0.0
    z = [*z1[0], *z2[0]]
    for i in range(8):
        others = [j for j in range(8) if j != i]
        scores = {j: float(z[i] @ z[j]) for j in others}
        log_sum = math.log(sum(map(math.exp, scores.values())))
        total += sum(float(lag[i % 4, j % 4]) * (log_sum - scores[j]) for j in others)
    assert float(softclt(z1, z2, lag.repeat(2, 2))) == pytest.approx(total / 8, rel=1e-12)


def test_the_benchmark_compares_the_same_loss():
    """SoftCLT's dense form, changed in the two properties that differ."""
    case = Case(2, 70, 16)
    args = scl_targets.inputs(case)
    want = scl_targets.expected(case, args)
    for provider in scl_targets.providers("cpu"):
        gate.gate(provider, case, provider.build(case), args, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("target", "parameter", "variance"),
    [("sigmoid", 0.5, 4.0), ("gauss", 3.0, 9.0), ("box", 0.25, 9.0)],
)
def test_softclt(backend, target, parameter, variance):
    """Of SoftCLT's temporal loss scl_loss has the targets, the candidates but for the row itself,
    and with both views as each of its views the targets of a row's own view too."""
    z1, z2 = _randn(2, 12, 5), _randn(2, 12, 5, seed=1)
    lag = timelag(12, target, parameter).repeat(2, 2)
    kw = {"target": target, "variance": variance, "objective": "ce", "normalize": False}
    kw |= {"temperature": 1.0, "backend": backend}
    of = {"without_itself": False, "normalised": True}

    got = fastseq.scl_loss(z1, z2, negatives="video", **kw)
    want = softclt(z1, z2, lag, own_targets=False, **of)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)

    z, t = torch.cat([z1, z2], 1), torch.arange(24) % 12
    got = fastseq.scl_loss(z, z, t, t, **kw)
    want = softclt(z1, z2, lag, own_targets=True, **of)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
