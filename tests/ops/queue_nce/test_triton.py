"""The Triton kernels of queue_nce against float64, interpreted on machines without a GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted

import fastseq
from fastseq.ops.queue_nce import triton as queue_triton
from ops.queue_nce.cases import brute_force, inputs, loss_and_grads

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(q, positives, queue, *, backend="triton", upstream=1.0, **kwargs):
    """Loss and gradients on the device under test."""
    there = [z.to(DEVICE) for z in (q, positives, queue)]
    upstream = upstream.to(DEVICE) if isinstance(upstream, torch.Tensor) else upstream
    return loss_and_grads(*there, backend=backend, upstream=upstream, **kwargs)


def check(q, positives, queue, *, grad=None, **kwargs):
    """Asserts that Triton is as accurate as the reference in the same dtype, on the same rounded
    inputs; ``grad`` replaces the gradients' floor.
    """
    got, plain = (run(q, positives, queue, backend=b, **kwargs) for b in ("triton", "reference"))
    want = run(*(z.double() for z in (q, positives, queue)), backend="torch", **kwargs)
    assert got[0].dtype == torch.float32
    assert (got[1].dtype, got[2].dtype) == (q.dtype, positives.dtype)
    as_accurate_as(got[0], plain[0], want[0])
    as_accurate_as(got[1:], plain[1:], want[1:], floor=grad, what=("dq", "dpositives"))
    return got


def fp32(*shape, **kwargs):
    return inputs(*shape, dtype=torch.float32, **kwargs)


def test_equals_loops():
    args = fp32(5, 3, 20, 6)
    for kw in ({}, {"normalize": False, "temperature": 2.0}):
        got, plain = (
            run(*args, reduction="none", backend=b, **kw)[0].cpu() for b in ("triton", "reference")
        )
        as_accurate_as(got, plain, torch.tensor(brute_force(*args, **kw), dtype=torch.float64))


@pytest.mark.parametrize("n", [0, 1, 2, 64, 65])
def test_numbers_of_queries(n):
    check(*fp32(n, 1, 100, 17))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 511, 512, 513, 1100])
@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_lengths_of_the_queue(length, temperature):
    """One part, a whole number of parts, and a last part of a single row."""
    check(*fp32(9, 2, length, 16), temperature=temperature)


@pytest.mark.parametrize("d", [1, 8, 17, 64, 200, 512])
@pytest.mark.parametrize("normalize", [True, False])
def test_channels(d, normalize):
    q, positives, queue = fp32(5, 2, 130, d)
    check(q / d**0.5, positives / d**0.5, queue, normalize=normalize)


def test_parts_are_whole_tiles_and_cover_the_queue():
    for length in (0, 1, 511, 512, 513, 4096, 65535, 65536, 131072, 131073, 10**6):
        for columns in (32, 64):
            count, span = queue_triton.parts(length, columns)
            assert 1 <= count <= queue_triton.MAX_PARTS
            assert span % columns == 0
            assert count * span >= length
            assert (count - 1) * span < max(length, 1)


def test_parts_joined_by_the_scan_or_after_it_are_the_same_bits(monkeypatch):
    """The number of parts that a program scans depends on the number of queries; the result must
    not.
    """
    for length in (0, 255, 700, 1100):  # one part; an odd number; an even one with a tail
        args = fp32(9, 2, length, 16)
        runs = []
        for enough in (1000, 0):
            monkeypatch.setattr(queue_triton, "ENOUGH", enough)
            runs.append(run(*args, reduction="none", temperature=0.02))
        assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("kernel_tiles", [(16, 32, 16, 16), (32, 16, 32, 64)])
def test_channel_steps_and_chunks(monkeypatch, kernel_tiles):
    """The scores in steps over the channels, the queue's mean in chunks of them."""
    tile = queue_triton.Tiles(*kernel_tiles, 4, 1)
    monkeypatch.setattr(queue_triton, "tiles", lambda *_: tile)
    monkeypatch.setattr(queue_triton, "MIN_SPAN", 32)
    queue_triton.parts.cache_clear()
    check(*fp32(17, 1, 90, 40))  # three parts, the last tile incomplete
    check(*inputs(17, 1, 90, 40, dtype=torch.float16))
    q, positives, queue = fp32(17, 1, 90, 40)
    check(q / 6, positives / 6, queue, normalize=False)
    queue_triton.parts.cache_clear()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("per_query", [1, 5])
def test_reductions_and_upstream(reduction, per_query):
    upstream = -2.5
    if reduction == "none":
        upstream = (torch.arange(18.0 * per_query).view(18, per_query) - 7)[::2]
    check(*fp32(9, per_query, 90, 16), reduction=reduction, upstream=upstream)


