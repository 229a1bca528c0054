"""tcn_loss against loops in float64 and the values of a case computed by hand."""

import math

import pytest
import torch
from tolerance import relative

import fastseq
from fastseq.nn import TCNLoss
from ops.tcc.cases import randn


def brute_force(anchors, positives, reg_lambda):
    rows, norms = [], []
    for a, p in zip(anchors.detach(), positives.detach(), strict=True):
        for i in range(len(a)):
            scores = [float(a[i] @ p[j]) for j in range(len(p))]
            top = max(scores)
            total = sum(math.exp(s - top) for s in scores)
            rows.append(top + math.log(total) - scores[i])
            norms.append(float(a[i] @ a[i] + p[i] @ p[i]))
    return sum(rows) / len(rows) + reg_lambda / 4 * sum(norms) / len(norms)


@pytest.mark.parametrize("reg_lambda", [0.0, 0.002, 3.0])
def test_equals_loops(reg_lambda):
    a, p = randn(3, 7, 5), randn(3, 7, 5, seed=1)
    got = fastseq.tcn_loss(a, p, reg_lambda=reg_lambda)
    assert got.item() == pytest.approx(brute_force(a, p, reg_lambda), rel=1e-13)
    one = fastseq.tcn_loss(a[0], p[0], reg_lambda=reg_lambda)
    assert one.item() == pytest.approx(brute_force(a[:1], p[:1], reg_lambda), rel=1e-13)


def test_by_hand():
    """Scores [[2, 0], [0, 1]]: log(1 + e^-2), log(1 + e^-1); squared norms 1 + 4 and 1 + 1."""
    a, p = torch.eye(2), torch.diag(torch.tensor([2.0, 1.0]))
    want = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2 + 0.002 / 4 * 7 / 2
    assert fastseq.tcn_loss(a, p).item() == pytest.approx(want, rel=1e-6)


def test_gradients():
    a, p = randn(2, 4, 3).requires_grad_(), randn(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(fastseq.tcn_loss, (a, p))
    assert torch.autograd.gradgradcheck(fastseq.tcn_loss, (a, p))
    # As in the README of the op.
    g = (torch.softmax(a @ p.mT, 2) - torch.eye(4)) / 8
    want = g @ p + 0.002 / 2 / 8 * a, g.mT @ a + 0.002 / 2 / 8 * p
    for got, w in zip(torch.autograd.grad(fastseq.tcn_loss(a, p), (a, p)), want, strict=True):
        assert relative(got, w) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    a, p = randn(2, 6, 8).to(dtype).requires_grad_(), randn(2, 6, 8, seed=1).to(dtype)
    loss = fastseq.tcn_loss(a, p)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(brute_force(a.double(), p.double(), 0.002), rel=1e-6)
    assert torch.autograd.grad(loss, a)[0].dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fastseq.tcn_loss(a.float(), p.float()), loss)


def test_large_scores_do_not_overflow():
    a = 1e4 * torch.eye(3)
    loss = fastseq.tcn_loss(a, -a, reg_lambda=0.0)
    assert loss.item() == pytest.approx(1e8)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (0, 3)])
def test_no_pair_gives_zero_and_zero_gradients(shape):
    a = torch.zeros(shape, requires_grad=True)
    loss = fastseq.tcn_loss(a, a)
    assert loss == 0
    assert torch.autograd.grad(loss, a)[0].shape == shape


def test_one_pair_has_no_negatives():
    a, p = randn(1, 1, 3), randn(1, 1, 3, seed=1)
    assert fastseq.tcn_loss(a, p, reg_lambda=0.0) == 0


@pytest.mark.compile
def test_compiled_equals_eager():
    a, p = randn(2, 6, 8, dtype=torch.float32), randn(2, 6, 8, dtype=torch.float32, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.tcn_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a, p), fastseq.tcn_loss(a, p))


def test_module():
    a, p = randn(2, 6, 8), randn(2, 6, 8, seed=1)
    loss = TCNLoss(reg_lambda=0.5)
    assert torch.equal(loss(a, p), fastseq.tcn_loss(a, p, reg_lambda=0.5))
    assert repr(loss) == "TCNLoss(reg_lambda=0.5)"


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        (([1.0], torch.eye(2)), {}, TypeError, "anchors must be a torch.Tensor, got list"),
        ((torch.eye(2), torch.eye(2).long()), {}, TypeError, "positives must be float64"),
        ((torch.zeros(2, 3), torch.zeros(4, 3)), {}, ValueError, r"same shape, got \(2, 3\) and"),
        ((torch.eye(2), torch.zeros(2, 3)), {}, ValueError, "agree in N and D"),
        ((torch.eye(2),) * 2, {"reg_lambda": -1.0}, ValueError, "reg_lambda must be finite and"),
        ((torch.eye(2),) * 2, {"reg_lambda": None}, TypeError, "got NoneType"),
    ],
)
def test_wrong_input(args, kwargs, error, text):
    with pytest.raises(error, match=text):
        fastseq.tcn_loss(*args, **kwargs)
