"""Plain PyTorch on any device: all cells of an anti-diagonal at once, one diagonal after another.

About 25 small operations per diagonal: slow beside numba and cuda, but it needs nothing else. Every
sqrt(T + S)-th diagonal is kept, and the backward computes the stretches between them again: memory
grows with T sqrt(T). The op's README has the recurrence and its letters.

For given costs the recurrence is over R itself, in float64: with forbidden pairs (+inf) differences
between neighbours cannot compare two ways around them.
"""

import math

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.soft_dtw.options import SoftDTWOptions, band_limits

ABSENT = 1e30  # the score of a missing predecessor: weight exactly 0
NO_PATH = 1e300  # R of a cell that no path reaches, and the score of a missing R


def forward(x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts: SoftDTWOptions, needs):
    """Values (N,), and H and V at the start of each stretch of diagonals; for a free end also the
    tensors of :class:`_FreeEnd`."""
    wave = _Wave(x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts)
    up, v = wave.new(wave.n + 1), wave.new(wave.n)
    value = torch.zeros(wave.batch, dtype=torch.float64, device=wave.device)
    end = _FreeEnd(wave) if opts.end_free else None
    kept = []
    for s in range(wave.steps):
        if any(needs) and s % wave.stretch == 0:
            kept.append(torch.cat([up, v], 1))
        sm, _ = wave.step(s, up, v)
        if end is None:
            wave.add_to_value(value, s, sm, up, v)
        else:
            end.step(s, sm, value)
    value = torch.where(value < NO_PATH, value * wave.unit, value + torch.inf)  # keeps NaN
    value = value.to((x if cost is None else cost).dtype)
    if not kept:
        return (value,)
    return (value, torch.stack(kept), *([] if end is None else [torch.stack(end.shares)]))


