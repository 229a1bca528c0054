"""queue_nce: the definition against loops, the blockwise backend against the definition."""

import math
from functools import partial

import pytest
import torch
from tolerance import as_accurate_as, relative
from torch.utils.checkpoint import checkpoint

import fastseq
from fastseq.ops.queue_nce import torch as blockwise
from fastseq.ops.queue_nce.options import REDUCTIONS
from ops.queue_nce.cases import brute_force, inputs, loss_and_grads

BACKENDS = ["reference", "torch"]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 1.3])
def test_reference_equals_loops(normalize, temperature):
    args = inputs(4, 3, 11, 5)
    kw = {"normalize": normalize, "temperature": temperature}
    want = torch.tensor(brute_force(*args, **kw), dtype=torch.float64)
    reduced = {"none": want, "sum": want.sum(), "mean": want.mean()}
    for reduction, value in reduced.items():
        got = fastseq.queue_nce(*args, reduction=reduction, backend="reference", **kw)
        torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-14)
    q, positives, queue = args
    one = fastseq.queue_nce(q, positives[:, 0], queue, reduction="none", backend="reference", **kw)
    torch.testing.assert_close(one, want[:, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_by_hand(backend):
    """q = (1, 0), two positives at cosines 0.6 and 0, queue at cosines 1 and -1, tau = 1/2."""
    q = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    positives = torch.tensor([[[3.0, 4.0], [0.0, 7.0]]], dtype=torch.float64)
    queue = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    kw = {"temperature": 0.5, "backend": backend}
    loss, dq, dp = loss_and_grads(q, positives, queue, reduction="none", **kw)
    negatives = math.exp(2) + math.exp(-2)
    want = [math.log(1 + negatives / math.exp(1.2)), math.log(1 + negatives)]
    assert loss[0].tolist() == pytest.approx(want, rel=1e-14)
    # Only the y components change: along x everything is parallel to q.
    lack = [negatives / (math.exp(1.2) + negatives), negatives / (1 + negatives)]
    assert dq[0].tolist() == pytest.approx(
        [0, -(lack[0] * 0.8 + lack[1]) / 0.5 / 3], rel=1e-13, abs=1e-15
    )
    # -lack q / tau without the component along the positive, divided by its norm (5 and 7).
    first = [-2 * lack[0] * (1 - 0.36) / 5, 2 * lack[0] * 0.48 / 5]
    assert dp[0, 0].tolist() == pytest.approx(first, rel=1e-13)
    assert dp[0, 1].tolist() == pytest.approx([-2 * lack[1] / 7, 0], rel=1e-13, abs=1e-15)


def test_it_is_the_released_cross_entropy():
    """Logits (N, 1 + K) three times, with the positive first; stacked, label 0."""
    q, positives, queue = inputs(6, 3, 40, 8)
    q, positives = (torch.nn.functional.normalize(z, dim=-1) for z in (q, positives))
    negative = q @ queue.mT
    logits = [torch.cat([(q * positives[:, p]).sum(1, True), negative], 1) / 0.1 for p in range(3)]
    want = torch.nn.functional.cross_entropy(torch.cat(logits), torch.zeros(18).long())
    for backend in BACKENDS:
        got = fastseq.queue_nce(q, positives, queue, normalize=False, backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_reference_is_differentiable_twice(normalize):
    q, positives, queue = inputs(2, 2, 5, 3)

    def loss(q, positives):
        kw = {"normalize": normalize, "temperature": 0.7, "backend": "reference"}
        return fastseq.queue_nce(q, positives, queue, **kw)

    leaves = q.requires_grad_(), positives.requires_grad_()
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_gradcheck_of_the_blockwise_backend():
    q, positives, queue = inputs(3, 2, 7, 3)
    for normalize in (True, False):
        kw = {"normalize": normalize, "temperature": 0.5, "reduction": "none", "backend": "torch"}
        assert torch.autograd.gradcheck(
            lambda q, p, kw=kw: fastseq.queue_nce(q, p, queue, **kw),
            (q.requires_grad_(), positives.requires_grad_()),
        )


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("temperature", [0.1, 0.005])
@pytest.mark.parametrize("normalize", [True, False])
def test_blockwise_equals_reference_in_float64(length, temperature, normalize, monkeypatch):
    """Plain sums and running maxima, in blocks of 5 queries and 256 rows of the queue."""
    monkeypatch.setattr(blockwise, "ROWS", 5)
    monkeypatch.setattr(blockwise, "ELEMENTS", 1)
    args = inputs(13, 2, length, 6)
    upstream = {"none": torch.arange(26).view(13, 2) - 9.5, "mean": -1.7, "sum": 3.0}
    for reduction in REDUCTIONS:
        kw = {"temperature": temperature, "normalize": normalize, "reduction": reduction}
        kw["upstream"] = upstream[reduction]
        pair = [loss_and_grads(*args, backend=b, **kw) for b in BACKENDS]
        for want, got in zip(*pair, strict=True):
            assert relative(got, want) < 1e-12


@pytest.mark.parametrize("n", [0, 1, 2, 97, 600])
def test_numbers_of_queries(n):
    args = inputs(n, 3, 300, 17)
    pair = [loss_and_grads(*args, backend=b, reduction="sum") for b in BACKENDS]
    for want, got in zip(*pair, strict=True):
        assert got.shape == want.shape
        assert relative(got, want) < 1e-12


@pytest.mark.parametrize("temperature", [0.1, 0.07, 0.02])
def test_float32_at_a_long_queue(temperature):
    q, positives, queue = inputs(40, 3, 20000, 128, dtype=torch.float32)
    exact = [z.double() for z in (q, positives, queue)]
    for upstream in (1.0, -3.0):
        kw = {"temperature": temperature, "upstream": upstream}
        want = loss_and_grads(*exact, backend="torch", **kw)
        plain = loss_and_grads(q, positives, queue, backend="reference", **kw)
        got = loss_and_grads(q, positives, queue, backend="torch", **kw)
        as_accurate_as(got, plain, want)


def test_scores_that_plain_sums_cannot_hold(monkeypatch):
    """Queues far from the unit sphere overflow or underflow where cosines would not."""
    q, positives, queue = inputs(9, 2, 700, 16, dtype=torch.float32)
    calls = []
    running = blockwise._running_maximum
    monkeypatch.setattr(blockwise, "_running_maximum", lambda *a: calls.append(1) or running(*a))
    for factor, turn in ((1.0, 0), (50.0, 1), (-50.0, 1)):
        # All rows on the query's side, or all opposite: exp(+-500).
        rows = (queue + 3 * torch.nn.functional.normalize(q[:1], dim=1)) * factor
        calls.clear()
        args = q[:1], positives[:1], rows
        got = loss_and_grads(*args, backend="torch")
        assert len(calls) == turn
        plain = loss_and_grads(*args, backend="reference")
        as_accurate_as(got, plain, loss_and_grads(*(z.double() for z in args), backend="torch"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_queue_and_no_query(backend):
    for shape in ((3, 2, 0), (0, 2, 5), (0, 1, 0)):
        args = inputs(*shape, 4)
        for reduction in REDUCTIONS:
            loss, dq, dp = loss_and_grads(*args, reduction=reduction, backend=backend)
            assert loss.shape == (shape[:2] if reduction == "none" else ())
            for x in (loss, dq, dp):
                assert (x == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_nan_shows_where_it_belongs(backend, temperature):
    kw = {"reduction": "none", "backend": backend, "temperature": temperature}
    q, positives, queue = inputs(4, 2, 30, 3)
    clean = loss_and_grads(q, positives, queue, **kw)
    bad = q.clone()
    bad[1, 0] = torch.nan
    loss, dq, dp = loss_and_grads(bad, positives, queue, **kw)
    assert loss[1].isnan().all()
    assert dq[1].isnan().all()
    assert dp[1].isnan().all()
    for got, want in zip((loss, dq, dp), clean, strict=True):
        assert relative(got[[0, 2, 3]], want[[0, 2, 3]]) < 1e-12
    bad = positives.clone()
    bad[2, 1, 0] = torch.nan
    loss, dq, dp = loss_and_grads(q, bad, queue, **kw)
    assert loss.isnan().nonzero().tolist() == [[2, 1]]
    assert dq.isnan().any(1).nonzero().flatten().tolist() == [2]
    assert dp.isnan().any(2).nonzero().tolist() == [[2, 1]]
    bad = queue.clone()
    bad[29, 2] = torch.nan
    loss, dq, _ = loss_and_grads(q, positives, bad, **kw)
    assert loss.isnan().all()
    assert dq.isnan().any(1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_embedding_is_as_in_normalize(backend):
    q, positives, queue = inputs(2, 1, 9, 3, dtype=torch.float32)
    q[0] = positives[1, 0] = 0
    loss, dq, dp = loss_and_grads(q, positives, queue, reduction="none", backend=backend)
    assert loss[0, 0].item() == pytest.approx(math.log(10), rel=1e-6)  # ten equal scores

    def outside(dtype):
        """Inputs that were normalised before the call."""
        leaves = [z.to(dtype, copy=True).requires_grad_() for z in (q, positives)]
        unit = [torch.nn.functional.normalize(z, dim=-1) for z in leaves]
        out = fastseq.queue_nce(
            *unit, queue.to(dtype), normalize=False, reduction="none", backend=backend
        )
        return torch.autograd.grad(out.sum(), leaves)

    as_accurate_as((dq, dp), outside(torch.float32), outside(torch.float64), what=("dq", "dp"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_give_float32_loss_and_their_own_gradients(backend, dtype):
    args = inputs(20, 3, 400, 16, dtype=dtype)
    got, plain = (loss_and_grads(*args, backend=b) for b in (backend, "reference"))
    assert [a.dtype for a in got] == [torch.float32, dtype, dtype]
    exact = (z.double() for z in args)
    as_accurate_as(got, plain, loss_and_grads(*exact, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_of_several_dtypes(backend):
    q, positives, queue = inputs(5, 2, 60, 8, dtype=torch.bfloat16)
    want = loss_and_grads(q.float(), positives.float(), queue.float(), backend=backend)
    got = loss_and_grads(q, positives.float(), queue, backend=backend)
    assert (got[0].dtype, got[1].dtype, got[2].dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[2], want[2])
    assert fastseq.queue_nce(q, positives, queue.double(), backend=backend).dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    q, positives, queue = inputs(7, 2, 90, 8, dtype=torch.float32)
    plain = loss_and_grads(q, positives, queue, backend=backend)
    leaves = q.requires_grad_(), positives.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fastseq.queue_nce(*leaves, queue, backend=backend)
        if backend == "torch":  # its backward is fastseq's own and may run under autocast too
            grads = torch.autograd.grad(loss, leaves, retain_graph=True)
            assert all(map(torch.equal, plain[1:], grads))
    assert all(map(torch.equal, plain, (loss, *torch.autograd.grad(loss, leaves))))


def test_only_what_needs_a_gradient_gets_one():
    q, positives, queue = inputs(5, 2, 60, 8)
    full = loss_and_grads(q, positives, queue, backend="torch")
    for which in (0, 1):
        leaves = [q.clone(), positives.clone()]
        leaves[which].requires_grad_()
        loss = fastseq.queue_nce(*leaves, queue, backend="torch")
        assert torch.equal(torch.autograd.grad(loss, leaves[which])[0], full[1 + which])
    assert not fastseq.queue_nce(q, positives, queue, backend="torch").requires_grad
    with torch.no_grad():
        loss = fastseq.queue_nce(q.requires_grad_(), positives, queue, backend="torch")
    assert torch.equal(loss, full[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_queue_may_change_before_the_backward(backend):
    q, positives, queue = inputs(5, 2, 60, 8)
    want = loss_and_grads(q, positives, queue, backend=backend)[1]
    loss = fastseq.queue_nce(q.requires_grad_(), positives, queue, backend=backend)
    queue.fill_(torch.nan)
    assert torch.equal(torch.autograd.grad(loss, q)[0], want)


def test_changing_a_query_before_the_backward_is_an_error():
    q, positives, queue = inputs(5, 2, 60, 8)
    middle = q.requires_grad_() * 1
    loss = fastseq.queue_nce(middle, positives, queue, backend="torch")
    middle.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_layouts_and_repeatability():
    q, positives, queue = inputs(8, 3, 700, 12, dtype=torch.float32)
    want = loss_and_grads(q, positives, queue, backend="torch")
    others = (
        q.mT.contiguous().mT,
        positives.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        queue.repeat_interleave(2, 0)[::2],
    )
    for _ in range(2):
        assert all(map(torch.equal, loss_and_grads(*others, backend="torch"), want))
    # A queue stored as (D, K), as MoCo's; the product may be formed in another order.
    other = loss_and_grads(q, positives, queue.mT.contiguous().mT, backend="torch")
    exact = loss_and_grads(*(z.double() for z in (q, positives, queue)), backend="torch")
    as_accurate_as(other, want, exact)
    row = q[:1].expand(8, 12)
    same = loss_and_grads(row, positives[:1].expand(8, 3, 12), queue, backend="torch")
    assert relative(same[1][3], same[1][0]) < 1e-6


def test_invariances():
    q, positives, queue = inputs(6, 3, 50, 5)
    kw = {"reduction": "none", "backend": "torch"}
    want = fastseq.queue_nce(q, positives, queue, **kw)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    order = torch.randperm(50)
    for same in (
        fastseq.queue_nce(q, positives, queue[order], **kw),
        fastseq.queue_nce(q @ turn, positives @ turn, queue @ turn, **kw),
        fastseq.queue_nce(7 * q, positives / 3, queue, **kw),
        fastseq.queue_nce(q, positives.flip(1), queue, **kw).flip(1),
        fastseq.queue_nce(q.flip(0), positives.flip(0), queue, **kw).flip(0),
    ):
        torch.testing.assert_close(same, want, rtol=1e-11, atol=1e-12)
    # Another negative can only raise the loss.
    assert (fastseq.queue_nce(q, positives, queue[:40], **kw) < want).all()


def test_differentiating_twice_is_an_error_not_a_wrong_number():
    q, positives, queue = inputs(3, 1, 8, 4)
    loss = fastseq.queue_nce(q.requires_grad_(), positives, queue, backend="torch")
    (dq,) = torch.autograd.grad(loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dq.square().sum().backward()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_under_checkpointing_what_was_saved_is_read_once(reduction):
    q, positives, queue = torch.randn(4, 8), torch.randn(4, 8), torch.randn(20, 8)

    def loss(q):
        return fastseq.queue_nce(q, positives, queue, reduction=reduction, backend="torch").sum()

    grads = []
    for call in (loss, partial(checkpoint, loss, use_reentrant=False)):
        leaf = q.clone().requires_grad_()
        call(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
