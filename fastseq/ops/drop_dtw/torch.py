"""Plain PyTorch backend for any device: one anti-diagonal at a time, in float64.

The forward keeps the two last anti-diagonals at the start of each stretch of about
sqrt(K + S) of them; the backward computes one stretch again at a time.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.drop_dtw.options import DropDTWOptions

NO_PATH = 1e300  # of a cell that no path reaches


def forward(cost, drop_cost, lengths_x, lengths_y, opts: DropDTWOptions, needs):
    """Values (N,), and (stretches, 3, N, K + 2): the state that enters each stretch."""
    wave = _Wave(cost, drop_cost, lengths_x, lengths_y, opts)
    state, kept = wave.start(), []
    value = torch.zeros(wave.batch, dtype=torch.float64, device=cost.device)
    for s in range(1, wave.steps + 1):
        if any(needs) and (s - 1) % wave.stretch == 0:
            kept.append(torch.stack(state))
        state, _ = wave.step(s, state)
        last = state[1].gather(1, wave.end_x[:, None] + 1)[:, 0]
        value = torch.where(wave.ends(s), last, value)
    value = torch.where(value == NO_PATH, torch.inf, value * opts.gamma).to(cost.dtype)
    return (value, torch.stack(kept)) if kept else (value,)


def backward(
    grad, cost, drop_cost, lengths_x, lengths_y, *saved, opts: DropDTWOptions, needs
) -> tuple[Tensor | None, ...]:
    """Gradients of cost and drop_cost."""
    wave = _Wave(cost, drop_cost, lengths_x, lengths_y, opts)
    dcost, ddrop = torch.zeros_like(wave.cost), torch.zeros_like(wave.drop)
    # What D and P of this anti-diagonal, the one before it and (D only) the one before that get.
    to_d, to_p, to_d1, to_p1, to_d2 = (wave.new(0.0) for _ in range(5))
    for stretch in reversed(range(-(-wave.steps // wave.stretch))):
        first = stretch * wave.stretch + 1
        last = min(first + wave.stretch, wave.steps + 1)
        state, shares = tuple(saved[0][stretch]), []
        for s in range(first, last):
            state, parts = wave.step(s, state)
            shares.append(parts)
        for s in reversed(range(first, last)):
            here, above, columns = wave.places(s)
            part = shares.pop()
            seed = wave.ends(s)[:, None] & (wave.rows[here] == wave.end_x[:, None] + 1)
            of_d = to_d[:, here] + torch.where(seed, grad[:, None].double(), 0)
            of_match = (to_p[:, here] + of_d * part.state[0]).masked_fill(part.unmatched, 0)
            of_drop = (of_d * part.state[1]).masked_fill(part.undropped, 0)
            wave.diagonal(dcost, s).copy_(of_match)
            ddrop[:, columns] += of_drop
            to_d1[:, here] += of_drop
            to_d2[:, above] += of_match * part.match[0]
            (to_p1 if opts.contiguous else to_d1)[:, here] += of_match * part.match[1]
            if opts.up != "never":
                to_p1[:, above] += of_match * part.match[2]
            to_d, to_p, to_d1, to_p1, to_d2 = to_d1, to_p1, to_d2, wave.new(0.0), wave.new(0.0)
    dcost = dcost[:, 1:].masked_fill(~wave.real, 0).to(cost.dtype)
    ddrop = ddrop.flip(1).masked_fill(~wave.real_y, 0).to(drop_cost.dtype)
    return dcost if needs[0] else None, ddrop if needs[1] else None


class _Parts(NamedTuple):
    """Of the cells of one anti-diagonal: derivatives of P by its 2 or 3 predecessors and of D by P
    and M; where there is no P and no M."""

    match: Tensor
    state: Tensor
    unmatched: Tensor
    undropped: Tensor


class _Wave:
    """One call: its costs in units of gamma, with a row 0 that no frame can be matched to."""

    def __init__(self, cost, drop_cost, lengths_x, lengths_y, opts: DropDTWOptions):
        self.batch, self.k, self.m = cost.shape
        self.opts, self.device = opts, cost.device
        real_x = valid_mask(lengths_x, self.batch, self.k, self.device)
        self.real_y = valid_mask(lengths_y, self.batch, self.m, self.device)
        self.real = real_x[:, :, None] & self.real_y[:, None]
        self.end_x, self.end_y = real_x.sum(1), self.real_y.sum(1)
        self.cost = F.pad(self.scaled(cost, self.real), (0, 0, 1, 0), value=torch.inf)
        # Columns of an anti-diagonal fall while rows rise.
        self.drop = self.scaled(drop_cost, self.real_y).flip(1)
        self.rows = torch.arange(self.k + 2, device=self.device)  # place of a row: row + 1
        self.steps = self.k + self.m if cost.numel() else 0
        self.stretch = max(1, math.isqrt(self.steps))

    def scaled(self, cost: Tensor, real: Tensor) -> Tensor:
        # Padding may contain NaN. -inf needs no care: its weight is exp(-inf + inf), NaN.
        return torch.where(real, cost, 0).double() / self.opts.gamma

    def new(self, value: float) -> Tensor:
        shape = self.batch, self.k + 2
        return torch.full(shape, value, dtype=torch.float64, device=self.device)

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        """D of the two anti-diagonals before the first one, and P of the last of them."""
        first = self.new(NO_PATH)
        first[:, 1] = 0
        return self.new(NO_PATH), first, self.new(NO_PATH)

    def ends(self, s: int) -> Tensor:
        return (self.end_x + self.end_y == s) & (self.end_x > 0) & (self.end_y > 0)

    def places(self, s: int) -> tuple[slice, slice, slice]:
        """Places of the cells i + j = s, j >= 1; of the row above each; of their drop costs."""
        low, high = max(0, s - self.m), min(self.k + 1, s)
        shift = self.m - s
        return slice(low + 1, high + 1), slice(low, high), slice(low + shift, high + shift)

    def diagonal(self, matrix: Tensor, s: int) -> Tensor:
        """The cells i + j = s of (N, K + 1, S), rows in rising order: a view."""
        _, rows, _ = self.places(s)
        start = rows.start * self.m + s - 1 - rows.start
        strides = (self.k + 1) * self.m, max(self.m - 1, 1)
        shape = self.batch, rows.stop - rows.start
        return matrix.as_strided(shape, strides, matrix.storage_offset() + start)

    def step(self, s: int, state):
        """The next state, and the :class:`_Parts` of its cells."""
        before, last, matched = state
        here, above, columns = self.places(s)
        steps = [before[:, above], (matched if self.opts.contiguous else last)[:, here]]
        if self.opts.up != "never":
            steps.append(self.upper(s, matched[:, above]))
        least, soft, match = self.weigh(torch.stack(steps))
        cost, drop, left = self.diagonal(self.cost, s), self.drop[:, columns], last[:, here]
        # Also beside NaN: what is forbidden stays forbidden.
        unmatched = (cost == torch.inf) | (least == NO_PATH)
        undropped = (drop == torch.inf) | (left == NO_PATH)
        p = (cost + soft).masked_fill(unmatched, NO_PATH)
        m = (drop + left).masked_fill(undropped, NO_PATH)
        least, soft, shares = self.weigh(torch.stack([p, m]))
        new_d, new_p = self.new(NO_PATH), self.new(NO_PATH)
        new_d[:, here], new_p[:, here] = soft.masked_fill(least == NO_PATH, NO_PATH), p
        return (last, new_d, new_p), _Parts(match, shares, unmatched, undropped)

    def upper(self, s: int, matched: Tensor) -> Tensor:
        if self.opts.up == "always":
            return matched
        _, rows, _ = self.places(s)
        column = s - 1 - self.rows[rows]  # counted from 0
        ends = (column == 0) | (column == self.end_y[:, None] - 1)
        return torch.where(ends, matched, NO_PATH)

    def weigh(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For (terms, N, cells): the least, the soft minimum, and its derivative by each term."""
        least = scores.amin(0)
        weights = (least - scores).exp()
        total = weights.sum(0)
        shares = weights / total
        if self.opts.softmin == "logsumexp":
            return least, least - total.log(), shares
        excess = scores - least
        mean = (shares * excess).sum(0)
        return least, least + mean, shares * (1 - (excess - mean))
