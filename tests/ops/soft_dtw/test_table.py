"""soft_dtw_table_from_cost: every cell against soft_dtw_from_cost, gradients at every cell."""

import functools

import pytest
import torch

import fastseq
from fastseq.ops.soft_dtw import soft_dtw_table_from_cost
from fastseq.ops.soft_dtw.options import SOFTMINS
from fastseq.ops.soft_dtw.table.op import FUSED
from ops.soft_dtw.cases import EVERY, backends, randn

KINDS = pytest.mark.parametrize("softmin", SOFTMINS)
DOUBLE = torch.float64


def costs(n=6, m=5, num=2, seed=0):
    return randn(num, n, m, seed=seed, dtype=DOUBLE)


def table_and_grad(cost, upstream, **kwargs):
    cost = cost.detach().requires_grad_()
    table = soft_dtw_table_from_cost(cost, **kwargs)
    return table.detach(), torch.autograd.grad(table, cost, upstream.to(table.dtype))[0]


@functools.cache
def values_of_prefixes(shape, softmin):
    cost, table = costs(*shape), torch.empty(2, *shape, dtype=DOUBLE)
    for i in range(shape[0]):
        for j in range(shape[1]):
            table[:, i, j] = fastseq.soft_dtw_from_cost(
                cost[:, : i + 1, : j + 1], gamma=0.7, softmin=softmin, backend="reference"
            )
    return table


@backends(EVERY)
@KINDS
@pytest.mark.parametrize("shape", [(5, 4), (3, 5), (1, 4), (4, 1), (1, 1)])
def test_each_cell_is_the_value_of_its_prefixes(backend, softmin, shape):
    table = soft_dtw_table_from_cost(costs(*shape), gamma=0.7, softmin=softmin, backend=backend)
    torch.testing.assert_close(table, values_of_prefixes(shape, softmin), rtol=1e-12, atol=1e-12)


@backends(EVERY)
@KINDS
def test_gradcheck_at_every_cell(backend, softmin):
    cost = costs(4, 3).requires_grad_()

    def table(c):
        return soft_dtw_table_from_cost(c, gamma=0.7, softmin=softmin, backend=backend)

    assert torch.autograd.gradcheck(table, cost)
    if backend == "reference" and softmin != "sparse":  # whose weights have kinks
        assert torch.autograd.gradgradcheck(table, costs(3, 3, 1).requires_grad_(), fast_mode=True)
    elif backend != "reference":
        (grad,) = torch.autograd.grad(table(cost).sum(), cost, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            grad.sum().backward()


@backends(("numba", "torch"))
@KINDS
def test_long_costs_equal_the_reference(backend, softmin):
    cost, upstream = costs(50, 60, 3).square(), costs(50, 60, 3, seed=1)
    options = {"gamma": 0.3, "softmin": softmin}
    got = table_and_grad(cost, upstream, backend=backend, **options)
    want = table_and_grad(cost, upstream, backend="reference", **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_threads_do_not_change_the_bits():
    cost, upstream = costs(120, 150, 7).square(), costs(120, 150, 7, seed=1)
    got = table_and_grad(cost, upstream, softmin="prob", backend="numba")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = table_and_grad(cost, upstream, softmin="prob", backend="numba")
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, got, again))


@backends(EVERY)
@KINDS
def test_padding_is_zero_and_ignored(backend, softmin):
    cost, upstream = costs(6, 5, 3), costs(6, 5, 3, seed=1)
    lengths_x, lengths_y = [6, 4, 0], [5, 2, 3]
    for n, (p, q) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        cost[n, p:], cost[n, :, q:] = torch.nan, torch.nan
    options = {"softmin": softmin, "backend": backend}
    ragged = {"lengths_x": lengths_x, "lengths_y": lengths_y}
    table, grad = table_and_grad(cost, upstream, **ragged, **options)
    for n, (p, q) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        for whole in (table, grad):
            assert not whole[n, p:].any()
            assert not whole[n, :, q:].any()
        alone = table_and_grad(cost[n, :p, :q], upstream[n, :p, :q], **options)
        torch.testing.assert_close((table[n, :p, :q], grad[n, :p, :q]), alone)


