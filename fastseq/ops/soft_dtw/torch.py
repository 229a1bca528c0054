"""Plain PyTorch on any device: all cells of an anti-diagonal at once, one diagonal after another.

About 25 small operations per diagonal: slow beside numba and cuda, but it needs nothing. Every
sqrt(T + S)-th diagonal is kept, and the backward walks the stretches between them again: memory
grows with T sqrt(T). The op's README has the recurrence and its letters.

Of given costs it is the recurrence over R itself, in float64: where pairs are forbidden (+inf) the
differences of neighbours do not say how two ways around them compare.
"""

import math

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.soft_dtw.options import SoftDTWOptions, band_limits

ABSENT = 1e30  # the value of a predecessor that is not there: weight exactly 0
NO_PATH = 1e300  # R of a cell that no path leads to, and ABSENT among R


def forward(x, y, cost, lengths_x, lengths_y, gammas, bands, opts: SoftDTWOptions, needs):
    """Values (N,), and H and V where each stretch of diagonals begins."""
    wave = _Wave(x, y, cost, lengths_x, lengths_y, gammas, bands, opts)
    up, v = wave.new(wave.n + 1), wave.new(wave.n)
    value = torch.zeros(wave.batch, dtype=torch.float64, device=wave.device)
    kept = []
    for s in range(wave.steps):
        if any(needs) and s % wave.stretch == 0:
            kept.append(torch.cat([up, v], 1))
        sm, _ = wave.step(s, up, v)
        wave.add_to_value(value, s, sm, up, v)
    value = torch.where(value < NO_PATH, value * wave.unit, value + torch.inf)  # keeps NaN
    value = value.to((x if cost is None else cost).dtype)
    return (value, torch.stack(kept)) if kept else (value,)


