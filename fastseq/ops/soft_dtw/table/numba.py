"""The table on the CPU: one pair per thread."""

import numpy as np
import torch

from fastseq.ops.soft_dtw.numba import CELLS_PER_THREAD, _in_threads
from fastseq.ops.soft_dtw.options import SOFTMINS
from fastseq.ops.soft_dtw.table.numba_kernels import backward_table, forward_table


def forward(cost, opts, needs):
    """R (N, T, S) of costs in float64; nothing is kept."""
    table = torch.empty_like(cost)
    _run(forward_table, cost, opts, table)
    return table, None


def backward(grad, cost, kept, opts, needs):
    """The gradient (N, T, S) of the costs."""
    flow = grad.clone(memory_format=torch.contiguous_format)
    _run(backward_table, cost, opts, flow)
    return (flow,)


def _run(kernel, cost, opts, output) -> None:
    arrays = cost.detach().numpy(), output.numpy()
    kind, counter = SOFTMINS.index(opts.softmin), np.zeros(1, np.int64)
    workers = min(torch.get_num_threads(), len(cost), 1 + cost.numel() // CELLS_PER_THREAD)
    _in_threads(lambda: kernel(*arrays, opts.gamma, kind, counter), workers)
