"""Kernel of dtw_cross: 8 pairs at a time, as a wave of 8 rows of each.

Lane 8 r + p is row r of a tile of pair p; at step s it is at column s - r of a block of columns. So
the 64 cells of a step are independent and adjacent, those of one pair 8 apart, and for sequences of
one length no lane is idle. Costs are direct differences in the dtype of the frames; R is float64. A
tile passes on R of its last row to the tile below (``bottom``), and R of the block's last column to
the next block (``border``).
"""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import OPTIONS, kernel, take_number

PAIRS = 8  # at a time
ROWS = 8  # of a tile
LANES = PAIRS * ROWS
COLUMNS = 64  # of a block
STEPS = COLUMNS + ROWS  # of a tile: a multiple of 4, one more than necessary
WINDOW = (STEPS + ROWS) * PAIRS  # places of a block's frames of y, one channel
CHANNELS = 8  # processed at a time; the rest one by one
# Signed indices may be negative, and the check for that keeps LLVM from vectorising a loop.
_i = np.uintp


@kernel
def _load_rows(xs, x, firsts, top, n_real):
    """xs[d, r, p] = frame top + r of pair p's x, 0 beyond its real frames."""
    channels = x.shape[2]
    for p in range(PAIRS):
        for r in range(ROWS):
            real = top + r < n_real[p]
            for d in range(channels):
                value = x[firsts[p], top + r, d] if real else 0
                xs[_i(d * LANES + r * PAIRS + p)] = value


@kernel
def _load_columns(ys, y, seconds, start, m_real):
    """ys[d, q, p] = frame start + COLUMNS - 1 - q of pair p's y: lanes further right read columns
    further left. The places before and after stay 0."""
    channels = y.shape[2]
    for p in range(PAIRS):
        for k in range(COLUMNS):
            real = start + k < m_real[p]
            place = (STEPS - 1 - k) * PAIRS + p
            for d in range(channels):
                ys[_i(d * WINDOW + place)] = y[seconds[p], start + k, d] if real else 0


@kernel
def _costs(u, xs, ys, channels, s):
    """u[k, lane] = |x - y|^2 of the steps s to s + 3."""
    zero = u.dtype.type(0)
    for q in range(4 * LANES):
        u[_i(q)] = 0
    shift = (STEPS - 1 - s) * PAIRS
    whole = channels // CHANNELS * CHANNELS
    for d in range(0, whole, CHANNELS):
        at_x, at_y = d * LANES, d * WINDOW + shift
        for q in range(LANES):
            first, second, third, fourth = zero, zero, zero, zero
            for c in range(CHANNELS):
                x, y = xs[_i(at_x + c * LANES + q)], at_y + c * WINDOW + q
                e = x - ys[_i(y)]
                f = x - ys[_i(y - PAIRS)]
                g = x - ys[_i(y - 2 * PAIRS)]
                h = x - ys[_i(y - 3 * PAIRS)]
                first += e * e
                second += f * f
                third += g * g
                fourth += h * h
            u[_i(q)] += first
            u[_i(LANES + q)] += second
            u[_i(2 * LANES + q)] += third
            u[_i(3 * LANES + q)] += fourth
    for d in range(whole, channels):
        at_x, at_y = d * LANES, d * WINDOW + shift
        for q in range(LANES):
            x, y = xs[_i(at_x + q)], at_y + q
            e = x - ys[_i(y)]
            f = x - ys[_i(y - PAIRS)]
            g = x - ys[_i(y - 2 * PAIRS)]
            h = x - ys[_i(y - 3 * PAIRS)]
            u[_i(q)] += e * e
            u[_i(LANES + q)] += f * f
            u[_i(2 * LANES + q)] += g * g
            u[_i(3 * LANES + q)] += h * h


@kernel
def _step(now, last, before, u, at, penalty):
    """R of the cells of a step. now[PAIRS:]: R of the rows of the tile; now[:PAIRS]: R of the row
    above, one column ahead of the first row."""
    for q in range(LANES):
        diagonal, up, left = before[_i(q)], last[_i(q)], last[_i(PAIRS + q)]
        beside = up if up < left else left
        beside += penalty
        best = diagonal if diagonal < beside else beside
        now[_i(PAIRS + q)] = np.float64(u[_i(at + q)]) + best


@kernel
def _forbid(now, gap, low, high):
    """Set R to infinity outside the band. gap: j - i of the first row; limits per lane."""
    for q in range(LANES):
        r = now[_i(PAIRS + q)]
        now[_i(PAIRS + q)] = r if low[_i(q)] <= gap and gap <= high[_i(q)] else np.inf


@kernel
def _finish(now, s, top, start, n_real, m_real, end_free, value):
    """Values of the pairs whose last cell is in a step, or with a free end in the last row."""
    for p in range(PAIRS):
        r = n_real[p] - 1 - top
        j = s - r
        if not (0 <= r < ROWS and 0 <= j < COLUMNS and start + j < m_real[p]):
            continue
        here = now[(1 + r) * PAIRS + p]
        if end_free:
            value[p] = min(value[p], here)
        elif start + j == m_real[p] - 1:
            value[p] = here


