"""Costs of a block, and gradients of embeddings or given costs from the block's E."""

import numpy as np

from fastseq.ops.soft_dtw.numba_math import kernel
from fastseq.ops.soft_dtw.numba_wave import LANES, STEPS, lane_range

WINDOW = STEPS + LANES + 16  # columns that a block reads, and a stride that is no power of 2
CHANNELS = 8  # D is padded with zeros to a multiple of this
_i = np.uintp


@kernel
def _costs(u, xs, ys, bs, scale):
    """u[k, lane] = scale * (|x - y|^2 + bias of the column) of a block by direct differences.

    Flat arrays with constant strides, two steps and eight channels at a time: LLVM keeps them in
    registers, and most of the time is spent here. One sum per eight channels rounds less than one
    chain over all channels.
    """
    zero = scale - scale
    out = u.reshape(STEPS * LANES)
    for k in range(0, STEPS, 2):
        row, shift = k * LANES, STEPS - 1 - k
        for r in range(LANES):
            out[_i(row + r)] = bs[_i(shift + r)]
            out[_i(row + LANES + r)] = bs[_i(shift + r - 1)]
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
    """The same from a cost matrix (T, S); returns how many costs are infinite or NaN."""
    start, top, n, m, low, high = area
    rows, odd = min(LANES, n - top), 0
    for k in range(STEPS):
        first, last = lane_range(start + k, top, rows, m, low, high)
        for r in range(first, last):
            u[k, r] = cost[top + r, start + k - r] * scale
        for r in range(first, last):
            odd += 0 if abs(u[_i(k), _i(r)]) < np.inf else 1
    return odd


@kernel
def write_costs(e, dcost, area):
    """The gradient of a cost matrix is E."""
    start, top, n, m, low, high = area
    for k in range(STEPS):
        first, last = lane_range(start + k, top, min(LANES, n - top), m, low, high)
        for r in range(first, last):
            dcost[top + r, start + k - r] = e[k, r]


@kernel
def row_gradients(e, xs, ys, gx):
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
def column_gradients(e, skewed, xs, ys, gy):
    """gy[d, q] = sum over the strip's rows of E (y - x); skewed[r, q] holds E by columns."""
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
def load_rows(xs, x, top, n):
    """xs[d, r] = x[top + r, d]; 0 in the padding, whatever it contains."""
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
    """ys[d, q] = y[start + STEPS - 1 - q, d]: lanes further right read columns further left."""
    first, last = _window(start, m)
    for d in range(y.shape[1]):
        ys[d * WINDOW : d * WINDOW + first] = 0
        ys[d * WINDOW + last : (d + 1) * WINDOW] = 0
    for q in range(first, last):
        for d in range(y.shape[1]):
            ys[_i(d * WINDOW + q)] = y[_i(start + STEPS - 1 - q), _i(d)]


@kernel
def add_columns(dy, gy, start, m):
    first, last = _window(start, m)
    for q in range(first, last):
        for d in range(dy.shape[1]):
            dy[_i(start + STEPS - 1 - q), _i(d)] += 2 * gy[_i(d * WINDOW + q)]


@kernel
def _load_bias(bs, bias, start, m):
    """bs[q] = bias[start + STEPS - 1 - q], in the order of `_load_columns`; without a bias, of
    size 0, bs stays 0."""
    if bias.size:
        first, last = _window(start, m)
        bs[:] = 0
        for q in range(first, last):
            bs[_i(q)] = bias[_i(start + STEPS - 1 - q)]


@kernel
def add_bias_gradients(dbias, skewed, start, m):
    """dbias[column] += sum over the strip's rows of E; skewed: see `column_gradients`."""
    first, last = _window(start, m)
    for q in range(first, last):
        total = dbias[start + STEPS - 1 - q]
        for r in range(LANES):
            total += skewed[_i(r * WINDOW + q)]
        dbias[start + STEPS - 1 - q] = total


@kernel
def block_costs(u, xs, ys, bs, y, cost, bias, area, scale):
    """Costs of a block, computed from embeddings, or read from a cost matrix if D = 0; returns how
    many of the latter are infinite or NaN."""
    if xs.size:
        _load_columns(ys, y, area[0], area[3])
        _load_bias(bs, bias, area[0], area[3])
        _costs(u, xs, ys, bs, scale)
        return 0
    return _read_costs(u, cost, area, scale)
