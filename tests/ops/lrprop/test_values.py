import pytest
import torch

import fastseq
from fastseq.ops.lrprop.op import propagated
from fastseq.ops.soft_dtw.costs import cosine_frames, squared_distances

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def by_hand(x, y, variance, tau):
    """One pair: every path of hard DTW by recursion, then both SCLs as dense loops."""
    n, m = len(x), len(y)
    x, y = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    cost = (1 - x @ y.T).tolist()
    best = {}

    def reach(i, j):
        if (i, j) not in best:
            steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
            before = [reach(*s) for s in steps if min(s) >= 0]
            total, path = min(before, key=lambda one: one[0]) if before else (0.0, [])
            best[i, j] = total + cost[i][j], [*path, (i, j)]
        return best[i, j]

    path = reach(n - 1, m - 1)[1]
    at_x = [sum(j for k, j in path if k == i) / sum(k == i for k, _ in path) for i in range(n)]
    at_y = [sum(i for i, k in path if k == j) / sum(k == j for _, k in path) for j in range(m)]
    s, total = x @ y.T / tau, 0.0
    for rows, columns in ((at_x, range(m)), (range(n), at_y)):
        gap = torch.tensor(rows, dtype=F64)[:, None] - torch.tensor(columns, dtype=F64)
        g = -gap.square() / (2 * variance)
        for logs, scores in ((g, s), (g.T, s.T)):
            log_w, log_p = logs.log_softmax(-1), scores.log_softmax(-1)
            total = total + (log_w.exp() * (log_w - log_p)).sum() / 2
    return total


@pytest.mark.parametrize(("n", "m"), [(7, 5), (4, 9), (6, 6), (1, 4)])
def test_value_and_gradient_by_hand(n, m):
    x, y = randn(n, 5, seed=1).requires_grad_(), randn(m, 5, seed=2).requires_grad_()
    got = fastseq.lrprop_loss(x, y, variance=3.0, temperature=0.5, reduction="none")
    want = by_hand(x, y, 3.0, 0.5)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, (x, y)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_slower_video_matches_frame_by_frame():
    x = randn(6, 8, seed=3)
    slow = x.repeat_interleave(3, 0)
    of_x, of_y = propagated("lrprop_loss", x[None], slow[None], [6], [18])
    assert of_x[0].tolist() == [1, 4, 7, 10, 13, 16]
    assert of_y[0].tolist() == [i for i in range(6) for _ in range(3)]


def test_lengths_masks_and_padding():
    x, y = randn(3, 9, 4, seed=4), randn(3, 8, 4, seed=5)
    n, m = [9, 4, 5], [8, 6, 0]
    each = [
        fastseq.lrprop_loss(x[k, : n[k]], y[k, : m[k]], reduction="sum")
        if m[k]
        else x.new_zeros(())
        for k in range(3)
    ]
    for k in range(3):
        x[k, n[k] :], y[k, m[k] :] = torch.nan, torch.inf
    x.requires_grad_()
    got = fastseq.lrprop_loss(x, y, lengths_x=n, lengths_y=m, reduction="none")
    torch.testing.assert_close(got, torch.stack(each))
    mean = fastseq.lrprop_loss(x, y, lengths_x=n, lengths_y=m)
    torch.testing.assert_close(mean, got.sum() / (9 + 8 + 4 + 6))
    (grad,) = torch.autograd.grad(mean, x)
    assert grad.isfinite().all()
    assert not grad[2].any()
    holes = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    full = fastseq.lrprop_loss(x[:1, holes[0]], y[:1])
    torch.testing.assert_close(fastseq.lrprop_loss(x[:1], y[:1], valid_x=holes), full)


def test_nan_in_a_real_frame_shows_in_its_pair_alone():
    x, y = randn(2, 5, 3, seed=6), randn(2, 5, 3, seed=7)
    x[1, 2, 0] = torch.nan
    got = fastseq.lrprop_loss(x, y, reduction="none")
    assert got[0].isfinite()
    assert got[1].isnan()


def test_gradient_is_that_of_a_constant_match():
    x, y = randn(1, 6, 3, seed=8), randn(1, 5, 3, seed=9)
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: fastseq.lrprop_loss(x, y, variance=2.0, backend="reference"), x
    )


def test_band_is_that_of_the_match():
    x, y = randn(1, 12, 4, seed=10), randn(1, 12, 4, seed=11)
    of_x, _ = propagated("lrprop_loss", x, y, [12], [12], 0)
    assert of_x[0].tolist() == list(range(12))
    frames = cosine_frames(x, None, 0), cosine_frames(y, None, 1)
    cost = squared_distances(*frames)[0].diagonal().sum()
    free = fastseq.dtw_path(x[0], y[0], cost="cosine")[1]
    assert free < cost.item()  # otherwise the band would change nothing
    assert fastseq.lrprop_loss(x, y, bandwidth=0) != fastseq.lrprop_loss(x, y)


def test_torch_func_is_refused():
    x, y = randn(5, 3), randn(4, 3)
    with pytest.raises(RuntimeError, match=r"^lrprop_loss: .*torch\.func transforms"):
        torch.func.grad(lambda x: fastseq.lrprop_loss(x, y))(x)


def test_errors():
    x, y = randn(2, 5, 3), randn(2, 4, 3)
    with pytest.raises(ValueError, match="lrprop_loss: reduction must be"):
        fastseq.lrprop_loss(x, y, reduction="paper")
    with pytest.raises(ValueError, match="lrprop_loss: temperature must be"):
        fastseq.lrprop_loss(x, y, temperature=0.0)
    with pytest.raises(ValueError, match="lrprop_loss: bandwidth must be 0 or more"):
        fastseq.lrprop_loss(x, y, bandwidth=-1)
    with pytest.raises(ValueError, match="lrprop_loss: x and y must"):
        fastseq.lrprop_loss(x, randn(2, 4, 2))
    assert fastseq.lrprop_loss(x[:, :0], y).item() == 0


def test_module_is_the_function():
    x, y = randn(2, 6, 3, seed=12), randn(2, 5, 3, seed=13)
    options = {"variance": 2.0, "temperature": 0.3, "bandwidth": 1, "reduction": "none"}
    module = fastseq.nn.LRPropLoss(**options)
    assert torch.equal(
        module(x, y, lengths_y=[5, 3]), fastseq.lrprop_loss(x, y, lengths_y=[5, 3], **options)
    )
    with pytest.raises(ValueError, match="LRPropLoss: variance must be"):
        fastseq.nn.LRPropLoss(variance=0.0)