def test_one_positive_without_its_axis():
    q, positives, queue = fp32(9, 1, 90, 16)
    check(q, positives[:, 0], queue, reduction="none", upstream=torch.arange(9.0) - 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 0.03])
def test_half(dtype, temperature):
    """Operands are exact and accumulators fp32: only probabilities and the result are rounded."""
    args = inputs(17, 2, 700, 24, dtype=dtype)
    check(*args, temperature=temperature, grad=interpreted(dtype, DEVICE))


def test_fp16_probabilities_below_its_range():
    """One near negative and thousands of far ones; each of these adds 1e-9 of it, but together they
    matter.
    """
    q = torch.zeros(1, 16, dtype=torch.float16)
    q[0, 0] = 1
    queue = torch.zeros(4096, 16, dtype=torch.float16)
    queue[:, 1] = 1
    queue[0] = q[0]
    positives = torch.roll(q, 2, 1)[:, None]
    kw = {"temperature": 0.06, "normalize": False}
    got, plain = (run(q, positives, queue, backend=b, **kw) for b in ("triton", "reference"))
    want = run(*(z.double() for z in (q, positives, queue)), backend="torch", **kw)
    weight = 4095 * math.exp(-1 / 0.06)
    assert weight < 1e-3
    pull = weight / (1 + weight + math.exp(-1 / 0.06)) / 0.06
    assert got[1][0, 1].item() == pytest.approx(pull, rel=1e-2)
    as_accurate_as(got[1], plain[1], want[1])


def test_inputs_of_several_dtypes():
    q, positives, queue = inputs(20, 2, 300, 16, dtype=torch.bfloat16)
    want = run(q.float(), positives.float(), queue.float())
    got = run(q, positives.float(), queue)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[2], want[2])
    assert got[1].dtype == torch.bfloat16


def test_layouts():
    q, positives, queue = fp32(9, 3, 700, 12)
    want = run(q, positives, queue)
    others = (q.mT.contiguous().mT, positives.mT.contiguous().mT, queue.mT.contiguous().mT)
    assert all(map(torch.equal, run(*others), want))


def test_only_what_needs_a_gradient_gets_one():
    q, positives, queue = (z.to(DEVICE) for z in fp32(9, 2, 700, 12))
    full = run(q, positives, queue)
    for which in (0, 1):
        leaves = [q.clone(), positives.clone()]
        leaves[which].requires_grad_()
        loss = fastseq.queue_nce(*leaves, queue, backend="triton")
        assert torch.equal(loss, full[0])
        assert torch.equal(torch.autograd.grad(loss, leaves[which])[0], full[1 + which])
    assert torch.equal(fastseq.queue_nce(q, positives, queue, backend="triton"), full[0])


def test_nan_shows_where_it_belongs():
    q, positives, queue = fp32(7, 2, 530, 8)
    clean = run(q, positives, queue, reduction="none")
    bad = q.clone()
    bad[5, 3] = math.nan
    loss, dq, dp = run(bad, positives, queue, reduction="none")
    keep = torch.arange(7) != 5
    assert loss[5].isnan().all()
    assert dq[5].isnan().all()
    assert dp[5].isnan().all()
    for got, want in zip((loss, dq, dp), clean, strict=True):
        assert torch.equal(got[keep.to(DEVICE)], want[keep.to(DEVICE)])
    bad = queue.clone()
    bad[529, 1] = math.nan
    loss, dq, _ = run(q, positives, bad, reduction="none")
    assert loss.isnan().all()
    assert dq.isnan().any(1).all()


def test_a_zero_embedding_is_as_in_normalize():
    q, positives, queue = fp32(2, 1, 9, 3)
    q[0] = positives[1, 0] = 0
    got = run(q, positives, queue, reduction="none")
    plain = run(q, positives, queue, reduction="none", backend="reference")
    exact = (z.double() for z in (q, positives, queue))
    as_accurate_as(got, plain, run(*exact, reduction="none", backend="torch"))


def test_same_bits_alone_and_in_a_batch():
    q, positives, queue = fp32(66, 1, 530, 16)
    batch = run(q, positives, queue, reduction="none")
    assert all(map(torch.equal, run(q, positives, queue, reduction="none"), batch))
    for rows in (slice(0, 1), slice(64, 66)):
        alone = run(q[rows], positives[rows], queue, reduction="none")
        assert all(torch.equal(a, b[rows]) for a, b in zip(alone, batch, strict=True))


def test_differentiating_twice_is_an_error():
    q, positives, queue = (z.to(DEVICE) for z in fp32(3, 1, 8, 4))
    loss = fastseq.queue_nce(q.requires_grad_(), positives, queue, backend="triton")
    (dq,) = torch.autograd.grad(loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dq.square().sum().backward()
