"""fastseq.nn.FeatureQueue: order, wrap-around, resuming, and synchronisation between ranks."""

import subprocess
import sys

import pytest
import torch

import fastseq
from fastseq.nn import FeatureQueue


def rows(start, stop, dim=4):
    """Distinguishable keys: row i is e_(i mod dim) scaled by i + 1."""
    out = torch.zeros(stop - start, dim)
    index = torch.arange(start, stop)
    out[torch.arange(len(index)), index % dim] = index + 1.0
    return out


def plain(size, dim=4):
    queue = FeatureQueue(size, dim, normalize=False)
    queue.features.zero_()
    return queue


def contents(queue):
    """The number of the key in each slot; 0 where nothing was stored."""
    return queue.features.amax(1).long().tolist()


def test_it_starts_with_random_unit_vectors_of_torchs_generator():
    torch.manual_seed(3)
    first = FeatureQueue(500, 64).features
    torch.testing.assert_close(first.norm(dim=1), torch.ones(500))
    assert first.mean(0).norm() < 0.1  # no direction dominates
    assert (first @ first.mT).fill_diagonal_(0).abs().max() < 0.7
    torch.manual_seed(3)
    assert torch.equal(FeatureQueue(500, 64).features, first)
    assert not torch.equal(FeatureQueue(500, 64).features, first)


def test_first_in_first_out():
    queue = plain(5)
    queue.enqueue(rows(0, 3))
    assert contents(queue) == [1, 2, 3, 0, 0]
    assert int(queue.pointer) == 3
    queue.enqueue(rows(3, 7))  # more rows than the remaining slots
    assert contents(queue) == [6, 7, 3, 4, 5]
    assert int(queue.pointer) == 2
    queue.enqueue(rows(7, 7))
    assert contents(queue) == [6, 7, 3, 4, 5]
    queue.enqueue(rows(7, 12))  # as many rows as the queue has
    assert contents(queue) == [11, 12, 8, 9, 10]
    assert int(queue.pointer) == 2


@pytest.mark.parametrize("count", [6, 11, 23])
def test_more_keys_than_the_queue_has_rows(count):
    """The same as enqueuing them one after another."""
    whole, single = plain(5), plain(5)
    for queue in (whole, single):
        queue.enqueue(rows(0, 3))
    whole.enqueue(rows(3, 3 + count))
    for i in range(3, 3 + count):
        single.enqueue(rows(i, i + 1))
    assert contents(whole) == contents(single)
    assert torch.equal(whole.pointer, single.pointer)


def test_keys_become_unit_vectors_without_a_gradient():
    queue = FeatureQueue(6, 4)
    keys = (torch.randn(2, 2, 4) * 9).requires_grad_()
    queue.enqueue(keys)
    want = torch.nn.functional.normalize(keys.detach(), dim=-1).flatten(0, 1)
    torch.testing.assert_close(queue.features[:4], want)
    assert not queue.features.requires_grad
    half = FeatureQueue(6, 4).to(torch.bfloat16)
    half.enqueue((keys * 1e3).half())
    assert half.features.dtype == torch.bfloat16
    torch.testing.assert_close(half.features[:4].float(), want, rtol=0, atol=1e-2)
    assert half.pointer.dtype == torch.int64


def test_a_resume_goes_on_where_it_stopped(tmp_path):
    def steps(queue, start, stop):
        for i in range(start, stop):
            queue.enqueue(rows(3 * i, 3 * i + 3) + 0.1)

    torch.manual_seed(0)
    through = FeatureQueue(8, 4)
    steps(through, 0, 5)
    torch.save(through.state_dict(), tmp_path / "queue.pt")
    steps(through, 5, 9)
    resumed = FeatureQueue(8, 4)
    resumed.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    steps(resumed, 5, 9)
    assert torch.equal(resumed.features, through.features)
    assert torch.equal(resumed.pointer, through.pointer)
    assert int(resumed.pointer) == 27 % 8
    with pytest.raises(RuntimeError, match="size mismatch"):
        FeatureQueue(9, 4).load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))


def test_a_training_step_uses_the_queue_as_it_was():
    """Loss, enqueue, backward: the gradient uses the queue before the enqueue."""
    torch.manual_seed(0)
    queue = FeatureQueue(50, 8)
    q, keys = torch.randn(5, 8, requires_grad=True), torch.randn(5, 3, 8)
    want = fastseq.queue_nce(q, keys, queue.features.clone(), backend="reference")
    want = torch.autograd.grad(want, q)[0]
    loss = fastseq.queue_nce(q, keys, queue.features)
    queue.enqueue(keys)
    loss.backward()
    torch.testing.assert_close(q.grad, want)
    assert fastseq.queue_nce(q, keys, queue.features) != loss


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: FeatureQueue(0, 4), ValueError, "size must be at least 1, got 0"),
        (lambda: FeatureQueue(4, 2.5), TypeError, "dim must be an integer, got 2.5"),
        (lambda: FeatureQueue(4, 3).enqueue(torch.ones(2, 4)), ValueError, r"\(B, 3\).*\(2, 4\)"),
        (lambda: FeatureQueue(4, 3).enqueue(torch.ones(3)), ValueError, r"got \(3,\)"),
        (lambda: FeatureQueue(4, 3).enqueue(torch.ones(2, 3).int()), TypeError, "torch.int32"),
        (lambda: FeatureQueue(4, 3).enqueue([[1.0]]), TypeError, "got list"),
    ],
)
def test_wrong_input(call, error, text):
    with pytest.raises(error, match=text):
        call()


RANK = """
import datetime, os, sys, torch, torch.distributed as dist
from fastseq.nn import FeatureQueue
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=200))
queue = FeatureQueue(7, 2, normalize=False)
queue.features.zero_()
# Keys of rank 0 and 1 per step: different numbers, none at all, more than the queue.
for step, counts in enumerate([(2, 1), (0, 3), (0, 0), (2, 2), (9, 1)]):
    keys = 100 * step + 10 * rank + torch.arange(counts[rank]) + 1.0
    queue.enqueue(keys[:, None].expand(-1, 2))
print(queue.features[:, 0].long().tolist(), int(queue.pointer), flush=True)
os._exit(0)  # an ordinary exit beside gloo's threads aborts now and then
"""


@pytest.mark.process
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_all_ranks_store_the_keys_of_all(tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [child.communicate(timeout=300) for child in children]
    assert all(child.returncode == 0 for child in children), outputs
    want = [0] * 7
    stream = [1, 2, 11, 111, 112, 113, 301, 302, 311, 312, *range(401, 410), 411]
    for i, key in enumerate(stream):
        want[i % 7] = key
    assert [out.strip() for out, _ in outputs] == [f"{want} {len(stream) % 7}"] * 2
