"""Nearest frames, and the best and worst matches of a plan: block by block, without a gradient."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import no_autocast
from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.sinkhorn.options import SinkhornOptions
from fastseq.ops.sinkhorn.torch import BLOCK, Problem, forward, groups

Matches = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.no_grad()
def nearest(x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None) -> Tensor:
    """(N, T): the real frame of y that is nearest to each frame of x; 0 where there is none."""
    (num, frames_x, _), frames_y = x.shape, y.shape[1]
    found = torch.zeros(num, frames_x, dtype=torch.int64, device=x.device)
    if not (num and frames_x and frames_y):
        return found
    dtype = accumulator(x.dtype)
    real_x = valid_mask(lengths_x, num, frames_x, x.device)
    real_y = valid_mask(lengths_y, num, frames_y, x.device)
    x = torch.where(real_x[..., None], x, 0).to(dtype)
    y = torch.where(real_y[..., None], y, 0).to(dtype)
    with no_autocast(x.device.type):
        mean = y.sum(1, keepdim=True) / real_y.sum(1).clamp(min=1)[:, None, None]
        x, y = x - mean, y - mean
        norms = y.square().sum(2).masked_fill(~real_y, torch.inf)
        size = max(1, BLOCK // (num * frames_y))
        parts = [
            torch.baddbmm(norms[:, None], rows, y.mT, alpha=-2).argmin(2)
            for rows in x.split(size, 1)
        ]
    return torch.cat(parts, 1)


@torch.library.custom_op("fastseq::sinkhorn_matches", mutates_args=())
def _matches(
    x: Tensor,
    y: Tensor,
    centres: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    pairs: Tensor,
    iterations: int,
    by_kernel: bool,
) -> Matches:
    opts, inputs = SinkhornOptions(iterations, True), (x, y, centres, lengths_x, lengths_y, pairs)
    found = _empty(x, y)
    with no_autocast(x.device.type):
        if not by_kernel:
            _, f_all, g_all = forward(*inputs, opts, [False, False])
        for group in groups(inputs, opts):
            p = Problem(*(None if t is None else t[group] for t in inputs), opts)
            potentials = None if by_kernel else (f_all[group, -1], g_all[group, -1])
            for out, part in zip(found, _of_group(p, potentials), strict=True):
                out[group] = part
    return found


@_matches.register_fake
def _(x, y, centres, lengths_x, lengths_y, pairs, iterations, by_kernel):
    return _empty(x, y)


def _empty(x: Tensor, y: Tensor) -> Matches:
    def places(z: Tensor) -> Tensor:
        return torch.zeros(z.shape[:2], dtype=torch.int64, device=z.device)

    return places(x), places(x), places(y), places(y)


def best_and_worst(x, y, centres, lengths_x, lengths_y, pairs, iterations, by_kernel) -> Matches:
    """The frames (N, T) of y and (N, S) of x with the largest and the smallest entry of the plan:
    best and worst of the rows, then of the columns. Without virtual frames and padding.

    ``by_kernel``: the entries of exp(scores) D instead of those of the plan.
    """
    inputs = x.detach(), y.detach(), centres, lengths_x, lengths_y, pairs
    return _matches(*inputs, iterations, by_kernel)


def _of_group(p: Problem, potentials: tuple[Tensor, Tensor] | None) -> Matches:
    rows_best, rows_worst, best, worst = [], [], None, None
    real = p.columns[:, None, 1:]
    for start, entries, real_rows in _entries(p, potentials):
        rows_best.append(entries.masked_fill(~real, -torch.inf).argmax(2))
        rows_worst.append(entries.masked_fill(~real, torch.inf).argmin(2))
        top = entries.masked_fill(~real_rows, -torch.inf).max(1)
        low = entries.masked_fill(~real_rows, torch.inf).min(1)
        best = _better(best, top.values, top.indices + start)
        worst = _better(worst, -low.values, low.indices + start)
    return torch.cat(rows_best, 1), torch.cat(rows_worst, 1), best[1], worst[1]


def _entries(p: Problem, potentials) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first frame, logarithms of the entries, which rows are real) of each block."""
    for rows, scores, cost in p.blocks():
        if potentials is None:
            entries = scores + cost.log()
        else:
            f, g = potentials
            entries = scores + f[:, rows, None] + g[:, None]
        first = int(rows.start == 0)  # the virtual row
        yield rows.start + first - 1, entries[:, first:, 1:], p.rows[:, rows][:, first:, None]


def _better(best: tuple[Tensor, Tensor] | None, value: Tensor, place: Tensor):
    """The larger value of each column with its place; the first of equal ones."""
    if best is None:
        return value, place
    larger = value > best[0]
    return torch.where(larger, value, best[0]), torch.where(larger, place, best[1])
