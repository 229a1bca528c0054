"""CPU backend: numba kernels, one thread per pair of sequences."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.drop_dtw.numba_kernels import ALWAYS, ENDS, NEVER, backward_pairs, forward_pairs
from fastseq.ops.drop_dtw.options import DropDTWOptions
from fastseq.ops.soft_dtw.numba import _in_threads

CELLS_PER_THREAD = 1 << 12  # below this a thread costs more than it saves
_UP = {"never": NEVER, "ends": ENDS, "always": ALWAYS}


def forward(cost, drop_cost, lengths_x, lengths_y, opts: DropDTWOptions, needs):
    """Values (N,), and (N, stretches, 2, K + 1): D and P as they enter each stretch of columns."""
    p = _Problem(cost, drop_cost, lengths_x, lengths_y, opts)
    state = np.empty((p.batch, p.stretches if any(needs) else 0, 2, p.k + 1))
    value = np.zeros(p.batch)
    p.run(forward_pairs, state, value)
    value = torch.from_numpy(value).to(cost.dtype)
    return (value, torch.from_numpy(state)) if any(needs) else (value,)


def backward(
    grad, cost, drop_cost, lengths_x, lengths_y, state, *, opts: DropDTWOptions, needs
) -> tuple[Tensor | None, ...]:
    """Gradients of cost and drop_cost."""
    p = _Problem(cost, drop_cost, lengths_x, lengths_y, opts)
    dcost, ddrop = np.zeros_like(p.cost), np.zeros_like(p.drop)
    p.run(backward_pairs, _numpy(state), _numpy(grad), dcost, ddrop)
    outputs = torch.from_numpy(dcost), torch.from_numpy(ddrop)
    return tuple(d if need else None for d, need in zip(outputs, needs, strict=True))


class _Problem:
    """One call in the form that the kernels need."""

    def __init__(self, cost, drop_cost, lengths_x, lengths_y, opts: DropDTWOptions):
        self.batch, self.k, self.m = cost.shape
        self.cost, self.drop = _numpy(cost), _numpy(drop_cost)
        self.n_real, self.m_real = (
            np.full(self.batch, size, np.int64) if real is None else _numpy(real.clamp(0, size))
            for real, size in ((lengths_x, self.k), (lengths_y, self.m))
        )
        self.stretch = max(1, math.isqrt(self.m))
        self.stretches = -(-self.m // self.stretch)
        up, prob = _UP[opts.up], opts.softmin == "prob"
        self.options = 1 / opts.gamma, opts.contiguous, up, prob

    def run(self, kernel: Callable, *arrays: np.ndarray) -> None:
        if not self.cost.size:
            return
        cells = int((self.n_real * self.m_real).sum())
        workers = min(torch.get_num_threads(), self.batch, 1 + cells // CELLS_PER_THREAD)
        lengths = self.n_real, self.m_real
        problem = (self.cost, self.drop, *lengths, self.stretch, self.options)
        counter = np.zeros(1, np.int64)
        _in_threads(lambda: kernel(problem, counter, *arrays), workers)


def _numpy(t: Tensor) -> np.ndarray:
    return t.detach().contiguous().numpy()