@backends(EVERY)
@KINDS
def test_forbidden_pairs(backend, softmin):
    """Cells without a path are +inf and have no gradient; the others as soft_dtw_from_cost."""
    cost, options = costs(), {"gamma": 0.7, "softmin": softmin}
    cost[0, 2], cost[1, 0, 1], cost[1, 2, 2] = torch.inf, torch.inf, torch.inf
    table, grad = table_and_grad(cost, costs(seed=1), backend=backend, **options)
    assert (table[0, 2:] == torch.inf).all()
    assert (table[1, 0, 1:] == torch.inf).all()
    assert grad.isfinite().all()
    assert not grad[table == torch.inf].any()
    value = fastseq.soft_dtw_from_cost(cost, backend="reference", **options)
    torch.testing.assert_close(table[:, -1, -1], value)
    last = torch.zeros_like(cost)
    last[:, -1, -1] = 1
    _, grad = table_and_grad(cost, last, backend=backend, **options)
    cost.requires_grad_()
    value = fastseq.soft_dtw_from_cost(cost, backend="reference", **options)
    (want,) = torch.autograd.grad(value[1], cost)
    torch.testing.assert_close(grad, want)


@backends(EVERY)
@KINDS
@pytest.mark.parametrize("odd", [torch.nan, -torch.inf])
@pytest.mark.parametrize("place", [(0, 2), (2, 0), (1, 2)])
def test_nan_is_not_hidden(backend, softmin, odd, place):
    """R is NaN at that cell and at all cells behind it, also along the first row and column."""
    cost, (i, j) = costs(4, 5, 1), place
    cost[0][place] = odd
    table = soft_dtw_table_from_cost(cost, softmin=softmin, backend=backend)[0]
    behind = torch.zeros(4, 5, dtype=torch.bool)
    behind[i:, j:] = True
    assert torch.equal(table.isnan(), behind)
    assert table[~behind].isfinite().all()
    i, j = min(i + 1, 3), min(j + 1, 4)
    cost[0, i, j] = torch.inf  # a forbidden pair stays one
    table = soft_dtw_table_from_cost(cost, softmin=softmin, backend=backend)[0]
    assert table[i, j] == torch.inf


@backends(EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(backend, dtype):
    """The recursion runs in float64; only the result is rounded."""
    cost, upstream = costs(40, 30).square().to(dtype), torch.ones(2, 40, 30)
    table, grad = table_and_grad(cost, upstream, gamma=0.1, backend=backend)
    assert (table.dtype, grad.dtype) == (torch.float32, dtype)
    want = table_and_grad(cost.double(), upstream, gamma=0.1, backend=backend)
    torch.testing.assert_close(table, want[0].float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(grad, want[1].to(dtype))


@backends(EVERY)
def test_one_pair_strides_and_empty(backend):
    cost = costs()
    one = soft_dtw_table_from_cost(cost[0].mT, backend=backend)
    many = soft_dtw_table_from_cost(cost.mT, backend=backend)
    assert torch.equal(one, many[0])
    for shape in ((2, 0, 3), (2, 3, 0), (0, 2, 3), (0, 3)):
        empty = torch.zeros(shape, requires_grad=True)
        table = soft_dtw_table_from_cost(empty, backend=backend)
        assert table.shape == shape
        table.sum().backward()


def test_wrong_arguments():
    cost = costs()
    for error, kwargs, text in [
        (TypeError, {"cost": [1.0]}, "cost must be a torch.Tensor, got list"),
        (TypeError, {"cost": cost.long()}, "cost must be float64"),
        (ValueError, {"cost": cost[0, 0]}, r"cost must have shape \(N, T, S\)"),
        (ValueError, {"gamma": 0.0}, "gamma must be"),
        (ValueError, {"softmin": "hard"}, "softmin must be one of"),
        (ValueError, {"lengths_x": [7, 1]}, "lengths_x must lie between 0 and T = 6"),
        (ValueError, {"backend": "cuda"}, "unknown backend 'cuda'"),
        (RuntimeError, {"cost": cost.to("meta"), "backend": "numba"}, "move them to the CPU"),
    ]:
        with pytest.raises(error, match=rf"^soft_dtw_table_from_cost: .*{text}"):
            soft_dtw_table_from_cost(**{"cost": cost} | kwargs)


@pytest.mark.compile
@backends(("numba", "torch"))
def test_opcheck(backend):
    cost, options = costs(3, 4).requires_grad_(), (backend, 0.5, "prob")
    torch.library.opcheck(FUSED.forward_op, (cost, *options, [True]))
    given = cost.detach()
    torch.library.opcheck(
        FUSED.backward_op, (torch.ones_like(given), given, None, *options, [True])
    )