def backward(
    grad,
    x,
    y,
    cost,
    bias,
    lengths_x,
    lengths_y,
    gammas,
    bands,
    *saved,
    opts: SoftDTWOptions,
    needs,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, y, cost and bias, None where there is no such input or it is not needed."""
    need_x, need_y, *_ = needs
    wave = _Wave(x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts)
    dx, dy, dcost = (None if t is None else torch.zeros_like(t) for t in (x, y, cost))
    end = _FreeEnd(wave, saved[1], grad) if len(saved) > 1 else None
    # Flux on its way to the left, to the row above, and along the diagonal, one step later.
    left, up, owed = wave.new(wave.n), wave.new(wave.n + 1), wave.new(wave.n)
    for stretch in reversed(range(-(-wave.steps // wave.stretch))):
        first = stretch * wave.stretch
        last = min(first + wave.stretch, wave.steps)
        state_up, state_v = saved[0][stretch].clone().split([wave.n + 1, wave.n], 1)
        shares = [wave.step(s, state_up, state_v)[1] for s in range(first, last)]
        for s in reversed(range(first, last)):
            lanes = wave.lanes(s)
            below = slice(lanes.start + 1, lanes.stop + 1)
            seeds = grad if end is None else end.seeds(s)
            got = left[:, lanes] + up[:, below] + wave.seed(s, seeds, end is not None)
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
                # Columns come in falling order; each occurs once.
                columns = torch.arange(s - lanes.start, s - lanes.stop, -1, device=wave.device)
                dy.index_add_(1, columns, term, alpha=-2)
    if dcost is not None:
        return None, None, dcost.masked_fill_(~wave.real, 0), None
    for gradient, mask in ((dx, wave.real_x), (dy, wave.real_y)):
        gradient.masked_fill_(~mask[..., None], 0)
    return dx if need_x else None, dy if need_y else None, None, None


class _Wave:
    """One call: its costs in units of gamma, its band, its anti-diagonals."""

    def __init__(self, x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts):
        given = cost if x is None else x
        self.batch, self.n = given.shape[:2]
        self.m = cost.shape[2] if x is None else y.shape[1]
        self.device, self.dtype = given.device, given.dtype
        self.steps = self.n + self.m - 1 if self.batch and self.n and self.m else 0
        self.stretch = max(1, math.isqrt(self.steps))
        # Python numbers where possible, otherwise float64 tensors with one entry for each pair.
        self.unit = opts.gamma if gammas is None else gammas
        self.begin_free, self.warped = opts.begin_free, opts.warp_penalty > 0
        self.softmin = opts.softmin
        self.real_x = valid_mask(lengths_x, self.batch, self.n, self.device)
        self.real_y = valid_mask(lengths_y, self.batch, self.m, self.device)
        self.n_real, self.m_real = self.real_x.sum(1), self.real_y.sum(1)
        bandwidth = opts.bandwidth if bands is None else bands
        low, high = band_limits(self.n_real, self.m_real, bandwidth)
        self.low, self.high, self.banded = low[:, None], high[:, None], bandwidth is not None
        self.rows = torch.arange(self.n, device=self.device)
        # Padding may contain NaN; cells there are computed, but no real cell reads them.
        self.x = None
        if x is None:
            self.real = self.real_x[:, :, None] & self.real_y[:, None, :]
            self.cost = torch.where(self.real, cost, 0).double()
            # A path through -inf has no weight.
            self.cost.masked_fill_(self.cost == -torch.inf, torch.nan)
            self.dtype = torch.float64
        else:
            self.x = torch.where(self.real_x[..., None], x, 0)
            self.y = torch.where(self.real_y[..., None], y, 0).flip(1)
        self.scale, self.penalty = self.unit, opts.warp_penalty / self.unit
        if gammas is not None:
            self.scale, self.penalty = (
                t.to(self.dtype)[:, None] for t in (self.scale, self.penalty)
            )

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
        """R_ij - R_i-1,j-1 on diagonal s; the shares of each cell's diagonal, upper and left
        neighbour; and which cells have no path (None: all have one). ``up`` (H of the row above)
        and ``v`` are updated to the next diagonal in place."""
        if self.x is None:
            return self.step_of_costs(s, up, v)
        lanes = self.lanes(s)
        u = self.difference(s).square().sum(-1) / self.scale
        x, y, z = up[:, lanes].clone(), v[:, lanes].clone(), torch.zeros_like(u)
        if self.banded:
            gap = s - 2 * self.rows[lanes]  # j - i
            x.masked_fill_(gap >= self.high, ABSENT)
            y.masked_fill_(gap <= self.low, ABSENT)
        if lanes.start == 0:  # row 0: left neighbour only, or also a path that begins
            z[:, 0] = ABSENT
            if self.begin_free:
                x[:, 0] = 0
            else:
                x[:, 0], y[:, 0] = ABSENT, 0
        if lanes.stop == s + 1:  # column 0: upper neighbour only
            x[:, -1], y[:, -1], z[:, -1] = 0, ABSENT, ABSENT
        if s == 0 and not self.begin_free:
            x[:, 0], y[:, 0], z[:, 0] = ABSENT, ABSENT, 0
        least, extra, shares = _weigh(*self.with_penalty(x, y, lanes), z, self.softmin)
        rest = u - extra
        v[:, lanes] = rest + (least - x)
        up[:, lanes.start + 1 : lanes.stop + 1] = rest + (least - y)
        return rest + least, (*shares, None)

    def step_of_costs(self, s: int, up: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same for given costs, with R itself: ``up`` is R of the row above, ``v`` of the
        diagonal neighbour. A cell outside the band has no path either."""
        lanes = self.lanes(s)
        below = slice(lanes.start + 1, lanes.stop + 1)
        u = self.diagonal(self.cost, s) / self.scale
        x, y, z = up[:, lanes].clone(), up[:, below].clone(), v[:, lanes].clone()
        v[:, lanes] = x
        if lanes.start == 0:
            x[:, 0], z[:, 0] = 0 if self.begin_free else NO_PATH, NO_PATH
        if lanes.stop == s + 1:
            y[:, -1] = z[:, -1] = NO_PATH
        if s == 0 and not self.begin_free:
            z[:, 0] = 0
        least, extra, shares = _weigh(*self.with_penalty(x, y, lanes), z, self.softmin)
        # Also beside NaN: forbidden cells stay forbidden.
        gone = (u == torch.inf) | (least == NO_PATH)
        if self.banded:
            gap = s - 2 * self.rows[lanes]
            gone |= (gap > self.high) | (gap < self.low)
        r = (u + least - extra).masked_fill(gone, NO_PATH)
        up[:, below] = r
        return r, (*shares, gone)

    def with_penalty(self, x: Tensor, y: Tensor, lanes: slice) -> tuple[Tensor, Tensor]:
        """The scores of the upper and left neighbours; NO_PATH and ABSENT are unchanged."""
        if not self.warped:
            return x, y
        x, y = x + self.penalty, y + self.penalty
        if self.begin_free and lanes.start == 0:  # a begin is no step
            x[:, 0] = 0
        return x, y

    def add_to_value(self, value: Tensor, s: int, sm: Tensor, up: Tensor, v: Tensor) -> None:
        """Add to R of the last cell: sm along the main diagonal, then H or V along the edge. With a
        free begin: along the diagonal that ends in it if that begins in row 0, where sm is R."""
        n, m = self.n_real, self.m_real
        if self.x is None:
            ends = (n + m - 2 == s) & (n > 0) & (m > 0)
            value += torch.where(ends, up.gather(1, n[:, None])[:, 0], 0)
            return
        if self.begin_free:
            twice = s - (m - n).clamp(min=0)
            i = torch.div(twice, 2, rounding_mode="floor")
            along = (twice % 2 == 0) & (i >= 0) & (i < torch.minimum(n, m))
            lane = (i - self.lanes(s).start).clamp(0, sm.shape[1] - 1)
            value += torch.where(along, sm.gather(1, lane[:, None])[:, 0], 0)
        elif s % 2 == 0 and s // 2 < min(self.n, self.m):
            i = s // 2
            value += torch.where(i < torch.minimum(n, m), sm[:, i - self.lanes(s).start], 0)
        if not self.begin_free:
            row = (n - 1).clamp(min=0)[:, None]
            along_row = (s - n + 1 >= n) & (s - n + 1 < m) & (n > 0)
            value += torch.where(along_row, up.gather(1, row + 1)[:, 0], 0)
        row = (s - m + 1).clamp(0, self.n - 1)[:, None]
        along_column = (s - m + 1 >= m) & (s - m + 1 < n) & (m > 0)
        value += torch.where(along_column, v.gather(1, row)[:, 0], 0)

    def seed(self, s: int, grad: Tensor, anywhere: bool) -> Tensor:
        """``grad`` at the last row's cells on diagonal s, at the last of them or ``anywhere``."""
        n, m = self.n_real, self.m_real
        ends = (n > 0) & (m > 0)
        if not anywhere:
            ends &= n + m - 2 == s
        last = ends[:, None] & (self.rows[self.lanes(s)] == n[:, None] - 1)
        return torch.where(last, grad[:, None], 0)


class _FreeEnd:
    """The row below the last one, which is entered straight down and walked to the right at no
    cost: R_n,j = softmin(R_n-1,j, R_n,j-1), and the value is its last R.

    It uses R itself, in float64: differences of far ends summed in float32 could not tell which end
    is better. It keeps the logarithms of the shares that enter from above, R_n,j - R_n-1,j.
    """

    def __init__(self, wave: _Wave, shares: Tensor | None = None, grad: Tensor | None = None):
        self.wave, self.shares = wave, [] if shares is None else shares
        self.first = (wave.n_real - 1 + wave.low[:, 0]).clamp(min=0)  # column
        shape = (2, wave.batch, wave.n + 1)
        self.r = torch.zeros(shape, dtype=torch.float64, device=wave.device)
        self.state = self.r[0, :, 0] + NO_PATH if grad is None else grad.double()

    def column(self, s: int) -> tuple[Tensor, Tensor]:
        """Column of the last row's cell on diagonal s, and whether it is real and in the band."""
        column = s - self.wave.n_real + 1
        inside = (column >= self.first) & (column < self.wave.m_real) & (self.wave.n_real > 0)
        return column, inside

    def step(self, s: int, sm: Tensor, value: Tensor) -> None:
        """``sm``: R_ij - R_i-1,j-1 on diagonal s, or R of given costs."""
        lanes = self.wave.lanes(s)
        below = slice(lanes.start + 1, lanes.stop + 1)
        now, last = self.r[s % 2], self.r[(s + 1) % 2]
        r = sm
        if self.wave.x is not None:
            # Summed along the diagonals, where R grows the least; place 0 stays 0.
            r = now[:, lanes] + sm
            if lanes.start == 0 and not self.wave.begin_free:
                r[:, 0] = last[:, 1] + sm[:, 0]
            if lanes.stop == s + 1:
                r[:, -1] = last[:, lanes.stop - 1] + sm[:, -1]
        now[:, below] = r
        column, inside = self.column(s)
        above = now.gather(1, self.wave.n_real[:, None])[:, 0]
        least = torch.minimum(self.state, above)
        state = least - ((least - self.state).exp() + (least - above).exp()).log()
        self.state = torch.where(inside, state, self.state)
        self.shares.append(torch.where(above == NO_PATH, -torch.inf, state - above))
        value += torch.where(inside & (column == self.wave.m_real - 1), self.state, 0)

    def seeds(self, s: int) -> Tensor:
        """E that the last row receives from below on diagonal s; the last diagonal comes first."""
        _, inside = self.column(s)
        flux, share = self.state, self.shares[s]
        self.state = torch.where(inside, -flux * share.expm1(), flux)
        return torch.where(inside, flux * share.exp(), 0).to(self.wave.dtype)


def _weigh(x: Tensor, y: Tensor, z: Tensor, softmin: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """For the scores z (diagonal), x (up) and y (left): the least score, how far their softmin lies
    below it, and their shares, the derivatives of the softmin."""
    least = torch.minimum(torch.minimum(x, y), z)
    if softmin == "sparse":
        return least, *_sparse([score - least for score in (z, x, y)])
    # Not exp2: on the CPU its last bit depends on a number's position in a vector.
    shares = [torch.exp(least - score) for score in (z, x, y)]
    total = shares[0] + shares[1] + shares[2]
    shares = [share / total for share in shares]
    if softmin == "logsumexp":
        return least, total.log(), shares
    gaps = [score - least for score in (z, x, y)]
    mean = shares[0] * gaps[0] + shares[1] * gaps[1] + shares[2] * gaps[2]
    return (
        least,
        -mean,
        [share * (1 + (mean - gap)) for share, gap in zip(shares, gaps, strict=True)],
    )


def _sparse(gaps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The same for three scores from their differences to the least: the shares are the point of
    the simplex nearest to minus the scores."""
    a, b, c = gaps
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    middle, most = torch.maximum(small, torch.minimum(large, c)), torch.maximum(large, c)
    # Of the least score, if one, two or three scores have a share: the smallest is it.
    share = torch.minimum((1 + middle) / 2, (1 + middle + most) / 3).clamp(max=1)
    p, q = (share - middle).clamp(min=0), (share - most).clamp(min=0)
    # sum q r - sum q (1 - q) / 2 without the cancellation, as the shares sum to 1.
    return p * p + q * q + p * q, [(share - gap).clamp(min=0) for gap in gaps]
