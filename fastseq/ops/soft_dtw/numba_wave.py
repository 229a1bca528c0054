"""The recursion of the numba backend over one block: a wave of 64 lanes, forward and back.

Lane r is row r of the strip; at step s it is at column s - r. So all cells of a step are
independent, adjacent in memory, and depend on the previous steps only.
"""

import math

import numpy as np

from fastseq.ops.soft_dtw.numba_math import exp2, kernel, log2_1p, soften, warped

LANES = 64  # rows of a strip
STEPS = 64  # steps of a block; at least LANES - 1, for `wait_for`
ABSENT = np.float32(1e30)  # the score of a missing predecessor: weight exactly 0
# Signed indices may be negative, and the check for that keeps LLVM from vectorising a loop.
_i = np.uintp


@kernel
def lane_range(s, top, rows, m, low, high):
    """Lanes [first, last) whose cell at step s is in the matrix and in the band.

    Lane r is at row top + r and column s - r, on the diagonal s - top - 2 r.
    """
    first = max(0, s - m + 1, -((high + top - s) // 2))
    last = min(rows, s + 1, (s - top - low) // 2 + 1)
    return first, last


@kernel
def _edges(k, s, top, m, low, high, up, v, above):
    """Before step s: insert the state from above the strip, and the band's missing neighbours."""
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
def _begin_here(u, left, one):
    """(softmin, share of a path that begins here, share of the left neighbour) of a cell of row 0
    whose left neighbour has the score ``left`` (R itself); a path that begins here has score 0."""
    zero = one - one
    least = left if left < zero else zero
    begins, comes = exp2(least), exp2(least - left)
    share = one / (begins + comes)
    return u + least - log2_1p(begins if least < zero else comes), share * begins, share * comes


@kernel
def forward_block(u, up, v, sm, totals, above, below, area, steps, one):
    """One block: H and V of every cell in turn; returns its contribution to the value, in float64.

    up[k % 2, r]: H above lane r at step k; v[r]: V left of it. ``above`` and ``below``: H of the
    last row of the strip above, and of this one. ``area``: (first step, first row, real lengths,
    limits of the band). ``steps``: whether a path may begin anywhere in row 0, the penalty of a
    step that is not diagonal, None for none, and the soft minimum. ``totals``: see _add_up; empty
    where the end is fixed.
    """
    start, top, n, m, low, high = area
    begin_free, penalty, kind = steps
    rows = min(LANES, n - top)
    value = 0.0
    for k in range(STEPS):
        s = start + k
        first, last = lane_range(s, top, rows, m, low, high)
        if first >= last:
            continue
        _edges(k, s, top, m, low, high, up, v, above)
        row, now, then = _i(k), _i(k & 1), _i((k + 1) & 1)
        from_lane, to_lane = first, last
        if top == 0 and first == 0:  # row 0 has only its left neighbour
            from_lane = 1
            if s == 0:
                sm[0] = u[k, 0]
            elif begin_free:  # or a path that begins there: v is R itself
                sm[0], _, _ = _begin_here(u[k, 0], warped(v[0], penalty), one)
                up[then, 1] = sm[0] - v[0]
                v[0] = sm[0]
            else:
                up[then, 1] = sm[0] = warped(u[k, 0], penalty)
        if last == s + 1:  # column 0 has only its upper neighbour
            to_lane = s
            v[s] = u[k, s] if top + s == 0 else warped(u[k, s], penalty)
        for r in range(from_lane, to_lane):
            i = _i(r)
            x, y = up[now, i], v[i]
            upper, left = warped(x, penalty), warped(y, penalty)
            least, _, below_least, _, _, _ = soften(kind, upper, left, one)
            rest = u[row, i] - below_least
            sm[i] = rest + least
            v[i] = rest + (least - x)
            up[then, _i(r + 1)] = rest + (least - y)
        if totals[0].size:
            _add_up(totals, s, first, last, area, begin_free, v, sm)
        else:
            value += _value_of_step(s, first, last, area, begin_free, up, then, v, sm)
        if last == LANES:
            below[s - LANES + 1] = up[then, LANES]
    return value


@kernel
def _value_of_step(s, first, last, area, begin_free, up, then, v, sm):
    """R of the last cell: sm summed along the main diagonal, then H or V along the edge. With a
    free begin: along the diagonal that ends in that cell if it begins in row 0, where sm = R."""
    _, top, n, m, _, _ = area
    value = 0.0
    diagonal = s - top - max(m - n, 0) if begin_free else s - top
    if diagonal % 2 == 0:
        r = diagonal // 2
        if first <= r < last and top + r < min(n, m):
            value += sm[r]
    if m > n and top + LANES >= n and not begin_free:
        r = n - 1 - top
        if first <= r < last and s - r >= n:
            value += up[then, r + 1]
    if n > m:
        r = s - m + 1
        if first <= r < last and top + r >= m:
            value += v[r]
    return value


@kernel
def _add_up(totals, s, first, last, area, begin_free, v, sm):
    """R itself in float64, from which the best of the free ends is chosen: differences of far ends
    summed in float32 could not tell. Summed along the diagonals, where R grows the least.

    ``totals``: R of this step and of the two before, in turn, at place lane + 1; R of the last row
    of the strip above; and R of the last row of this strip.
    """
    _, top, n, m, _, _ = area
    rows = min(LANES, n - top)
    waves, above, below = totals
    now, before, previous = waves[s % 3], waves[(s + 1) % 3], waves[(s + 2) % 3]
    if top > 0 and 0 < s <= m:
        before[0] = above[s - 1]
    for lane in range(first, last):
        now[_i(lane + 1)] = before[_i(lane)] + sm[_i(lane)]
    if top == 0 and first == 0:  # sm is R where a path begins, and H along row 0
        now[1] = sm[0] if begin_free or s == 0 else previous[1] + sm[0]
    if last == s + 1 and top + s > 0:
        now[s + 1] = (above[0] if s == 0 else previous[s]) + v[s]
    if last == rows:
        below[s - rows + 1] = now[rows]


@kernel
def probabilities(u, p, up, v, above, area, steps, one):
    """The block again, keeping the shares of each cell's diagonal, upper and left neighbour, the
    derivatives of its soft minimum: p[k, r], p[k, LANES + r] and p[k, 2 LANES + r]."""
    start, top, n, m, low, high = area
    begin_free, penalty, kind = steps
    rows = min(LANES, n - top)
    zero = one - one
    for k in range(STEPS):
        s = start + k
        first, last = lane_range(s, top, rows, m, low, high)
        if first >= last:
            continue
        _edges(k, s, top, m, low, high, up, v, above)
        row, now, then = _i(k), _i(k & 1), _i((k + 1) & 1)
        from_lane, to_lane = first, last
        if top == 0 and first == 0:
            from_lane = 1
            p[k, 0], p[k, LANES], p[k, 2 * LANES] = zero, zero, one
            if s > 0 and begin_free:
                r0, p[k, LANES], p[k, 2 * LANES] = _begin_here(u[k, 0], warped(v[0], penalty), one)
                up[then, 1] = r0 - v[0]
                v[0] = r0
            else:
                up[then, 1] = warped(u[k, 0], penalty)
        if last == s + 1:
            to_lane = s
            v[s] = u[k, s] if top + s == 0 else warped(u[k, s], penalty)
            p[k, s], p[k, LANES + s], p[k, 2 * LANES + s] = zero, one, zero
        for r in range(from_lane, to_lane):
            i = _i(r)
            x, y = up[now, i], v[i]
            upper, left = warped(x, penalty), warped(y, penalty)
            least, middle, below_least, of_least, of_middle, of_most = soften(
                kind, upper, left, one
            )
            rest = u[row, i] - below_least
            v[i] = rest + (least - x)
            up[then, _i(r + 1)] = rest + (least - y)
            p[row, i] = of_least if zero == least else of_middle if zero == middle else of_most
            p[row, _i(LANES + r)] = (
                of_least if upper == least else of_middle if upper == middle else of_most
            )
            p[row, _i(2 * LANES + r)] = (
                of_least if left == least else of_middle if left == middle else of_most
            )


@kernel
def expectations(e, p, left, up, owed, seed, seeds, below, above, area):
    """E of a block, last step first; cells outside get 0. ``seed``: E of the very last cell.
    ``seeds``, unless empty: E that each cell of the last row receives as a free end.

    Flux under way: left[r] to the cell on the left, up[r] to the row above at the column of the
    step, owed[r] along the diagonal, which the row above receives one step later. ``below`` and
    ``above``: flux between strips, per column. All flux is float64, and each cell passes on exactly
    what it received: where one path dominates, float32 would lose the small part that returns.
    """
    start, top, n, m, low, high = area
    rows = min(LANES, n - top)
    for k in range(STEPS - 1, -1, -1):
        s, row = start + k, _i(k)
        first, last = lane_range(s, top, rows, m, low, high)
        first, last = min(first, LANES), max(last, 0)
        if top + LANES < n and LANES - 1 <= s < m + LANES - 1:
            up[LANES] = below[s - LANES + 1]
        if top + LANES >= n:
            column = s - rows + 1
            if seeds.size:
                if 0 <= column < m:
                    up[rows] = seeds[column]
            elif column == m - 1:
                left[rows - 1] = seed
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
def free_end(r, first, m, shares):
    """R of a free end: of a row below the last one, entered straight down and walked to the right
    at no cost, R_n,j = softmin(R_n-1,j, R_n,j-1). ``r``: R of the last row; ``first``: its first
    column in the band.

    shares[j]: log2 of the share that enters (n, j) from above, R_n,j - R_n-1,j.
    """
    shares[:first] = -np.inf
    shares[first] = 0
    total = r[first]
    for j in range(first + 1, m):
        gap = total - r[j]
        shares[j] = (gap if gap < 0 else 0.0) - math.log1p(2.0 ** -abs(gap)) / math.log(2)
        total = r[j] + shares[j]
    return total


@kernel
def seeds_of(shares, m, grad, seeds):
    """seeds[j]: the part of ``grad`` for the last row's cell at column j."""
    flux = np.float64(grad)
    for j in range(m - 1, -1, -1):
        seeds[j] = flux * 2.0 ** shares[j]
        flux = -flux * math.expm1(shares[j] * math.log(2))
