"""Kernels of the numba backend: one strip of 64 rows at a time, in blocks of 64 steps.

The state that enters a block is saved, so that the backward can recompute the block bit for bit.
The op's README, "How it is computed", has the recurrence and its letters.
"""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_costs import (
    CHANNELS,
    WINDOW,
    add_bias_gradients,
    add_columns,
    block_costs,
    column_gradients,
    load_rows,
    row_gradients,
    write_costs,
)
from fastseq.ops.soft_dtw.numba_math import (
    OPTIONS,
    kernel,
    of_pair,
    store_release,
    take_number,
    wait_for,
)
from fastseq.ops.soft_dtw.numba_wave import (
    LANES,
    STEPS,
    expectations,
    forward_block,
    free_end,
    probabilities,
    seeds_of,
)


@kernel
def _extent(strip, n, m):
    """(first row, number of blocks) of a strip."""
    top = strip * LANES
    return top, (m + min(LANES, n - top) - 1 + STEPS - 1) // STEPS


@kernel
def _outside(start, top, low, high):
    """Whether a block has no cell in the band and no flux leaves it."""
    return start + STEPS + 1 - top < low or start - top - 2 * LANES > high


@numba.njit(**OPTIONS, nogil=True, cache=True)
def forward_strips(problem, counter, progress, below, state, bottoms, shares, value):
    """Process strips until none is left for this thread. Each strip waits for the one above, which
    was started before it. A thread that starts late, or shares its core, processes fewer strips.

    problem: x (N, T, D), y (N, S, D), cost (N, T, S), bias (N, S), real lengths, limits of the
    bands, scale and penalty of each pair (None: no penalty), whether the begin is free, the
    soft minimum.
    below (N, strips, S): H of the last row of each strip. state (N, strips, blocks, 2, LANES): H
    and V as they enter a block. bottoms (N, strips, S) and shares (N, S): R of the last row of
    each strip, and the shares that `free_end` computes from it; (N, strips, 0) and (N, 0) for a
    fixed end. value (N, strips): contribution of each strip, in float64; NaN if a given cost is
    infinite: such pairs are left to numba_absolute.py.
    """
    x, y, cost, bias, n_real, m_real, band, scale, penalty, begin_free, kind = problem
    batch, strips = value.shape
    dtype, channels = below.dtype, -(-x.shape[2] // CHANNELS) * CHANNELS
    one = dtype.type(1)
    xs, ys = np.zeros(channels * LANES, dtype), np.zeros(channels * WINDOW, dtype)
    bs = np.zeros(WINDOW, dtype)
    u, up = np.empty((STEPS, LANES), dtype), np.empty((2, LANES + 1), dtype)
    v, sm = np.empty(LANES, dtype), np.empty(LANES, dtype)
    end_free = shares.shape[1] > 0
    waves = np.zeros((3, LANES + 1 if end_free else 0))
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
        load_rows(xs, x[b], top, n)
        steps = begin_free, of_pair(penalty, b), kind
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
                odd += block_costs(u, xs, ys, bs, y[b], cost[b], bias[b], area, scale[b])
                over = max(strip - 1, 0)
                totals = waves, bottoms[b, over], bottoms[b, strip]
                above, own = below[b, over], below[b, strip]
                total += forward_block(u, up, v, sm, totals, above, own, area, steps, one)
            store_release(progress, index, block + 1)
        if end_free and top + LANES >= n:
            total = free_end(bottoms[b, strip], max(0, n - 1 + low), m, shares[b])
        value[b, strip] = total if odd == 0 else np.nan


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_strips(problem, counter, progress, below, state, shares, grad, flow, *gradients):
    """The same, last strip first. flow (N, strips, S): flux from each strip to the one above.
    gradients: those of x, y, cost and bias."""
    dx, dy, dcost, dbias = gradients
    x, y, cost, bias, n_real, m_real, band, scale, penalty, begin_free, kind = problem
    batch, strips = flow.shape[:2]
    dtype, dims = below.dtype, x.shape[2]
    channels = -(-dims // CHANNELS) * CHANNELS
    one = dtype.type(1)
    xs, gx = np.zeros(channels * LANES, dtype), np.zeros(channels * LANES, dtype)
    ys, gy = np.zeros(channels * WINDOW, dtype), np.zeros(channels * WINDOW, dtype)
    bs = np.zeros(WINDOW, dtype)
    skewed = np.empty(LANES * WINDOW, dtype)
    u, e = np.empty((STEPS, LANES), dtype), np.empty((STEPS, LANES), dtype)
    p, up = np.empty((STEPS, 3 * LANES), dtype), np.empty((2, LANES + 1), dtype)
    v, left = np.empty(LANES, dtype), np.empty(LANES)
    lift, owed = np.empty(LANES + 1), np.empty(LANES)
    seeds = np.empty(shares.shape[1])
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
        load_rows(xs, x[b], top, n)
        steps = begin_free, of_pair(penalty, b), kind
        if shares.shape[1] > 0 and top + LANES >= n:
            seeds_of(shares[b], m, grad[b], seeds)
        gx[:] = 0
        left[:], lift[:], owed[:] = 0, 0, 0
        for block in range(blocks - 1, -1, -1):
            area = (block * STEPS, top, n, m, low, high)
            if top + LANES < n:  # the strip below must have finished the block before this one
                wait_for(progress, index - batch, blocks_below - max(block - 1, 0))
            if not _outside(block * STEPS, top, low, high):
                up[0, 1:] = state[b, strip, block, 0]
                v[:] = state[b, strip, block, 1]
                block_costs(u, xs, ys, bs, y[b], cost[b], bias[b], area, scale[b])
                probabilities(u, p, up, v, below[b, max(strip - 1, 0)], area, steps, one)
                from_below, to_above = flow[b, min(strip + 1, strips - 1)], flow[b, strip]
                expectations(e, p, left, lift, owed, grad[b], seeds, from_below, to_above, area)
                if dims:
                    row_gradients(e, xs, ys, gx)
                    column_gradients(e, skewed, xs, ys, gy)
                    add_columns(dy[b], gy, block * STEPS, m)
                    if dbias.size:
                        add_bias_gradients(dbias[b], skewed, block * STEPS, m)
                else:
                    write_costs(e, dcost[b], area)
            store_release(progress, index, blocks - block)
        for r in range(rows):
            for d in range(dims):
                dx[b, top + r, d] = 2 * gx[d * LANES + r]
