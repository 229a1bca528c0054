"""drop_dtw_path against enumeration, ties, and wrong input."""

import pytest
import torch

import fastseq
from ops.drop_dtw.cases import MODES, matchings, randn, total


@pytest.mark.parametrize(("contiguous", "exclusive"), MODES)
def test_the_cheapest_of_all_matchings(contiguous, exclusive):
    mode = {"contiguous": contiguous, "exclusive": exclusive}
    for seed, shape in enumerate([(1, 1), (1, 5), (2, 4), (3, 5), (4, 4)] * 2):
        cost, drop_cost = randn(*shape, seed=seed), randn(shape[1], seed=90 + seed) - 0.3
        if shape == (3, 5):
            cost[1, 1], drop_cost[2] = torch.inf, torch.inf
        choices = matchings(*shape, **mode)
        costs = torch.stack([total(c, cost.double(), drop_cost.double()) for c in choices])
        best = choices[costs.argmin()]
        want = [[i, j] for j, span in enumerate(best) if span for i in range(span[0], span[1] + 1)]
        pairs, dropped, least = fastseq.drop_dtw_path(cost, drop_cost, **mode)
        assert least == pytest.approx(costs.min().item(), rel=1e-12)
        assert pairs.tolist() == want
        assert dropped.tolist() == [span is None for span in best]
        assert pairs.dtype == torch.int64


def test_ties():
    """All costs equal: every frame is matched, and the last step takes as many as it can."""
    pairs, dropped, least = fastseq.drop_dtw_path(torch.ones(2, 4), torch.ones(4))
    assert pairs.tolist() == [[0, 0], [1, 1], [1, 2], [1, 3]]
    assert not dropped.any()
    assert least == 4


def test_a_longer_one_agrees_with_the_values():
    cost, drop_cost = randn(20, 500), randn(500, seed=1)
    pairs, dropped, least = fastseq.drop_dtw_path(cost, drop_cost)
    chosen = cost.double()[tuple(pairs.mT)].sum() + drop_cost.double()[dropped].sum()
    assert least == pytest.approx(chosen.item())
    soft = fastseq.drop_dtw(cost.double(), drop_cost.double(), gamma=1e-7)
    assert least == pytest.approx(soft.item(), rel=1e-6)
    assert pairs[:, 0].unique().tolist() == list(range(20))
    assert 0 < dropped.sum() < 480


COST, DROPS = torch.rand(3, 4), torch.rand(4)


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((COST[None], DROPS[None]), ValueError, r"shape \(K, S\) .* got \(1, 3, 4\)"),
        ((COST[:0], DROPS), ValueError, r"at least 1, got \(0, 4\)"),
        ((COST, DROPS[:3]), ValueError, r"drop_cost must have shape \(4,\)"),
        ((COST.int(), DROPS), TypeError, "got torch.int32"),
        ((COST / 0 * 0, DROPS), ValueError, "cost has NaN or -inf"),
        ((COST, DROPS - torch.inf), ValueError, "drop_cost has NaN or -inf"),
        ((COST[:, :2], DROPS[:2]), ValueError, "no matching exists: 3 steps, 2 frames and 0 "),
        ((COST + torch.inf, DROPS), ValueError, "and 12 forbidden matches; to fix"),
    ],
)
def test_wrong_input(args, error, text):
    with pytest.raises(error, match="^drop_dtw_path: .*" + text):
        fastseq.drop_dtw_path(*args)
    with pytest.raises(TypeError, match=r"^drop_dtw_path: contiguous must be True or False"):
        fastseq.drop_dtw_path(COST, DROPS, contiguous=0)


def test_not_inside_a_transform():
    with pytest.raises(RuntimeError, match=r"^drop_dtw_path: a matching has no derivative"):
        torch.func.grad(lambda c: fastseq.drop_dtw_path(c, DROPS)[2])(COST)
