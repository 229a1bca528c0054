"""Kernels of the numba backend: one strip of 64 rows at a time, as a wave of 64 lanes.

Lane r is row r of the strip; at step s it holds column s - r. So all cells of a step are
independent, lie next to each other in memory, and need only what the step before left. A strip is
walked in blocks of 64 steps; what enters a block is saved, so that the backward can recompute it
bit for bit. op README, "How it is computed", has the recurrence and its letters.
"""

import math
import sys

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

LANES = 64  # rows of a strip
STEPS = 64  # steps of a block; at least LANES - 1, see `_wait`
WINDOW = STEPS + LANES + 16  # columns that a block reads, and a stride that is no power of 2
ABSENT = np.float32(1e30)  # the value of a predecessor that is not there: weight exactly 0
# Fused multiply-add, but no reordering: results are repeatable. Division without a check for 0.
_OPTIONS = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}
_kernel = numba.njit(**_OPTIONS)

_ONE, _HALF, _TWO = np.float32(1), np.float32(0.5), np.float32(2)
_UNDERFLOW = np.float32(-125)
# Chebyshev fits: 2^f on [-1/2, 1/2], error 2e-9; log2(1 + z) / z on [-1/4, 1/2], error 4e-8.
_E1, _E2, _E3 = np.float32(6.93147207e-01), np.float32(2.40226512e-01), np.float32(5.55032721e-02)
_E4, _E5, _E6 = np.float32(9.61802560e-03), np.float32(1.34004322e-03), np.float32(1.54697320e-04)
_L0, _L1, _L2 = np.float32(1.44269503), np.float32(-0.72134847), np.float32(0.48090223)
_L3, _L4, _L5 = np.float32(-0.36057657), np.float32(0.28818633), np.float32(-0.2427019)
_L6, _L7, _L8 = np.float32(0.21635856), np.float32(-0.17444378), np.float32(0.0782798)


