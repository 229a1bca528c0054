"""Kernels of the metrics over pairs of videos and over nearest frames.

Distances are exact: differences of float64, squared and summed channel by channel, so they equal
scipy's cdist bit for bit, and so do ties. COLUMNS distances are computed at a time, which LLVM
turns into vectors. numba's cache checks this file alone, so all functions that it calls are here.
"""

import numba
import numpy as np

COLUMNS = 16  # frames of a tile
ROWS = 16  # frames whose distances to a whole video are kept; even
CHANNELS = 4  # processed at a time; the rest one by one
DIAGONAL, UP, LEFT, UP_OR_LEFT = range(4)

_kernel = numba.njit(nogil=True)
# Signed indices may be negative, and the check for that keeps LLVM from vectorising a loop.
_i = np.uintp


@numba.njit(nogil=True, cache=True)
def tiles_of(x):
    """Tiles (tiles, E * COLUMNS) of the frames of x (n, E), channels first; padded with zeros."""
    frames, channels = x.shape
    tiles = np.zeros(((frames + COLUMNS - 1) // COLUMNS, channels * COLUMNS))
    for frame in range(frames):
        for channel in range(channels):
            tiles[frame // COLUMNS, channel * COLUMNS + frame % COLUMNS] = x[frame, channel]
    return tiles


@_kernel
def _two_rows(first, second, tile, above, below):
    """above, below (COLUMNS,): squared distances of two frames (E,) to the frames of a tile."""
    channels = len(first)
    for q in range(COLUMNS):
        above[_i(q)] = 0.0
        below[_i(q)] = 0.0
    whole = channels // CHANNELS * CHANNELS
    for channel in range(0, whole, CHANNELS):
        at = channel * COLUMNS
        a0, a1 = first[_i(channel)], first[_i(channel + 1)]
        a2, a3 = first[_i(channel + 2)], first[_i(channel + 3)]
        b0, b1 = second[_i(channel)], second[_i(channel + 1)]
        b2, b3 = second[_i(channel + 2)], second[_i(channel + 3)]
        for q in range(COLUMNS):
            y0, y1 = tile[_i(at + q)], tile[_i(at + COLUMNS + q)]
            y2, y3 = tile[_i(at + 2 * COLUMNS + q)], tile[_i(at + 3 * COLUMNS + q)]
            a, b = above[_i(q)], below[_i(q)]
            a += (a0 - y0) * (a0 - y0)
            a += (a1 - y1) * (a1 - y1)
            a += (a2 - y2) * (a2 - y2)
            a += (a3 - y3) * (a3 - y3)
            b += (b0 - y0) * (b0 - y0)
            b += (b1 - y1) * (b1 - y1)
            b += (b2 - y2) * (b2 - y2)
            b += (b3 - y3) * (b3 - y3)
            above[_i(q)] = a
            below[_i(q)] = b
    for channel in range(whole, channels):
        at = channel * COLUMNS
        a0, b0 = first[_i(channel)], second[_i(channel)]
        for q in range(COLUMNS):
            y0 = tile[_i(at + q)]
            above[_i(q)] += (a0 - y0) * (a0 - y0)
            below[_i(q)] += (b0 - y0) * (b0 - y0)


@_kernel
def _distances(x, begin, end, tiles, between):
    """between[:end - begin, :]: distances of rows begin to end - 1 of x to all tiles."""
    for tile in range(len(tiles)):
        at = tile * COLUMNS
        for row in range(begin, end, 2):
            other = min(row + 1, end - 1)
            # An odd last row is computed twice and written twice.
            _two_rows(
                x[row],
                x[other],
                tiles[tile],
                between[row - begin, at : at + COLUMNS],
                between[row - begin + 1, at : at + COLUMNS],
            )


@_kernel
def _steps(cost, first, r, codes):
    """From R of the row above (m,) to R of this row, in place, and the step into each cell.

    UP_OR_LEFT: both cost the same and less than the diagonal.
    """
    diagonal, left = np.inf, np.inf
    if first:
        diagonal = 0.0
    for j in range(len(r)):
        up = r[_i(j)]
        side = up if up < left else left
        code = UP if up < left else LEFT
        code = UP_OR_LEFT if up == left else code
        code = DIAGONAL if diagonal <= side else code
        best = diagonal if diagonal <= side else side
        codes[_i(j)] = code
        left = cost[_i(j)] + best
        r[_i(j)] = left
        diagonal = up


@_kernel
def _matches(codes, swapped, position, other, matched):
    """The mean error of the frames of one video along the cheapest path, and their partners.

    codes (n, m): the steps; swapped: the frames are the columns, not the rows. On a tie the
    diagonal step is taken first, then the step in the frames. position (frames), other (partners):
    phase positions. Fills matched (frames,): the middle partner of each frame.
    """
    i, j = codes.shape[0] - 1, codes.shape[1] - 1
    tied = LEFT if swapped else UP
    frame, partner = (j, i) if swapped else (i, j)
    last, error, mean = partner, abs(other[partner] - position[frame]), 0.0
    while i or j:
        code = codes[i, j]
        if code == UP_OR_LEFT:
            code = tied
        i -= code != LEFT
        j -= code != UP
        now, next_partner = (j, i) if swapped else (i, j)
        if now != frame:
            mean += error / (last - partner + 1)
            matched[frame] = (partner + last) // 2
            last, error = next_partner, 0.0
        frame, partner = now, next_partner
        error += abs(other[partner] - position[frame])
    mean += error / (last - partner + 1)
    matched[frame] = (partner + last) // 2
    return mean / len(position)


@_kernel
def _tau(nearest, size):
    """Kendall's tau-b of 0, 1, 2, ... and nearest (n,), values below size; NaN if undefined."""
    n = len(nearest)
    discordant, tied = 0, 0
    for i in range(n):
        here = nearest[_i(i)]
        for j in range(i):
            discordant += nearest[_i(j)] > here
    counts = np.zeros(size, np.int64)
    for value in nearest:
        tied += counts[value]
        counts[value] += 1
    pairs = n * (n - 1) // 2
    if tied == pairs:
        return np.nan
    tau = (pairs - tied - 2 * discordant) / np.sqrt(pairs) / np.sqrt(pairs - tied)
    return min(1.0, max(-1.0, tau))


@_kernel
def _update_nearest(row, i, step, best, nearest, nearest_row):
    """The nearest of every step-th column to row i, and row i as the nearest to these columns."""
    least, at = np.inf, 0
    for k in range(len(best)):
        d = row[k * step]
        if d < least:
            least, at = d, k
        if d < best[k]:
            best[k] = d
            nearest_row[k] = i
    nearest[i] = at


@numba.njit(nogil=True, cache=True)
def compare_pairs(x, starts, position, options, i, j_begin, j_end, events, out, matched):
    """Compare video i with the videos j_begin to j_end - 1, in both directions.

    Args:
        x: float64 (F, E), frames of all videos, one after the other; starts: int64 (V + 1,).
        position: float64 (F,), phase positions; NaN for a video without.
        options: whether tau is wanted, its stride, whether the alignment is.
        events: int64 (V, P), rows of the events, -1 = none.
        out: tau, nearest and DTW errors, float64 (3, j_end - j_begin, 2), with NaN in it: from i
            to j and from j to i; only the defined values are written.
        matched: int64 (shared events, 4), in the order of pairs and phases: the rows that events
            are matched to, by nearest frame and by DTW from i to j, then the same from j to i.
    """
    tau, stride, align = options
    m = starts[i + 1] - starts[i]
    here = x[starts[i] : starts[i + 1]]
    there = position[starts[i] : starts[i + 1]]
    longest = 0
    for j in range(j_begin, j_end):
        longest = max(longest, starts[j + 1] - starts[j])
    between = np.empty((ROWS, (m + COLUMNS - 1) // COLUMNS * COLUMNS))
    codes = np.empty((longest if align else 0, m), np.uint8)
    r, best, best_strided = np.empty(m), np.empty(m), np.empty(m)
    nearest_i, nearest_i_strided = np.zeros(m, np.int64), np.zeros(m, np.int64)
    nearest_j, nearest_j_strided = np.zeros(longest, np.int64), np.zeros(longest, np.int64)
    dtw_i, dtw_j = np.zeros(m, np.int64), np.zeros(longest, np.int64)
    step, tiles, event = 0, np.empty((0, 0)), 0
    for j in range(j_begin, j_end):
        aligned = align and not np.isnan(there[0]) and not np.isnan(position[starts[j]])
        if not aligned and not tau:
            continue
        # Without an alignment only every stride-th frame counts.
        now = 1 if aligned else stride
        if now != step:
            step = now
            tiles = tiles_of(here[::step])
        frames = x[starts[j] : starts[j + 1] : step]
        n, columns = len(frames), (m + step - 1) // step
        tau_step = stride // step
        n_tau, m_tau = (n + tau_step - 1) // tau_step, (columns + tau_step - 1) // tau_step
        best[:], best_strided[:], r[:] = np.inf, np.inf, np.inf
        for begin in range(0, n, ROWS):
            end = min(begin + ROWS, n)
            _distances(frames, begin, end, tiles, between)
            for row in range(begin, end):
                d = between[row - begin, :columns]
                if aligned:
                    _update_nearest(d, row, 1, best, nearest_j, nearest_i)
                    _steps(d, row == 0, r, codes[row])
                if tau and row % tau_step == 0:
                    _update_nearest(
                        d,
                        row // tau_step,
                        tau_step,
                        best_strided[:m_tau],
                        nearest_j_strided,
                        nearest_i_strided,
                    )
        at = j - j_begin
        if tau:
            out[0, at, 0] = _tau(nearest_i_strided[:m_tau], n_tau)
            out[0, at, 1] = _tau(nearest_j_strided[:n_tau], m_tau)
        if not aligned:
            continue
        other = position[starts[j] : starts[j + 1]]
        out[1, at, 0] = np.abs(other[nearest_i] - there).mean()
        out[1, at, 1] = np.abs(there[nearest_j[:n]] - other).mean()
        out[2, at, 0] = _matches(codes[:n], True, there, other, dtw_i)
        out[2, at, 1] = _matches(codes[:n], False, other, there, dtw_j)
        for phase in range(events.shape[1]):
            row_i, row_j = events[i, phase], events[j, phase]
            if row_i >= 0 and row_j >= 0:
                matched[event, 0], matched[event, 1] = nearest_i[row_i], dtw_i[row_i]
                matched[event, 2], matched[event, 3] = nearest_j[row_j], dtw_j[row_j]
                event += 1


@numba.njit(nogil=True, cache=True)
def nearest_frames(queries, tiles, owners, firsts, allowed, least, found):
    """The nearest frames of other videos for each of the queries (n, E), nearest first.

    tiles: those of all candidates, video after video; owners: int64 (tiles,), the video of
    each; firsts: int64 (tiles + 1,), the number of each tile's first candidate, then that of all;
    allowed: bool (V,), the videos that count. Fills least, float64 (n, K), with squared distances
    and found, int64 (n, K), with numbers of candidates, -1 where there are fewer. Of equal
    distances the first candidate comes first.
    """
    n, k = found.shape
    least[:], found[:] = np.inf, -1
    between = np.empty((2, COLUMNS))
    for tile in range(len(tiles)):
        if not allowed[owners[tile]]:
            continue
        begin = firsts[tile]
        frames = firsts[tile + 1] - begin
        for first in range(0, n, 2):
            second = min(first + 1, n - 1)
            _two_rows(queries[first], queries[second], tiles[tile], between[0], between[1])
            for query in range(first, second + 1):
                row = between[query - first]
                for q in range(frames):
                    d = row[q]
                    if d >= least[query, k - 1]:
                        continue
                    place = k - 1
                    while place > 0 and d < least[query, place - 1]:
                        least[query, place] = least[query, place - 1]
                        found[query, place] = found[query, place - 1]
                        place -= 1
                    least[query, place], found[query, place] = d, begin + q