def backward(
    grad, x, y, cost, lengths_x, lengths_y, gammas, bands, *saved, opts: SoftDTWOptions, needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, y and cost, None where there is no such input or it is not needed."""
    need_x, need_y, _ = needs
    wave = _Wave(x, y, cost, lengths_x, lengths_y, gammas, bands, opts)
    dx, dy, dcost = (None if t is None else torch.zeros_like(t) for t in (x, y, cost))
    # Flux on its way to the left, to the row above, and from the diagonal, one step later.
    left, up, owed = wave.new(wave.n), wave.new(wave.n + 1), wave.new(wave.n)
    for stretch in reversed(range(-(-wave.steps // wave.stretch))):
        first = stretch * wave.stretch
        last = min(first + wave.stretch, wave.steps)
        state_up, state_v = saved[0][stretch].clone().split([wave.n + 1, wave.n], 1)
        shares = [wave.step(s, state_up, state_v)[1] for s in range(first, last)]
        for s in reversed(range(first, last)):
            lanes = wave.lanes(s)
            below = slice(lanes.start + 1, lanes.stop + 1)
            got = left[:, lanes] + up[:, below] + wave.seed(s, grad)
            diagonal, upper, leftmost, gone = shares.pop()
            if gone is not None:
                got = got.masked_fill(gone, 0)
            left[:, lanes] = got * leftmost
            up[:, lanes] = got * upper + owed[:, lanes]
            owed[:, lanes] = got * diagonal
            if dcost is not None:
                wave.diagonal(dcost, s).copy_(got)
                continue
            term = got[..., None] * wave.difference(s)
            if need_x:
                dx[:, lanes].add_(term, alpha=2)
            if need_y:
                # Columns come in falling order; each is met once.
                columns = torch.arange(s - lanes.start, s - lanes.stop, -1, device=wave.device)
                dy.index_add_(1, columns, term, alpha=-2)
    if dcost is not None:
        return None, None, dcost.masked_fill_(~wave.real, 0)
    for gradient, mask in ((dx, wave.real_x), (dy, wave.real_y)):
        gradient.masked_fill_(~mask[..., None], 0)
    return dx if need_x else None, dy if need_y else None, None


class _Wave:
    """One call: its costs in units of gamma / log2(e), its band, its anti-diagonals."""

    def __init__(self, x, y, cost, lengths_x, lengths_y, gammas, bands, opts):
        if gammas is not None or bands is not None or any(opts[2:]):
            raise NotImplementedError("soft_dtw: this backend has no such option yet")
        given = cost if x is None else x
        self.batch, self.n = given.shape[:2]
        self.m = cost.shape[2] if x is None else y.shape[1]
        self.device, self.dtype = given.device, given.dtype
        self.steps = self.n + self.m - 1 if self.batch and self.n and self.m else 0
        self.stretch = max(1, math.isqrt(self.steps))
        self.unit = opts.gamma * math.log(2)
        self.real_x = valid_mask(lengths_x, self.batch, self.n, self.device)
        self.real_y = valid_mask(lengths_y, self.batch, self.m, self.device)
        self.n_real, self.m_real = self.real_x.sum(1), self.real_y.sum(1)
        low, high = band_limits(self.n_real, self.m_real, opts.bandwidth)
        self.low, self.high, self.banded = low[:, None], high[:, None], opts.bandwidth is not None
        self.rows = torch.arange(self.n, device=self.device)
        # Padding may hold NaN, and cells there are computed, though nothing real reads them.
        self.x = None
        if x is None:
            self.real = self.real_x[:, :, None] & self.real_y[:, None, :]
            self.cost = torch.where(self.real, cost, 0).double()
            # Of a path through -inf no weight can be formed.
            self.cost.masked_fill_(self.cost == -torch.inf, torch.nan)
            self.dtype = torch.float64
        else:
            self.x = torch.where(self.real_x[..., None], x, 0)
            self.y = torch.where(self.real_y[..., None], y, 0).flip(1)

    def new(self, lanes: int) -> Tensor:
        return torch.zeros(self.batch, lanes, dtype=self.dtype, device=self.device)

    def lanes(self, s: int) -> slice:
        """The rows of diagonal s."""
        return slice(max(0, s - self.m + 1), min(self.n, s + 1))

    def difference(self, s: int) -> Tensor:
        """x_i - y_j on diagonal s: (N, lanes, D)."""
        lanes = self.lanes(s)
        shift = self.m - 1 - s
        return self.x[:, lanes] - self.y[:, lanes.start + shift : lanes.stop + shift]

    def diagonal(self, matrix: Tensor, s: int) -> Tensor:
        """Diagonal s of (N, T, S), rows in rising order: a view."""
        lanes = self.lanes(s)
        start = lanes.start * self.m + s - lanes.start
        shape = (self.batch, lanes.stop - lanes.start)
        offset = matrix.storage_offset() + start
        return matrix.as_strided(shape, (self.n * self.m, max(self.m - 1, 1)), offset)

    def step(self, s: int, up: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """R_ij - R_i-1,j-1 on diagonal s; what each cell owes to its diagonal, upper and left
        neighbour, and which cells have no path (None: all have). ``up`` (H of the row above) and
        ``v`` go on to the next diagonal in place."""
        if self.x is None:
            return self.step_of_costs(s, up, v)
        lanes = self.lanes(s)
        u = self.difference(s).square().sum(-1) / self.unit
        x, y, z = up[:, lanes].clone(), v[:, lanes].clone(), torch.zeros_like(u)
        if self.banded:
            gap = s - 2 * self.rows[lanes]  # j - i
            x.masked_fill_(gap >= self.high, ABSENT)
            y.masked_fill_(gap <= self.low, ABSENT)
        if lanes.start == 0:  # row 0 has its left neighbour alone
            x[:, 0], y[:, 0], z[:, 0] = ABSENT, 0, ABSENT
        if lanes.stop == s + 1:  # column 0 has its upper neighbour alone
            x[:, -1], y[:, -1], z[:, -1] = 0, ABSENT, ABSENT
        if s == 0:
            x[:, 0], y[:, 0], z[:, 0] = ABSENT, ABSENT, 0
        _, rest, shares = _weigh(x, y, z)
        sm = u + rest
        v[:, lanes] = sm - x
        up[:, lanes.start + 1 : lanes.stop + 1] = sm - y
        return sm, (*shares, None)

    def step_of_costs(self, s: int, up: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same for given costs: of R itself, which ``up`` is of the row above, ``v`` of the
        diagonal neighbour. A cell outside the band has no path either."""
        lanes = self.lanes(s)
        below = slice(lanes.start + 1, lanes.stop + 1)
        u = self.diagonal(self.cost, s) / self.unit
        x, y, z = up[:, lanes].clone(), up[:, below].clone(), v[:, lanes].clone()
        v[:, lanes] = x
        if lanes.start == 0:
            x[:, 0] = z[:, 0] = NO_PATH
        if lanes.stop == s + 1:
            y[:, -1] = z[:, -1] = NO_PATH
        if s == 0:
            z[:, 0] = 0
        least, rest, shares = _weigh(x, y, z)
        # Also beside NaN: what is forbidden stays so.
        gone = (u == torch.inf) | (least == NO_PATH)
        if self.banded:
            gap = s - 2 * self.rows[lanes]
            gone |= (gap > self.high) | (gap < self.low)
        r = (u + rest).masked_fill(gone, NO_PATH)
        up[:, below] = r
        return r, (*shares, gone)

    def add_to_value(self, value: Tensor, s: int, sm: Tensor, up: Tensor, v: Tensor) -> None:
        """R of the last cell: sm summed along the main diagonal, then H or V along the edge."""
        n, m = self.n_real, self.m_real
        if self.x is None:
            ends = (n + m - 2 == s) & (n > 0) & (m > 0)
            value += torch.where(ends, up.gather(1, n[:, None])[:, 0], 0)
            return
        if s % 2 == 0 and s // 2 < min(self.n, self.m):
            i = s // 2
            value += torch.where(i < torch.minimum(n, m), sm[:, i - self.lanes(s).start], 0)
        row = (n - 1).clamp(min=0)[:, None]
        along_row = (s - n + 1 >= n) & (s - n + 1 < m) & (n > 0)
        value += torch.where(along_row, up.gather(1, row + 1)[:, 0], 0)
        row = (s - m + 1).clamp(0, self.n - 1)[:, None]
        along_column = (s - m + 1 >= m) & (s - m + 1 < n) & (m > 0)
        value += torch.where(along_column, v.gather(1, row)[:, 0], 0)

    def seed(self, s: int, grad: Tensor) -> Tensor:
        """E of the last cell of the sequences that end on diagonal s."""
        n, m = self.n_real, self.m_real
        ends = (n + m - 2 == s) & (n > 0) & (m > 0)
        last = ends[:, None] & (self.rows[self.lanes(s)] == n[:, None] - 1)
        return torch.where(last, grad[:, None], 0)


def _weigh(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Of the scores z (diagonal), x (up) and y (left): the least, their softmin, their shares."""
    least = torch.minimum(torch.minimum(x, y), z)
    shares = [torch.exp2(least - score) for score in (z, x, y)]
    total = shares[0] + shares[1] + shares[2]
    return least, least - total.log2(), tuple(share / total for share in shares)