@intrinsic
def _float_of_bits(typingctx, bits):
    """The float32 that an int32's bits are."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def _load_acquire(typingctx, array, index):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(_element(context, builder, signature, args), "acquire", 8)

    return types.int64(array, index), codegen


@intrinsic
def _store_release(typingctx, array, index, value):
    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], _element(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(array, index, types.int64), codegen


def _element(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


def _exp2(x):
    raise NotImplementedError


@overload(_exp2)
def _exp2_impl(x):
    """2^x for x <= 0."""
    if x == types.float64:
        return lambda x: np.exp2(x)

    def fp32(x):
        n = np.floor(x + _HALF)
        f = x - n
        p = _E6
        p = p * f + _E5
        p = p * f + _E4
        p = p * f + _E3
        p = p * f + _E2
        p = p * f + _E1
        p = p * f + _ONE
        n = n if n > _UNDERFLOW else _UNDERFLOW
        scale = _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))
        return p * scale if x > _UNDERFLOW else (x - x)  # 0, or NaN of NaN

    return fp32


def _log2(s):
    raise NotImplementedError


@overload(_log2)
def _log2_impl(s):
    """log2 of a number from 1 to 3."""
    if s == types.float64:
        return lambda s: math.log2(s)

    def fp32(s):
        high = s > np.float32(1.5)
        z = (s * _HALF if high else s) - _ONE
        p = _L8
        p = p * z + _L7
        p = p * z + _L6
        p = p * z + _L5
        p = p * z + _L4
        p = p * z + _L3
        p = p * z + _L2
        p = p * z + _L1
        p = p * z + _L0
        return p * z + (_ONE if high else _ONE - _ONE)

    return fp32


if sys.platform == "win32":

    @numba.njit
    def _sched_yield():
        return 0

else:
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())


# Signed indices may be negative, and the check for it keeps LLVM from vectorising a loop.
_i = np.uintp


@numba.njit(nogil=True)
def _wait(progress, strip, wanted):
    """Until the thread that works on a strip has finished so many of its blocks."""
    looks = 0
    while _load_acquire(progress, strip) < wanted:
        looks += 1
        if looks > 500:
            _sched_yield()


@_kernel
def _middle(x, y, zero):
    small, large = (x, y) if x < y else (y, x)
    inner = small if small > zero else zero
    return inner if inner < large else large


@_kernel
def _weigh(x, y, one):
    """(least, e_middle, e_most, their sum with 1) of the scores 0, x (up) and y (left).

    e = 2^(least - score): one of the three is exactly 1, so two exps serve.
    """
    zero = one - one
    small, large = (x, y) if x < y else (y, x)
    least = small if small < zero else zero
    most = large if large > zero else zero
    a, b = _exp2(least - _middle(x, y, zero)), _exp2(least - most)
    return least, a, b, one + a + b


@_kernel
def _lane_range(s, top, rows, m, low, high):
    """Lanes [first, last) whose cell at step s is in the matrix and in the band.

    Lane r is at row top + r and column s - r, on the diagonal s - top - 2 r.
    """
    first = max(0, s - m + 1, -((high + top - s) // 2))
    last = min(rows, s + 1, (s - top - low) // 2 + 1)
    return first, last


@_kernel
def _costs(u, xs, ys, scale):
    """u[k, lane] = scale * |x - y|^2 of a block by direct differences."""
    dims = xs.shape[0]
    whole = dims - dims % 4
    for k in range(STEPS):
        row, shift = _i(k), STEPS - 1 - k
        for r in range(LANES):
            u[row, _i(r)] = 0
        for d in range(0, whole, 4):
            d0, d1, d2, d3 = _i(d), _i(d + 1), _i(d + 2), _i(d + 3)
            for r in range(LANES):
                i, q = _i(r), _i(shift + r)
                a, b = xs[d0, i] - ys[d0, q], xs[d1, i] - ys[d1, q]
                c, e = xs[d2, i] - ys[d2, q], xs[d3, i] - ys[d3, q]
                u[row, i] += (a * a + b * b) + (c * c + e * e)
        for d in range(whole, dims):
            for r in range(LANES):
                a = xs[_i(d), _i(r)] - ys[_i(d), _i(shift + r)]
                u[row, _i(r)] += a * a
        for r in range(LANES):
            u[row, _i(r)] *= scale


@_kernel
def _read_costs(u, cost, start, top, rows, m, low, high, scale):
    """The same from a cost matrix (N, M)."""
    for k in range(STEPS):
        first, last = _lane_range(start + k, top, rows, m, low, high)
        for r in range(first, last):
            u[k, r] = cost[top + r, start + k - r] * scale


@_kernel
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


@_kernel
def _forward_block(u, up, v, sm, above, below, start, top, n, m, low, high, one):
    """One block: H and V of every cell in turn; returns what it adds to the value, in float64.

    up[k % 2, r]: H above lane r at step k; v[r]: V left of it. ``above`` and ``below``: H of the
    last row of the strip above, and of this one.
    """
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
            least, _, _, total = _weigh(x, y, one)
            total = u[row, i] + (least - _log2(total))
            sm[i] = total
            v[i] = total - x
            up[then, _i(r + 1)] = total - y
        value += _value_of_step(s, first, last, top, n, m, up, then, v, sm)
        if last == LANES:
            below[s - LANES + 1] = up[then, LANES]
    return value


@_kernel
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


@_kernel
def _probabilities(u, p, up, v, above, start, top, n, m, low, high, one):
    """The block again, keeping what each cell owes to its diagonal, upper and left neighbour:
    p[k, r], p[k, LANES + r] and p[k, 2 LANES + r]."""
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
            least, e_middle, e_most, total = _weigh(x, y, one)
            sm = u[row, i] + (least - _log2(total))
            v[i] = sm - x
            up[then, _i(r + 1)] = sm - y
            middle, share = _middle(x, y, zero), one / total
            diagonal = one if zero == least else e_middle if zero == middle else e_most
            p[row, i] = share * diagonal
            p[row, _i(LANES + r)] = share * (
                one if x == least else e_middle if x == middle else e_most
            )
            p[row, _i(2 * LANES + r)] = share * (
                one if y == least else e_middle if y == middle else e_most
            )


@_kernel
def _expectations(e, p, left, up, owed, seed, below, above, start, top, n, m, low, high):
    """E of a block, last step first; cells outside get 0. ``seed``: E of the very last cell.

    Flux on its way: left[r] to the cell on the left, up[r] to the row above at the column of the
    step, owed[r] from the diagonal, which the row above gets one step later. ``below`` and
    ``above``: flux between strips, per column.
    """
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
            left[i] = got * p[row, _i(2 * LANES + r)]
            up[i] = got * p[row, _i(LANES + r)] + owed[i]
            owed[i] = got * p[row, i]
        for r in range(max(first, last), LANES):
            e[k, r], left[r], up[r], owed[r] = 0, 0, owed[r], 0
        if s < m:
            above[s] = up[0]


@_kernel
def _row_gradients(e, xs, ys, gx):
    """gx[d, r] += sum over the block's columns of E (x - y)."""
    for k in range(0, STEPS, 4):
        k0, k1, k2, k3 = _i(k), _i(k + 1), _i(k + 2), _i(k + 3)
        shift = STEPS - 1 - k
        for d in range(xs.shape[0]):
            c = _i(d)
            for r in range(LANES):
                i = _i(r)
                x = xs[c, i]
                gx[c, i] += (
                    e[k0, i] * (x - ys[c, _i(shift + r)])
                    + e[k1, i] * (x - ys[c, _i(shift - 1 + r)])
                ) + (
                    e[k2, i] * (x - ys[c, _i(shift - 2 + r)])
                    + e[k3, i] * (x - ys[c, _i(shift - 3 + r)])
                )


