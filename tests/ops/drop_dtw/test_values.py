"""drop_dtw and otam against enumeration, against the released loops, and by hand."""

import math

import pytest
import torch

import fastseq
from benchmarks.drop_dtw_peers import otam_few_shot, otam_paper, released
from ops.drop_dtw.cases import (
    EVERY,
    MODES,
    backends,
    matchings,
    otam_and_grad,
    randn,
    sum_over_matchings,
    value_and_grads,
)


def close(got, want, tolerance=1e-10):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def draw(*shape, seed=0):
    return randn(*shape, seed=seed, dtype=torch.float64)


def test_numbers_of_matchings():
    """By hand, for 2 steps and 3 frames: 5 without a drop or with one at an end, ..."""
    # a a b, a b b, a b -, - a b, a - b
    assert len(matchings(2, 3)) == 5
    # the same, since two frames of a step that are not neighbours need two more frames
    assert len(matchings(2, 3, contiguous=False)) == 5
    assert len(matchings(1, 3)) == 6  # a a a, a a -, - a a, and one of three
    assert len(matchings(1, 3, contiguous=False)) == 7  # and a - a
    assert len(matchings(2, 1)) == 0
    assert len(matchings(2, 1, exclusive=False)) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (3, 5), (4, 4), (3, 2)])
@pytest.mark.parametrize(("contiguous", "exclusive"), MODES)
@backends(EVERY)
def test_every_matching_counts_once(backend, contiguous, exclusive, shape):
    cost, drop_cost = draw(*shape), draw(shape[1], seed=1)
    mode = {"contiguous": contiguous, "exclusive": exclusive}
    want = sum_over_matchings(cost, drop_cost, 0.4, **mode)
    got = value_and_grads(cost, drop_cost, gamma=0.4, backend=backend, **mode)
    assert (want[0] == math.inf) == (shape == (3, 2) and exclusive)
    close(got, want)
    if want[0] < math.inf:
        # Each frame is dropped or matched, to one step if exclusive.
        used = got[1].sum(0) + got[2]
        assert (used > 1 - 1e-9).all()
        assert not exclusive or (used < 1 + 1e-9).all()


@pytest.mark.parametrize("softmin", ["prob", "logsumexp"])
@pytest.mark.parametrize(("contiguous", "exclusive"), MODES)
@backends(EVERY)
def test_as_released(backend, contiguous, exclusive, softmin):
    """The nested minima, for which "prob" is not a sum over matchings."""
    cost, drop_cost = draw(3, 6, 11).abs(), draw(3, 11, seed=1).abs()
    mode = {"contiguous": contiguous, "exclusive": exclusive, "softmin": softmin}
    leaves = [z.requires_grad_() for z in (cost, drop_cost)]
    value = released(*leaves, gamma=0.3, **mode)
    want = value.detach(), *torch.autograd.grad(value.sum(), leaves)
    close(value_and_grads(cost, drop_cost, gamma=0.3, backend=backend, **mode), want, 1e-8)
    if softmin == "prob":
        assert min(g.min() for g in want[1:]) < -1e-3  # its weights may be negative
        flat = value_and_grads(cost, drop_cost, gamma=0.3, **mode | {"softmin": "logsumexp"})[0]
        assert ((flat - want[0]).abs() > 0.1).all()


@backends(EVERY)
def test_by_hand(backend):
    """Two steps, three frames, no smoothing: the middle frame is dropped."""
    cost = torch.tensor([[1.0, 5.0, 9.0], [9.0, 6.0, 2.0]])
    for drop, want in ((2.0, 5.0), (0.5, 3.5), (9.0, 8.0)):
        got = fastseq.drop_dtw(cost, torch.full((3,), drop), gamma=1e-4, backend=backend)
        assert got.item() == pytest.approx(want)


@pytest.mark.parametrize("softmin", ["logsumexp", "prob"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1), (2, 2), (4, 7), (8, 8)])
@backends(EVERY)
def test_otam_is_the_papers_recursion(backend, shape, softmin):
    cost = draw(2, *shape)
    want = otam_and_grad(cost, function=otam_paper, gamma=0.2, softmin=softmin)
    got = otam_and_grad(cost, gamma=0.2, softmin=softmin, backend=backend)
    close(got, want)
    # Each column of y is matched once.
    if softmin == "logsumexp":
        close([got[1].sum(1)], [torch.ones(2, shape[1]).double()])


@backends(EVERY)
def test_otam_by_enumeration(backend):
    """Rows of the columns, none or one further each; twice for a free begin and a free end."""
    n, m, gamma = 4, 3, 0.3
    cost = draw(n, m, seed=3)
    scores = []
    for first in range(n):
        for moves in range(1 << (m - 1)):
            rows = [first + bin(moves & ((1 << j) - 1)).count("1") for j in range(m)]
            if rows[-1] < n:
                ways = (1 + (rows[0] > 0)) * (1 + (rows[-1] < n - 1))
                path = sum(cost[i, j].item() for j, i in enumerate(rows))
                scores.append(math.log(ways) - path / gamma)
    want = -gamma * torch.tensor(scores, dtype=torch.float64).logsumexp(0).item()
    got = fastseq.otam(cost, gamma=gamma, backend=backend)
    assert got.item() == pytest.approx(want, rel=1e-12)


def test_otam_beside_the_few_shot_codes():
    """The hard minimum is the same for costs of at least 0; the soft one differs by at most the
    additional paths, which descend the first column.
    """
    cost = draw(5, 8, 8).abs()
    hard = [f(cost, gamma=1e-5) for f in (fastseq.otam, otam_few_shot)]
    torch.testing.assert_close(*hard, rtol=0, atol=1e-3)
    soft = [f(cost, gamma=0.5) for f in (fastseq.otam, otam_few_shot)]
    assert (soft[1] < soft[0]).all()
    assert (soft[0] - soft[1] < 0.5 * math.log(8)).all()


@backends(EVERY)
def test_a_small_gamma_is_the_cheapest_matching(backend):
    for seed, (contiguous, exclusive) in enumerate(MODES):
        cost, drop_cost = draw(4, 9, seed=seed), draw(9, seed=10 + seed)
        mode = {"contiguous": contiguous, "exclusive": exclusive}
        pairs, dropped, best = fastseq.drop_dtw_path(cost, drop_cost, **mode)
        for softmin in ("logsumexp", "prob"):
            value, dcost, ddrop = value_and_grads(
                cost, drop_cost, gamma=1e-4, softmin=softmin, backend=backend, **mode
            )
            assert value.item() == pytest.approx(best, abs=1e-6)
            assert [p.tolist() for p in dcost.round().nonzero().mT] == sorted_pairs(pairs)
            assert torch.equal(ddrop.round().bool(), dropped)


def sorted_pairs(pairs):
    """Rows and columns, in the order of nonzero()."""
    rows = sorted(map(tuple, pairs.tolist()))
    return [list(side) for side in zip(*rows, strict=True)]