@kernel
def _tile(waves, u, xs, ys, channels, area, n_real, m_real, limits, options, borders, value):
    """One tile: from R of the row above (bottom), of the column before (border) and of the cell
    before both (corner) to the same three for the tiles that follow."""
    top, start, ends = area
    low, high, banded = limits
    penalty, end_free = options
    bottom, border, corner = borders
    waves[:] = np.inf
    now, last, before = waves[0], waves[1], waves[2]
    for p in range(PAIRS):
        before[p] = corner[p]
        last[PAIRS + p] = border[_i(top * PAIRS + p)]
        corner[p] = border[_i((top + ROWS - 1) * PAIRS + p)]
    for s in range(STEPS):
        if s % 4 == 0:
            _costs(u, xs, ys, channels, s)
        if s < COLUMNS:
            for p in range(PAIRS):
                last[_i(p)] = bottom[_i(s * PAIRS + p)]
        _step(now, last, before, u, (s & 3) * LANES, penalty)
        if banded:
            _forbid(now, np.float64(start + s - top), low, high)
        if ends:
            _finish(now, s, top, start, n_real, m_real, end_free, value)
        if s + 1 < ROWS:  # the next row begins
            for p in range(PAIRS):
                now[_i((s + 2) * PAIRS + p)] = border[_i((top + s + 1) * PAIRS + p)]
        r = s - COLUMNS + 1
        if 0 <= r < ROWS:  # this row ends
            for p in range(PAIRS):
                border[_i((top + r) * PAIRS + p)] = now[_i((r + 1) * PAIRS + p)]
        j = s - ROWS + 1
        if 0 <= j < COLUMNS:
            for p in range(PAIRS):
                bottom[_i(j * PAIRS + p)] = now[_i(ROWS * PAIRS + p)]
        now, last, before = before, now, last


@numba.njit(**OPTIONS, nogil=True, cache=True)
def hard_values(problem, counter, numbers, values):
    """values[k] of each pair k in ``numbers``, in groups of 8, until no group is left for this
    thread. No pair may have a length of 0; neighbours should have similar lengths.

    problem: x (A, T, D), y (B, S, D), real lengths, bandwidth (-1: none), free begin, free end,
    penalty. Pair k is x[k // B] with y[k % B].
    """
    x, y, lengths_x, lengths_y, bandwidth, begin_free, end_free, penalty = problem
    channels, dtype = x.shape[2], x.dtype
    xs, ys = np.zeros(channels * LANES, dtype), np.zeros(channels * WINDOW, dtype)
    u, waves = np.zeros(4 * LANES, dtype), np.empty((3, PAIRS + LANES))
    rows = (x.shape[1] + ROWS - 1) // ROWS * ROWS
    bottom, border = np.empty(COLUMNS * PAIRS), np.empty(rows * PAIRS)
    corner, value = np.empty(PAIRS), np.empty(PAIRS)
    firsts, seconds = np.empty(PAIRS, np.int64), np.empty(PAIRS, np.int64)
    n_real, m_real = np.empty(PAIRS, np.int64), np.empty(PAIRS, np.int64)
    low, high = np.empty(LANES), np.empty(LANES)
    while True:
        group = take_number(counter)
        if group * PAIRS >= len(numbers):
            break
        lowest, highest = 0, 0
        for p in range(PAIRS):
            k = numbers[min(group * PAIRS + p, len(numbers) - 1)]
            firsts[p], seconds[p] = k // len(y), k % len(y)
            n, m = lengths_x[firsts[p]], lengths_y[seconds[p]]
            n_real[p], m_real[p] = n, m
            lowest, highest = min(lowest, m - n - bandwidth), max(highest, m - n + bandwidth)
            lowest, highest = min(lowest, -bandwidth), max(highest, bandwidth)
            for r in range(ROWS):  # row r of a step lies 2 r diagonals below the first row
                low[r * PAIRS + p] = min(0, m - n) - bandwidth + 2 * r
                high[r * PAIRS + p] = max(0, m - n) + bandwidth + 2 * r
        value[:] = np.inf
        # Above the first row: where a path may begin at no cost, and the diagonal way from there.
        above = 0.0 if begin_free else np.inf
        border[:] = np.inf
        for start in range(0, m_real.max(), COLUMNS):
            _load_columns(ys, y, seconds, start, m_real)
            bottom[:] = above
            corner[:] = 0.0 if start == 0 else above
            for top in range(0, n_real.max(), ROWS):
                gap = start - top
                if bandwidth >= 0 and (gap - ROWS >= highest or gap + COLUMNS <= lowest):
                    bottom[:] = np.inf
                    at = top * PAIRS
                    corner[:] = border[at + (ROWS - 1) * PAIRS : at + LANES]
                    border[at : at + LANES] = np.inf
                    continue
                ends = False
                for p in range(PAIRS):
                    ends |= top < n_real[p] <= top + ROWS
                _load_rows(xs, x, firsts, top, n_real)
                _tile(
                    waves,
                    u,
                    xs,
                    ys,
                    channels,
                    (top, start, ends),
                    n_real,
                    m_real,
                    (low, high, bandwidth >= 0),
                    (penalty, end_free),
                    (bottom, border, corner),
                    value,
                )
        for p in range(min(PAIRS, len(numbers) - group * PAIRS)):
            values[numbers[group * PAIRS + p]] = value[p]