@_kernel
def _column_gradients(e, skewed, xs, ys, gy):
    """gy[d, q] = sum over the strip's rows of E (y - x); skewed[r, q] takes E by columns."""
    skewed[:] = 0
    gy[:] = 0
    for k in range(STEPS):
        for r in range(LANES):
            skewed[_i(r), _i(STEPS - 1 - k + r)] = e[_i(k), _i(r)]
    for r in range(0, LANES, 4):
        r0, r1, r2, r3 = _i(r), _i(r + 1), _i(r + 2), _i(r + 3)
        for d in range(xs.shape[0]):
            c = _i(d)
            x0, x1, x2, x3 = xs[c, r0], xs[c, r1], xs[c, r2], xs[c, r3]
            for q in range(r, r + STEPS + 3):
                j = _i(q)
                y = ys[c, j]
                gy[c, j] += (skewed[r0, j] * (y - x0) + skewed[r1, j] * (y - x1)) + (
                    skewed[r2, j] * (y - x2) + skewed[r3, j] * (y - x3)
                )


@_kernel
def _load_rows(xs, x, top, n):
    """xs[d, r] = x[top + r, d]; 0 in the padding, whatever it holds."""
    xs[:] = 0
    for r in range(min(LANES, n - top)):
        for d in range(xs.shape[0]):
            xs[_i(d), _i(r)] = x[_i(top + r), _i(d)]


@_kernel
def _window(start, m):
    """Places q of a block's window whose column start + STEPS - 1 - q exists."""
    return max(0, start + STEPS - m), min(STEPS + LANES - 1, start + STEPS)


@_kernel
def _load_columns(ys, y, start, m):
    """ys[d, q] = y[start + STEPS - 1 - q, d]: lanes to the right read columns to the left."""
    first, last = _window(start, m)
    ys[:, :first] = 0
    ys[:, last:] = 0
    for q in range(first, last):
        for d in range(ys.shape[0]):
            ys[_i(d), _i(q)] = y[_i(start + STEPS - 1 - q), _i(d)]


@_kernel
def _add_columns(dy, gy, start, m):
    first, last = _window(start, m)
    for q in range(first, last):
        for d in range(dy.shape[1]):
            dy[_i(start + STEPS - 1 - q), _i(d)] += 2 * gy[_i(d), _i(q)]


@_kernel
def _extent(strip, n, m):
    """(first row, number of blocks) of a strip."""
    top = strip * LANES
    return top, (m + min(LANES, n - top) - 1 + STEPS - 1) // STEPS


@_kernel
def _outside(start, top, low, high):
    """Whether no cell of a block, nor a flux that leaves one, lies in the band."""
    return start + STEPS + 1 - top < low or start - top - 2 * LANES > high


@numba.njit(**_OPTIONS, nogil=True, cache=True)
def forward_strips(
    x, y, cost, n_real, m_real, band, scale, worker, workers, progress, below, state, value
):
    """The strips of one worker, every ``workers``-th of all, each waiting for the one above.

    below (B, strips, M): H of the last row of each strip. state (B, strips, blocks, 2, LANES): H
    and V as they enter a block. value (B, strips): what each strip adds, in float64.
    """
    batch, strips = value.shape
    one = below.dtype.type(1)
    fused = x.shape[2] > 0
    xs = np.empty((x.shape[2], LANES), below.dtype)
    ys = np.empty((x.shape[2], WINDOW), below.dtype)
    u = np.empty((STEPS, LANES), below.dtype)
    up, v, sm = np.empty((2, LANES + 1), below.dtype), np.empty(LANES, below.dtype), u[0].copy()
    for index in range(worker, batch * strips, workers):
        b, strip = index % batch, index // batch
        n, m, low, high = n_real[b], m_real[b], band[b, 0], band[b, 1]
        if strip * LANES >= n or m == 0:
            continue
        top, blocks = _extent(strip, n, m)
        if fused:
            _load_rows(xs, x[b], top, n)
        total = 0.0
        up[:], v[:] = 0, 0
        for block in range(blocks):
            start = block * STEPS
            if strip > 0:
                _wait(
                    progress, (strip - 1) * batch + b, min(block + 2, _extent(strip - 1, n, m)[1])
                )
            if state.shape[2]:
                state[b, strip, block, 0] = up[0, 1:]
                state[b, strip, block, 1] = v
            if not _outside(start, top, low, high):
                if fused:
                    _load_columns(ys, y[b], start, m)
                    _costs(u, xs, ys, scale)
                else:
                    rows = min(LANES, n - top)
                    _read_costs(u, cost[b], start, top, rows, m, low, high, scale)
                total += _forward_block(
                    u,
                    up,
                    v,
                    sm,
                    below[b, max(strip - 1, 0)],
                    below[b, strip],
                    start,
                    top,
                    n,
                    m,
                    low,
                    high,
                    one,
                )
            _store_release(progress, strip * batch + b, block + 1)
        value[b, strip] = total


