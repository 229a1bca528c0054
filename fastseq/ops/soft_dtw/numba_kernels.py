"""Kernels of the numba backend: one strip of 64 rows at a time, as a wave of 64 lanes.

Lane r is row r of the strip; at step s it holds column s - r. So all cells of a step are
independent, lie next to each other in memory, and need only what the step before left. A strip is
walked in blocks of 64 steps; what enters a block is saved, so that the backward can recompute it
bit for bit. op README, "How it is computed", has the recurrence and its letters.
"""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_math import (
    OPTIONS,
    kernel,
    log2_1p,
    middle_of,
    store_release,
    take_number,
    wait_for,
    weigh,
)

LANES = 64  # rows of a strip
STEPS = 64  # steps of a block; at least LANES - 1, for `wait_for`
WINDOW = STEPS + LANES + 16  # columns that a block reads, and a stride that is no power of 2
CHANNELS = 8  # D is filled up with zeros to a multiple of this
ABSENT = np.float32(1e30)  # the value of a predecessor that is not there: weight exactly 0
# Signed indices may be negative, and the check for it keeps LLVM from vectorising a loop.
_i = np.uintp


@kernel
def _lane_range(s, top, rows, m, low, high):
    """Lanes [first, last) whose cell at step s is in the matrix and in the band.

    Lane r is at row top + r and column s - r, on the diagonal s - top - 2 r.
    """
    first = max(0, s - m + 1, -((high + top - s) // 2))
    last = min(rows, s + 1, (s - top - low) // 2 + 1)
    return first, last


@kernel
def _costs(u, xs, ys, scale):
    """u[k, lane] = scale * |x - y|^2 of a block by direct differences.

    Flat arrays with constant strides, two steps and eight channels at a time: this is where the
    time goes, and what LLVM then keeps in registers. A sum per eight channels rounds less than one
    chain over all of them.
    """
    zero = scale - scale
    out = u.reshape(STEPS * LANES)
    for k in range(0, STEPS, 2):
        row, shift = k * LANES, STEPS - 1 - k
        for r in range(2 * LANES):
            out[_i(row + r)] = 0
        for d in range(0, xs.size // LANES, CHANNELS):
            at_x, at_y = d * LANES, d * WINDOW + shift
            for r in range(LANES):
                first, second = zero, zero
                for c in range(CHANNELS):
                    x = xs[_i(at_x + c * LANES + r)]
                    a = x - ys[_i(at_y + c * WINDOW + r)]
                    b = x - ys[_i(at_y + c * WINDOW + r - 1)]
                    first += a * a
                    second += b * b
                out[_i(row + r)] += first
                out[_i(row + LANES + r)] += second
        for r in range(2 * LANES):
            out[_i(row + r)] *= scale


@kernel
def _read_costs(u, cost, area, scale):
    """The same from a cost matrix (T, S); returns how many are infinite or NaN."""
    start, top, n, m, low, high = area
    rows, odd = min(LANES, n - top), 0
    for k in range(STEPS):
        first, last = _lane_range(start + k, top, rows, m, low, high)
        for r in range(first, last):
            u[k, r] = cost[top + r, start + k - r] * scale
        for r in range(first, last):
            odd += 0 if abs(u[_i(k), _i(r)]) < np.inf else 1
    return odd


@kernel
def _write_costs(e, dcost, area):
    """The gradient of a cost matrix is E."""
    start, top, n, m, low, high = area
    for k in range(STEPS):
        first, last = _lane_range(start + k, top, min(LANES, n - top), m, low, high)
        for r in range(first, last):
            dcost[top + r, start + k - r] = e[k, r]


@kernel
def _edges(k, s, top, m, low, high, up, v, above):
    """Before step s: what comes from above the strip, and what the band's edges lack."""
    if top > 0 and s < m:
        up[k & 1, 0] = above[s]
    if (s - top - high) % 2 == 0:
        r = (s - top - high) // 2
        if 0 <= r < LANES:
            up[k & 1, r] = ABSENT
    if (s - top - low) % 2 == 0:
        r = (s - top - low) // 2
        if 0 <= r < LANES:
            v[r] = ABSENT


@kernel
def _forward_block(u, up, v, sm, above, below, area, one):
    """One block: H and V of every cell in turn; returns what it adds to the value, in float64.

    up[k % 2, r]: H above lane r at step k; v[r]: V left of it. ``above`` and ``below``: H of the
    last row of the strip above, and of this one. ``area``: (first step, first row, real lengths,
    limits of the band).
    """
    start, top, n, m, low, high = area
    rows = min(LANES, n - top)
    value = 0.0
    for k in range(STEPS):
        s = start + k
        first, last = _lane_range(s, top, rows, m, low, high)
        if first >= last:
            continue
        _edges(k, s, top, m, low, high, up, v, above)
        row, now, then = _i(k), _i(k & 1), _i((k + 1) & 1)
        from_lane, to_lane = first, last
        if top == 0 and first == 0:  # row 0 has its left neighbour alone
            from_lane = 1
            up[then, 1] = sm[0] = u[k, 0]
        if last == s + 1:  # column 0 has its upper neighbour alone
            to_lane = s
            v[s] = u[k, s]
        for r in range(from_lane, to_lane):
            i = _i(r)
            x, y = up[now, i], v[i]
            least, _, _, others = weigh(x, y, one)
            rest = u[row, i] - log2_1p(others)
            sm[i] = rest + least
            v[i] = rest + (least - x)
            up[then, _i(r + 1)] = rest + (least - y)
        value += _value_of_step(s, first, last, top, n, m, up, then, v, sm)
        if last == LANES:
            below[s - LANES + 1] = up[then, LANES]
    return value


@kernel
def _value_of_step(s, first, last, top, n, m, up, then, v, sm):
    """R of the last cell: sm summed along the main diagonal, then H or V along the edge."""
    value = 0.0
    if (s - top) % 2 == 0:
        r = (s - top) // 2
        if first <= r < last and top + r < min(n, m):
            value += sm[r]
    if m > n and top + LANES >= n:
        r = n - 1 - top
        if first <= r < last and s - r >= n:
            value += up[then, r + 1]
    if n > m:
        r = s - m + 1
        if first <= r < last and top + r >= m:
            value += v[r]
    return value


@kernel
def _probabilities(u, p, up, v, above, area, one):
    """The block again, keeping what each cell owes to its diagonal, upper and left neighbour:
    p[k, r], p[k, LANES + r] and p[k, 2 LANES + r]."""
    start, top, n, m, low, high = area
    rows = min(LANES, n - top)
    zero = one - one
    for k in range(STEPS):
        s = start + k
        first, last = _lane_range(s, top, rows, m, low, high)
        if first >= last:
            continue
        _edges(k, s, top, m, low, high, up, v, above)
        row, now, then = _i(k), _i(k & 1), _i((k + 1) & 1)
        from_lane, to_lane = first, last
        if top == 0 and first == 0:
            from_lane = 1
            up[then, 1] = u[k, 0]
            p[k, 0], p[k, LANES], p[k, 2 * LANES] = zero, zero, one
        if last == s + 1:
            to_lane = s
            v[s] = u[k, s]
            p[k, s], p[k, LANES + s], p[k, 2 * LANES + s] = zero, one, zero
        for r in range(from_lane, to_lane):
            i = _i(r)
            x, y = up[now, i], v[i]
            least, e_middle, e_most, others = weigh(x, y, one)
            rest = u[row, i] - log2_1p(others)
            v[i] = rest + (least - x)
            up[then, _i(r + 1)] = rest + (least - y)
            middle, share = middle_of(x, y, zero), one / (one + others)
            diagonal = one if zero == least else e_middle if zero == middle else e_most
            p[row, i] = share * diagonal
            p[row, _i(LANES + r)] = share * (
                one if x == least else e_middle if x == middle else e_most
            )
            p[row, _i(2 * LANES + r)] = share * (
                one if y == least else e_middle if y == middle else e_most
            )


@kernel
def _expectations(e, p, left, up, owed, seed, below, above, area):
    """E of a block, last step first; cells outside get 0. ``seed``: E of the very last cell.

    Flux on its way: left[r] to the cell on the left, up[r] to the row above at the column of the
    step, owed[r] from the diagonal, which the row above gets one step later. ``below`` and
    ``above``: flux between strips, per column. All flux is float64, and what leaves a cell is what
    came: where one path dominates, float32 would lose the little that comes back to it.
    """
    start, top, n, m, low, high = area
    rows = min(LANES, n - top)
    for k in range(STEPS - 1, -1, -1):
        s, row = start + k, _i(k)
        first, last = _lane_range(s, top, rows, m, low, high)
        first, last = min(first, LANES), max(last, 0)
        if top + LANES < n and LANES - 1 <= s < m + LANES - 1:
            up[LANES] = below[s - LANES + 1]
        if top + LANES >= n and s == n - 1 - top + m - 1:
            left[n - 1 - top] = seed
        for r in range(first):
            e[k, r], left[r], up[r], owed[r] = 0, 0, owed[r], 0
        for r in range(first, last):
            i = _i(r)
            got = left[i] + up[_i(r + 1)]
            e[row, i] = got
            diagonal = np.float64(p[row, i])
            upper = np.float64(p[row, _i(LANES + r)])
            leftmost = np.float64(p[row, _i(2 * LANES + r)])
            got /= diagonal + upper + leftmost
            left[i] = got * leftmost
            up[i] = got * upper + owed[i]
            owed[i] = got * diagonal
        for r in range(max(first, last), LANES):
            e[k, r], left[r], up[r], owed[r] = 0, 0, owed[r], 0
        if s < m:
            above[s] = up[0]


@kernel
def _row_gradients(e, xs, ys, gx):
    """gx[d, r] += sum over the block's columns of E (x - y)."""
    flat = e.reshape(STEPS * LANES)
    for k in range(0, STEPS, 4):
        row, shift = k * LANES, STEPS - 1 - k
        for d in range(xs.size // LANES):
            at_x, at_y = d * LANES, d * WINDOW + shift
            for r in range(LANES):
                x = xs[_i(at_x + r)]
                gx[_i(at_x + r)] += (
                    flat[_i(row + r)] * (x - ys[_i(at_y + r)])
                    + flat[_i(row + LANES + r)] * (x - ys[_i(at_y + r - 1)])
                ) + (
                    flat[_i(row + 2 * LANES + r)] * (x - ys[_i(at_y + r - 2)])
                    + flat[_i(row + 3 * LANES + r)] * (x - ys[_i(at_y + r - 3)])
                )


@kernel
def _column_gradients(e, skewed, xs, ys, gy):
    """gy[d, q] = sum over the strip's rows of E (y - x); skewed[r, q] takes E by columns."""
    skewed[:] = 0
    gy[:] = 0
    flat = e.reshape(STEPS * LANES)
    for k in range(STEPS):
        for r in range(LANES):
            skewed[_i(r * WINDOW + STEPS - 1 - k + r)] = flat[_i(k * LANES + r)]
    for r in range(0, LANES, 4):
        row = r * WINDOW
        for d in range(xs.size // LANES):
            at_x, at_y = d * LANES + r, d * WINDOW
            x0, x1 = xs[_i(at_x)], xs[_i(at_x + 1)]
            x2, x3 = xs[_i(at_x + 2)], xs[_i(at_x + 3)]
            for q in range(r, r + STEPS + 3):
                y = ys[_i(at_y + q)]
                gy[_i(at_y + q)] += (
                    skewed[_i(row + q)] * (y - x0) + skewed[_i(row + WINDOW + q)] * (y - x1)
                ) + (
                    skewed[_i(row + 2 * WINDOW + q)] * (y - x2)
                    + skewed[_i(row + 3 * WINDOW + q)] * (y - x3)
                )


@kernel
def _load_rows(xs, x, top, n):
    """xs[d, r] = x[top + r, d]; 0 in the padding, whatever it holds."""
    xs[:] = 0
    for r in range(min(LANES, n - top)):
        for d in range(x.shape[1]):
            xs[_i(d * LANES + r)] = x[_i(top + r), _i(d)]


@kernel
def _window(start, m):
    """Places q of a block's window whose column start + STEPS - 1 - q exists."""
    return max(0, start + STEPS - m), min(STEPS + LANES - 1, start + STEPS)


@kernel
def _load_columns(ys, y, start, m):
    """ys[d, q] = y[start + STEPS - 1 - q, d]: lanes to the right read columns to the left."""
    first, last = _window(start, m)
    for d in range(y.shape[1]):
        ys[d * WINDOW : d * WINDOW + first] = 0
        ys[d * WINDOW + last : (d + 1) * WINDOW] = 0
    for q in range(first, last):
        for d in range(y.shape[1]):
            ys[_i(d * WINDOW + q)] = y[_i(start + STEPS - 1 - q), _i(d)]


@kernel
def _add_columns(dy, gy, start, m):
    first, last = _window(start, m)
    for q in range(first, last):
        for d in range(dy.shape[1]):
            dy[_i(start + STEPS - 1 - q), _i(d)] += 2 * gy[_i(d * WINDOW + q)]


@kernel
def _extent(strip, n, m):
    """(first row, number of blocks) of a strip."""
    top = strip * LANES
    return top, (m + min(LANES, n - top) - 1 + STEPS - 1) // STEPS


@kernel
def _outside(start, top, low, high):
    """Whether no cell of a block, nor a flux that leaves one, lies in the band."""
    return start + STEPS + 1 - top < low or start - top - 2 * LANES > high


@kernel
def _block_costs(u, xs, ys, y, cost, area, scale):
    """Costs of a block, fused from embeddings unless D = 0, which stands for a cost matrix; returns
    how many of those are infinite or NaN."""
    if xs.size:
        _load_columns(ys, y, area[0], area[3])
        _costs(u, xs, ys, scale)
        return 0
    return _read_costs(u, cost, area, scale)


@numba.njit(**OPTIONS, nogil=True, cache=True)
def forward_strips(problem, counter, progress, below, state, value):
    """Strip after strip, as many as this thread gets to, each waiting for the one above, which
    was taken before it. A thread that starts late, or shares its core, takes fewer.

    problem: x (N, T, D), y (N, S, D), cost (N, T, S), real lengths, limits of the bands, scale.
    below (N, strips, S): H of the last row of each strip. state (N, strips, blocks, 2, LANES): H
    and V as they enter a block. value (N, strips): what each strip adds, in float64; NaN where a
    given cost is infinite: that is the work of numba_absolute.py.
    """
    x, y, cost, n_real, m_real, band, scale = problem
    batch, strips = value.shape
    dtype, channels = below.dtype, -(-x.shape[2] // CHANNELS) * CHANNELS
    one = dtype.type(1)
    xs, ys = np.zeros(channels * LANES, dtype), np.zeros(channels * WINDOW, dtype)
    u, up = np.empty((STEPS, LANES), dtype), np.empty((2, LANES + 1), dtype)
    v, sm = np.empty(LANES, dtype), np.empty(LANES, dtype)
    while True:
        index = take_number(counter)
        if index >= batch * strips:
            break
        b, strip = index % batch, index // batch
        n, m, low, high = n_real[b], m_real[b], band[b, 0], band[b, 1]
        if strip * LANES >= n or m == 0:
            continue
        top, blocks = _extent(strip, n, m)
        blocks_above = _extent(strip - 1, n, m)[1]
        _load_rows(xs, x[b], top, n)
        total, odd = 0.0, 0
        up[:], v[:] = 0, 0
        for block in range(blocks):
            area = (block * STEPS, top, n, m, low, high)
            if strip > 0:
                wait_for(progress, index - batch, min(block + 2, blocks_above))
            if state.shape[2]:
                state[b, strip, block, 0] = up[0, 1:]
                state[b, strip, block, 1] = v
            if not _outside(block * STEPS, top, low, high):
                odd += _block_costs(u, xs, ys, y[b], cost[b], area, scale)
                above = below[b, max(strip - 1, 0)]
                total += _forward_block(u, up, v, sm, above, below[b, strip], area, one)
            store_release(progress, index, block + 1)
        value[b, strip] = total if odd == 0 else np.nan


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_strips(problem, counter, progress, below, state, grad, flow, dx, dy, dcost):
    """The same, last strip first. flow (N, strips, S): flux from each strip to the one above."""
    x, y, cost, n_real, m_real, band, scale = problem
    batch, strips = flow.shape[:2]
    dtype, dims = below.dtype, x.shape[2]
    channels = -(-dims // CHANNELS) * CHANNELS
    one = dtype.type(1)
    xs, gx = np.zeros(channels * LANES, dtype), np.zeros(channels * LANES, dtype)
    ys, gy = np.zeros(channels * WINDOW, dtype), np.zeros(channels * WINDOW, dtype)
    skewed = np.empty(LANES * WINDOW, dtype)
    u, e = np.empty((STEPS, LANES), dtype), np.empty((STEPS, LANES), dtype)
    p, up = np.empty((STEPS, 3 * LANES), dtype), np.empty((2, LANES + 1), dtype)
    v, left = np.empty(LANES, dtype), np.empty(LANES)
    lift, owed = np.empty(LANES + 1), np.empty(LANES)
    while True:
        index = take_number(counter)
        if index >= batch * strips:
            break
        b, strip = index % batch, strips - 1 - index // batch
        n, m, low, high = n_real[b], m_real[b], band[b, 0], band[b, 1]
        if strip * LANES >= n or m == 0:
            continue
        top, blocks = _extent(strip, n, m)
        rows = min(LANES, n - top)
        blocks_below = _extent(strip + 1, n, m)[1]
        _load_rows(xs, x[b], top, n)
        gx[:] = 0
        left[:], lift[:], owed[:] = 0, 0, 0
        for block in range(blocks - 1, -1, -1):
            area = (block * STEPS, top, n, m, low, high)
            if top + LANES < n:  # the strip below must have finished the block before this one
                wait_for(progress, index - batch, blocks_below - max(block - 1, 0))
            if not _outside(block * STEPS, top, low, high):
                up[0, 1:] = state[b, strip, block, 0]
                v[:] = state[b, strip, block, 1]
                _block_costs(u, xs, ys, y[b], cost[b], area, scale)
                _probabilities(u, p, up, v, below[b, max(strip - 1, 0)], area, one)
                from_below, to_above = flow[b, min(strip + 1, strips - 1)], flow[b, strip]
                _expectations(e, p, left, lift, owed, grad[b], from_below, to_above, area)
                if dims:
                    _row_gradients(e, xs, ys, gx)
                    _column_gradients(e, skewed, xs, ys, gy)
                    _add_columns(dy[b], gy, block * STEPS, m)
                else:
                    _write_costs(e, dcost[b], area)
            store_release(progress, index, blocks - block)
        for r in range(rows):
            for d in range(dims):
                dx[b, top + r, d] = 2 * gx[d * LANES + r]
