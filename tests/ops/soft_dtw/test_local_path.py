"""dtw_local_path_from_cost against every path between every two pairs; ties; errors."""

import itertools

import numpy as np
import pytest
import torch

from fastseq.ops.soft_dtw import dtw_local_path_from_cost, dtw_path_from_cost
from ops.soft_dtw.cases import all_paths

SHAPES = [(1, 1), (1, 5), (5, 1), (2, 3), (4, 4), (5, 3), (3, 6), (6, 6)]


def every_path(n, m):
    """All monotone paths from any cell to any cell."""
    for i, j in itertools.product(range(n), range(m)):
        for rows, columns in itertools.product(range(1, n - i + 1), range(1, m - j + 1)):
            for path in all_paths(rows, columns):
                yield [(i + a, j + b) for a, b in path]


@pytest.mark.parametrize("threshold", [-1.5, -0.3, 0.0, 0.4, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_exhaustive_search(shape, threshold):
    cost = np.random.default_rng(shape[0] * 10 + shape[1]).standard_normal(shape)
    best, wanted = 0.0, []
    for path in every_path(*shape):
        score = sum(threshold - cost[cell] for cell in path)
        if score > best:
            best, wanted = score, path
    path, score = dtw_local_path_from_cost(torch.tensor(cost), threshold=threshold)
    assert [tuple(pair) for pair in path.tolist()] == wanted
    assert score == pytest.approx(best, abs=1e-12)
    assert (path.shape, path.dtype, type(score)) == ((len(wanted), 2), torch.int64, float)


def test_finds_the_common_part_of_two_sequences():
    """x and y share 50 frames at different speeds, between stretches that differ."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((50, 16)).cumsum(0)
    slower = np.repeat(shared, 2, axis=0)
    x = np.concatenate([rng.standard_normal((30, 16)) - 40, shared, shared[-1:] + 99])
    y = np.concatenate([slower, rng.standard_normal((45, 16)) + 40])
    cost = ((x[:, None] - y) ** 2).sum(-1)
    path, score = dtw_local_path_from_cost(cost, threshold=1.0)
    assert path[0].tolist() == [30, 0]
    assert path[-1].tolist() == [79, 99]
    assert [tuple(p) for p in path.tolist()] == [(30 + k // 2, k) for k in range(100)]
    assert score == 100.0
    closed, _ = dtw_path_from_cost(cost)
    assert closed[0].tolist() == [0, 0]


def test_a_dear_pair_is_crossed_only_where_more_lies_behind_it():
    cost = np.full((5, 5), 9.0)
    np.fill_diagonal(cost, [0, 0, 3, 0, 0])
    path, score = dtw_local_path_from_cost(cost, threshold=1.5)  # 3.0 - 1.5 + 3.0
    assert (path.tolist(), score) == ([[k, k] for k in range(5)], 4.5)
    path, score = dtw_local_path_from_cost(cost, threshold=0.9)  # 1.8, and -2.1 between
    assert (path.tolist(), score) == ([[0, 0], [1, 1]], 1.8)


def test_nothing_earns_and_ties():
    path, score = dtw_local_path_from_cost(np.ones((3, 4)), threshold=1.0)
    assert (path.shape, path.dtype, score) == ((0, 2), torch.int64, 0.0)
    # Pairs with a negative score stay out at the start and the end, but not in between.
    cost = np.array([[1.0, 0.5, 1.0, 1.0, 0.5, 1.0]])
    path, score = dtw_local_path_from_cost(cost, threshold=1.0)
    assert (path.tolist(), score) == ([[0, 1], [0, 2], [0, 3], [0, 4]], 1.0)
    # Of two equal parts, the first.
    cost = np.array([[9.0, 9.0, 0.0], [9.0, 9.0, 9.0], [0.0, 9.0, 9.0]])
    assert dtw_local_path_from_cost(cost, threshold=1.0)[0].tolist() == [[0, 2]]


def test_numbers_of_any_dtype_and_layout():
    cost = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    wanted = dtw_local_path_from_cost(cost, threshold=0)
    grown = torch.tensor(cost, requires_grad=True)
    for same in (grown, torch.tensor(cost.T).T, np.asfortranarray(cost)):
        path, score = dtw_local_path_from_cost(same, threshold=np.float32(0))
        assert path.equal(wanted[0])
        assert score == wanted[1]


@pytest.mark.parametrize(
    ("cost", "threshold", "error", "text"),
    [
        ([[1.0]], 1.0, TypeError, "must be a tensor or an array, got list"),
        (torch.zeros(3), 1.0, ValueError, r"shape \(T, S\)"),
        (torch.zeros(0, 3), 1.0, ValueError, "T and S at least 1"),
        (torch.full((2, 2), torch.inf), 1.0, ValueError, "NaN or infinity"),
        (torch.zeros(2, 2), torch.nan, ValueError, "threshold must be finite, got nan"),
        (torch.zeros(2, 2), "0.5", TypeError, "threshold must be a number, got str"),
        (torch.zeros(2, 2), True, TypeError, "threshold must be a number, got bool"),
    ],
)
def test_wrong_input(cost, threshold, error, text):
    with pytest.raises(error, match=text) as raised:
        dtw_local_path_from_cost(cost, threshold=threshold)
    assert str(raised.value).startswith("dtw_local_path_from_cost: ")