@numba.njit(**_OPTIONS, nogil=True, cache=True)
def backward_strips(
    x,
    y,
    cost,
    n_real,
    m_real,
    band,
    scale,
    grad,
    worker,
    workers,
    progress,
    below,
    state,
    flow,
    dx,
    dy,
    dcost,
):
    """The same, last strip first. flow (B, strips, M): flux from each strip to the one above."""
    batch, strips = flow.shape[:2]
    dims = x.shape[2]
    one = below.dtype.type(1)
    xs, gx = np.empty((dims, LANES), below.dtype), np.empty((dims, LANES), below.dtype)
    ys, gy = np.empty((dims, WINDOW), below.dtype), np.empty((dims, WINDOW), below.dtype)
    skewed = np.empty((LANES, WINDOW), below.dtype)
    u, e = np.empty((STEPS, LANES), below.dtype), np.empty((STEPS, LANES), below.dtype)
    p = np.empty((STEPS, 3 * LANES), below.dtype)
    up, v = np.empty((2, LANES + 1), below.dtype), np.empty(LANES, below.dtype)
    left, lift, owed = (
        np.empty(LANES, below.dtype),
        np.empty(LANES + 1, below.dtype),
        np.empty(LANES, below.dtype),
    )
    for index in range(worker, batch * strips, workers):
        b, strip = index % batch, strips - 1 - index // batch
        n, m, low, high = n_real[b], m_real[b], band[b, 0], band[b, 1]
        if strip * LANES >= n or m == 0:
            continue
        top, blocks = _extent(strip, n, m)
        rows = min(LANES, n - top)
        last_strip = top + LANES >= n
        if dims:
            _load_rows(xs, x[b], top, n)
            gx[:] = 0
        left[:], lift[:], owed[:] = 0, 0, 0
        for block in range(blocks - 1, -1, -1):
            start = block * STEPS
            if not last_strip:
                # Counted from the end: the strip below must have done its block before this one.
                done = _extent(strip + 1, n, m)[1] - max(block - 1, 0)
                _wait(progress, (strip + 1) * batch + b, done)
            if not _outside(start, top, low, high):
                up[0, 1:] = state[b, strip, block, 0]
                v[:] = state[b, strip, block, 1]
                if dims:
                    _load_columns(ys, y[b], start, m)
                    _costs(u, xs, ys, scale)
                else:
                    _read_costs(u, cost[b], start, top, rows, m, low, high, scale)
                _probabilities(
                    u,
                    p,
                    up,
                    v,
                    below[b, max(strip - 1, 0)],
                    start,
                    top,
                    n,
                    m,
                    low,
                    high,
                    one,
                )
                _expectations(
                    e,
                    p,
                    left,
                    lift,
                    owed,
                    grad[b],
                    flow[b, min(strip + 1, strips - 1)],
                    flow[b, strip],
                    start,
                    top,
                    n,
                    m,
                    low,
                    high,
                )
                if dims:
                    _row_gradients(e, xs, ys, gx)
                    _column_gradients(e, skewed, xs, ys, gy)
                    _add_columns(dy[b], gy, start, m)
                else:
                    for k in range(STEPS):
                        first, last = _lane_range(start + k, top, rows, m, low, high)
                        for r in range(first, last):
                            dcost[b, top + r, start + k - r] = e[k, r]
            _store_release(progress, strip * batch + b, blocks - block)
        for r in range(rows):
            for d in range(dims):
                dx[b, top + r, d] = 2 * gx[d, r]
