"""Drop-DTW by enumerating all matchings, and helpers of the tests."""

import functools
import itertools

import torch

import fastseq
from ops.soft_dtw.cases import BACKENDS, EVERY, backends, randn, relative

__all__ = ["BACKENDS", "EVERY", "backends", "randn", "relative"]

MODES = list(itertools.product([True, False], [True, False]))  # contiguous, exclusive


@functools.cache
def matchings(k, m, contiguous=True, exclusive=True):
    """All of them, as a tuple with the steps (first, last) of each frame, or None where dropped.

    Written from the rules, not from the recursion: the steps keep their order, each of the k steps
    has a frame, a frame has consecutive steps (one if exclusive), and two matched frames share a
    step only as the last of one and the first of the next, with no dropped frame between them if
    contiguous.
    """
    spans = [(a, b) for a in range(k) for b in range(a, k) if a == b or not exclusive]
    found = []
    for choice in itertools.product([None, *spans], repeat=m):
        matched = [(j, *span) for j, span in enumerate(choice) if span is not None]
        if not matched or matched[0][1] != 0 or matched[-1][2] != k - 1:
            continue
        pairs = itertools.pairwise(matched)
        if all(
            a == last + 1 or (a == last and (not contiguous or j == before + 1))
            for (before, _, last), (j, a, _) in pairs
        ):
            found.append(choice)
    return found


def total(choice, cost, drop_cost):
    """Cost of a matching, a tensor."""
    parts = [
        drop_cost[j] if span is None else cost[span[0] : span[1] + 1, j].sum()
        for j, span in enumerate(choice)
    ]
    return torch.stack(parts).sum()


def sum_over_matchings(cost, drop_cost, gamma, **mode):
    """(value, gradient of cost, gradient of drop_cost) in float64. Without a matching: inf, 0."""
    cost, drop_cost = (z.detach().double().requires_grad_() for z in (cost, drop_cost))
    found = matchings(*cost.shape, **mode)
    # The gradient of a logarithm of 0 would be NaN.
    found = [total(choice, cost, drop_cost) for choice in found]
    found = [t for t in found if t < torch.inf]
    if not found:
        return torch.tensor(torch.inf), torch.zeros_like(cost), torch.zeros_like(drop_cost)
    value = -gamma * torch.logsumexp(torch.stack(found) / -gamma, 0)
    grads = torch.autograd.grad(value, (cost, drop_cost), materialize_grads=True)
    return value.detach(), *grads


def value_and_grads(cost, drop_cost, upstream=1.0, **kwargs):
    cost, drop_cost = (z.detach().requires_grad_() for z in (cost, drop_cost))
    value = fastseq.drop_dtw(cost, drop_cost, **kwargs)
    grads = torch.autograd.grad((value * upstream).sum(), (cost, drop_cost))
    return value.detach(), *grads


def otam_and_grad(cost, upstream=1.0, function=fastseq.otam, **kwargs):
    cost = cost.detach().requires_grad_()
    value = function(cost, **kwargs)
    return value.detach(), torch.autograd.grad((value * upstream).sum(), cost)[0]
