"""Kernels of the table: the recursion over R itself, in float64, cell after cell."""

import numba
import numpy as np

from fastseq.ops.soft_dtw.numba_absolute import shares
from fastseq.ops.soft_dtw.numba_math import OPTIONS, take_number


@numba.njit(**OPTIONS)
def _fill(cost, r, gamma, kind):
    """R in units of gamma; +inf where there is no path."""
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            u, total, soft = cost[i, j] / gamma, 1.0, 0.0
            if i + j > 0:
                _, _, _, total, soft = shares(r, i, j, 0.0, False, kind)
            # Also beside NaN: a forbidden cell stays one. A cell without a path is never read.
            r[i, j] = np.inf if total == 0 or u == np.inf else u + soft


@numba.njit(**OPTIONS, nogil=True, cache=True)
def forward_table(costs, tables, gamma, kind, counter):
    """Fill tables[k] with R of costs[k], for each pair k in turn."""
    while True:
        k = take_number(counter)
        if k >= len(costs):
            break
        _fill(costs[k], tables[k], gamma, kind)
        tables[k] *= gamma


@numba.njit(**OPTIONS, nogil=True, cache=True)
def backward_table(costs, flows, gamma, kind, counter):
    """Turn flows[k] from the gradient of R into that of the costs, for each pair k in turn."""
    r = np.empty(costs.shape[1:])
    while True:
        k = take_number(counter)
        if k >= len(costs):
            break
        flow = flows[k]
        _fill(costs[k], r, gamma, kind)
        for i in range(r.shape[0] - 1, -1, -1):
            for j in range(r.shape[1] - 1, -1, -1):
                if r[i, j] == np.inf:
                    flow[i, j] = 0.0
                    continue
                if i + j == 0:
                    continue
                diagonal, up, left, total, _ = shares(r, i, j, 0.0, False, kind)
                flux = flow[i, j] / total
                if i > 0 and j > 0:
                    flow[i - 1, j - 1] += flux * diagonal
                if i > 0:
                    flow[i - 1, j] += flux * up
                if j > 0:
                    flow[i, j - 1] += flux * left
