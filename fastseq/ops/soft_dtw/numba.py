"""CPU backend: strips of rows, one thread each, each a few columns behind the strip above."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.soft_dtw.numba_absolute import backward_absolute, forward_absolute
from fastseq.ops.soft_dtw.numba_kernels import backward_strips, forward_strips
from fastseq.ops.soft_dtw.numba_math import KINDS
from fastseq.ops.soft_dtw.numba_wave import LANES, STEPS
from fastseq.ops.soft_dtw.options import SOFTMINS, SoftDTWOptions, band_limits

CELLS_PER_THREAD = 1 << 14  # below this a thread costs more than it saves


def forward(x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts: SoftDTWOptions, needs):
    """Values (N,) and the tensors for the backward: H of each strip's last row; H and V at the
    start of each block; for a free end the shares of the last row. If pairs have infinite costs,
    also their numbers and R."""
    p = _Problem(x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts)
    below = p.new(p.batch, p.strips, p.m)
    state = p.new(p.batch, p.strips, p.blocks if any(needs) else 0, 2, LANES)
    parts = np.zeros((p.batch, p.strips))
    columns = p.m if opts.end_free else 0
    bottoms, shares = np.empty((p.batch, p.strips, columns)), np.zeros((p.batch, columns))
    p.run(forward_strips, _numpy(below), _numpy(state), bottoms, shares, parts)
    value = parts.sum(1) * p.unit
    extra = ()
    if cost is not None and not np.isfinite(value).all():
        numbers = np.flatnonzero(~np.isfinite(value))
        r = np.empty((len(numbers), p.n, p.m))
        part = np.empty(len(numbers))
        p.run_absolute(forward_absolute, numbers, r, part)
        value[numbers] = part
        extra = torch.from_numpy(numbers), torch.from_numpy(r)
    value = torch.from_numpy(value).to(below.dtype)
    return (value, below, state, torch.from_numpy(shares), *extra) if any(needs) else (value,)


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
    p = _Problem(x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts)
    below, state, shares, *extra = saved
    flow = torch.empty(p.batch, p.strips, p.m, dtype=torch.float64)
    # Not torch.zeros: its threads would spin on processors that our threads are about to need.
    outputs = [torch.from_numpy(np.zeros_like(a)) for a in (p.x, p.y, p.cost, p.bias)]
    if extra:
        numbers, r = map(_numpy, extra)
        part = np.empty((len(numbers), p.n, p.m), p.cost.dtype)
        p.run_absolute(backward_absolute, numbers, r, _numpy(grad)[numbers], part)
        p.n_real = p.n_real.copy()
        p.n_real[numbers] = 0  # these pairs are done
    p.run(backward_strips, *map(_numpy, (below, state, shares, grad, flow, *outputs)))
    dx, dy, dcost, dbias = outputs
    if extra:
        dcost.numpy()[numbers] = part
    if cost is not None:
        return None, None, dcost, None
    return tuple(t if need else None for t, need in zip((dx, dy, None, dbias), needs, strict=True))


class _Problem:
    """One call in the form that the kernels need."""

    def __init__(self, x, y, cost, bias, lengths_x, lengths_y, gammas, bands, opts):
        given = cost if x is None else x
        self.batch, self.n = given.shape[:2]
        self.m = cost.shape[2] if x is None else y.shape[1]
        self.dtype = given.dtype
        none = given.new_empty(self.batch, 0, 0)
        self.x, self.y, self.cost = (
            _numpy(none if t is None else t.detach()) for t in (x, y, cost)
        )
        self.bias = _numpy(given.new_empty(self.batch, 0) if bias is None else bias.detach())
        self.n_real = _lengths(lengths_x, self.batch, self.n)
        self.m_real = _lengths(lengths_y, self.batch, self.m)
        widths = [opts.bandwidth] * self.batch if bands is None else bands.tolist()
        limits = [
            band_limits(int(n), int(m), width)
            for n, m, width in zip(self.n_real, self.m_real, widths, strict=True)
        ]
        self.band = np.array(limits, np.int64).reshape(self.batch, 2)
        self.gamma = np.full(self.batch, opts.gamma) if gammas is None else _numpy(gammas)
        self.softmin = opts.softmin
        # Of the scores: powers of 2 in place of e. The sparse minimum has none.
        self.unit = self.gamma if opts.softmin == "sparse" else self.gamma * np.log(2)
        self.warp_penalty, self.ends = opts.warp_penalty, (opts.begin_free, opts.end_free)
        self.strips = -(-self.n // LANES)
        self.blocks = -(-(self.m + LANES - 1) // STEPS)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def run(self, kernel: Callable, *arrays: np.ndarray) -> None:
        """Run ``kernel`` on every strip; the caller's thread is one of the workers."""
        if not self.batch or not self.strips or not self.m:
            return
        scale, penalty = 1 / self.unit, None
        # Separately compiled kernels; only "logsumexp" has kernels without a penalty as well.
        if self.warp_penalty or self.softmin != "logsumexp":
            penalty = (self.warp_penalty * scale).astype(self.x.dtype)
        cells = int((self.n_real * self.m_real).sum())
        workers = min(
            torch.get_num_threads(), self.batch * self.strips, 1 + cells // CELLS_PER_THREAD
        )
        counter, progress = np.zeros(1, np.int64), np.zeros(self.batch * self.strips, np.int64)
        options = scale.astype(self.x.dtype), penalty, self.ends[0], KINDS[self.softmin]
        problem = (self.x, self.y, self.cost, self.bias, self.n_real, self.m_real, self.band)
        problem = (*problem, *options)
        _in_threads(lambda: kernel(problem, counter, progress, *arrays), workers)

    def run_absolute(self, kernel: Callable, numbers: np.ndarray, *arrays: np.ndarray) -> None:
        """Run ``kernel`` on some pairs; one thread works on each."""
        parts = (t[numbers] for t in (self.cost, self.n_real, self.m_real, self.band, self.gamma))
        problem = (*parts, self.warp_penalty, *self.ends, SOFTMINS.index(self.softmin))
        counter = np.zeros(1, np.int64)
        workers = min(torch.get_num_threads(), len(numbers))
        _in_threads(lambda: kernel(problem, counter, *arrays), workers)


def _numpy(t: Tensor) -> np.ndarray:
    return t.contiguous().numpy()


def _lengths(lengths: Tensor | None, batch: int, frames: int) -> np.ndarray:
    return np.full(batch, frames, np.int64) if lengths is None else _numpy(lengths)


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _in_threads(work: Callable[[], None], workers: int) -> None:
    """Run ``work`` in this thread, and in up to ``workers - 1`` others that are free."""
    others = []
    if workers > 1:
        global _pool
        with _pool_lock:
            if _pool is None or _pool._max_workers < workers - 1:
                if _pool is not None:
                    _pool.shutdown(wait=False)
                _pool = ThreadPoolExecutor(workers - 1, thread_name_prefix="fastseq")
            others = [_pool.submit(work) for _ in range(workers - 1)]
    work()
    for other in others:
        if not other.cancel():  # it has begun
            other.result()


def _forget_pool() -> None:
    """In a forked child the pool's threads do not exist."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
