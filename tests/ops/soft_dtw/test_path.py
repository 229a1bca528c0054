"""dtw_path against exhaustive search, with and without a band; ties; errors."""

import itertools

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.soft_dtw import dtw_path_from_cost
from ops.soft_dtw.cases import cost_of, in_band, paths_between_ends

SHAPES = [(1, 1), (1, 4), (4, 1), (2, 3), (4, 4), (5, 3), (3, 5), (5, 5), (4, 6)]


def backwards(path, m):
    """The steps from the end, in the order in which ties are broken: 0 diagonal, 1 in x, 2 in y. A
    free end comes straight down to a row that is walked to the right.
    """
    steps = [2] * (m - 1 - path[-1][1]) + [1]
    for (i, j), (k, q) in zip(path[::-1], path[-2::-1], strict=False):
        steps.append(0 if i > k and j > q else 1 if i > k else 2)
    return [*steps, 1]


@pytest.mark.parametrize("warp_penalty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ends", list(itertools.product(("fixed", "free"), repeat=2)), ids="-".join)
@pytest.mark.parametrize("bandwidth", [None, 0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_exhaustive_search(shape, bandwidth, ends, warp_penalty):
    rng = np.random.default_rng(shape[0] * 10 + shape[1])
    paths = [p for p in paths_between_ends(*shape, *ends) if in_band(p, *shape, bandwidth)]
    options = {"begin": ends[0], "end": ends[1], "warp_penalty": warp_penalty}
    # Numbers without ties, then numbers with ties.
    for cost in (rng.standard_normal(shape), *rng.integers(0, 3, (4, *shape)).astype(float)):
        path, total = dtw_path_from_cost(torch.tensor(cost), bandwidth=bandwidth, **options)
        costs = [cost_of(p, cost, warp_penalty) for p in paths]
        ties = [p for p, c in zip(paths, costs, strict=True) if c <= min(costs) + 1e-12]
        best = min(ties, key=lambda p: backwards(p, shape[1]))
        assert [tuple(cell) for cell in path.tolist()] == best
        assert total == pytest.approx(min(costs), abs=1e-12)


def test_embeddings_and_soft_dtw_at_small_gamma():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    y = torch.randn(31, 5, generator=torch.Generator().manual_seed(1))
    free = {"begin": "free", "end": "free", "warp_penalty": 0.5}
    path, total = fastseq.dtw_path(x[5:20], y, **free)
    soft = fastseq.soft_dtw(x[5:20], y, gamma=1e-6, **free, backend="reference")
    assert soft.item() == pytest.approx(total, rel=1e-6)
    assert path[:, 0].unique().tolist() == list(range(15))
    for kw in ({}, {"cost": "cosine"}, {"bandwidth": 3}):
        path, total = fastseq.dtw_path(x, y, **kw)
        assert (path.dtype, path.device.type, type(total)) == (torch.int64, "cpu", float)
        assert path[0].tolist() == [0, 0]
        assert path[-1].tolist() == [39, 30]
        steps = path.diff(dim=0)
        assert ((steps >= 0) & (steps <= 1)).all()
        assert (steps.sum(1) >= 1).all()
        i, j = path.T
        if kw.get("cost") == "cosine":
            cost = 1 - torch.cosine_similarity(x[i].double(), y[j].double())
        else:
            cost = (x[i].double() - y[j].double()).square().sum(-1)
        assert total == pytest.approx(cost.sum().item(), rel=1e-12)
        soft = fastseq.soft_dtw(x, y, gamma=1e-6, **kw, backend="reference")
        assert soft.item() == pytest.approx(total, rel=1e-6)


def test_ties_go_diagonally_then_along_x_then_along_y():
    same = torch.zeros(3, 2)
    assert fastseq.dtw_path(same, same)[0].tolist() == [[0, 0], [1, 1], [2, 2]]
    # Into the last cell: the diagonal costs more, the two others cost the same.
    cost = np.array([[0.0, 1.0, 1.0], [1.0, 3.0, 0.0], [1.0, 0.0, 0.0]])
    path, total = dtw_path_from_cost(cost)
    assert total == 1.0
    assert path.tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]


def test_half_precision_and_gradients_are_taken_as_numbers():
    x = torch.tensor([[0.0], [1.0]], dtype=torch.bfloat16, requires_grad=True)
    path, total = fastseq.dtw_path(x, torch.tensor([[0.0], [0.0], [3.0]]))
    assert (path.tolist(), total) == ([[0, 0], [0, 1], [1, 2]], 4.0)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), ValueError, "one pair at a time"),
        ((torch.zeros(3, 4), torch.zeros(3, 5)), ValueError, "agree in N and D"),
        ((torch.zeros(0, 4), torch.zeros(3, 4)), ValueError, "T and S at least 1"),
        ((torch.full((2, 1), torch.nan), torch.zeros(2, 1)), ValueError, "NaN or infinity"),
        (([[1.0]], torch.zeros(2, 1)), TypeError, "must be a torch.Tensor"),
    ],
)
def test_wrong_input(arguments, error, text):
    with pytest.raises(error, match=text):
        fastseq.dtw_path(*arguments)


def test_wrong_options_and_costs():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="bandwidth must be 0 or more"):
        fastseq.dtw_path(x, x, bandwidth=-1)
    with pytest.raises(ValueError, match=r"dtw_path: begin must be one of \('fixed', 'free'\)"):
        fastseq.dtw_path(x, x, begin="open")
    with pytest.raises(ValueError, match="dtw_path: warp_penalty must be finite and at least 0"):
        dtw_path_from_cost(np.zeros((2, 2)), warp_penalty=-1)
    with pytest.raises(ValueError, match="'sqeuclidean', 'cosine'"):
        fastseq.dtw_path(x, x, cost="l1")
    with pytest.raises(TypeError, match="a tensor or an array, got list"):
        dtw_path_from_cost([[1.0]])
    with pytest.raises(ValueError, match="T and S at least 1"):
        dtw_path_from_cost(np.zeros(4))
