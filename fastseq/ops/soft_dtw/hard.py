"""dtw_cross: hard dynamic time warping of every x with every y."""

import math

import numpy as np
import torch
from torch import Tensor

from fastseq.ops.common.dispatch import no_autocast, unavailable
from fastseq.ops.common.fused import transforms_active
from fastseq.ops.common.lengths import Lengths, valid_mask
from fastseq.ops.common.validate import check_choice
from fastseq.ops.soft_dtw import chunks
from fastseq.ops.soft_dtw.cross import every_pair
from fastseq.ops.soft_dtw.op import _resolve
from fastseq.ops.soft_dtw.options import COSTS, SoftDTWOptions, check_bandwidth, checked_ends

# Below this number of cells a thread costs more than it saves.
CELLS_PER_THREAD = 1 << 16
# log2 of the greatest cost in units of the limit's gamma ln(2), see _by_limit.
LIMIT = 64


def dtw_cross(
    x: Tensor,
    y: Tensor,
    *,
    cost: str = "sqeuclidean",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    bandwidth: int | None = None,
    begin: str = "fixed",
    end: str = "fixed",
    warp_penalty: float = 0.0,
) -> Tensor:
    r"""Hard dynamic time warping of every x with every y, for retrieval and nearest neighbours.

    ``value[a, b]`` is the cost of the cheapest monotone path, that of :func:`fastseq.dtw_path`::

        R_ij  = c_ij + min(R_i-1,j-1, R_i-1,j + w, R_i,j-1 + w)     w: warp_penalty
        value = R of the last pair of real frames (free end: the least R of the last row of x)

    Not differentiable: it is the limit of :func:`fastseq.soft_dtw_cross`, which is, for gamma
    towards 0. On the CPU a separate kernel processes 8 pairs at a time, with costs in the dtype of
    the inputs (float32 for half precision) and R in float64; it needs memory for the result and a
    few rows. On a GPU the limit itself is computed: soft-DTW with a gamma of 2^-64 times the
    largest possible cost. Only ties then have weights other than 0 and 1, which change the value by
    less than 2^-62 of that cost each. The remaining error is the rounding of the costs and of
    their sums in the dtype of the inputs.

    Args:
        x, y: embeddings (A, T, D) and (B, S, D); float64, float32, bfloat16 or float16.
        cost: "sqeuclidean" or "cosine", as in :func:`fastseq.soft_dtw`. The value is a sum of
            squared distances; other packages often return its square root.
        lengths_x, lengths_y: (A,) and (B,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (A, T) and (B, S) bool, True = real frame; pass these or lengths.
        bandwidth, begin, end, warp_penalty: as in :func:`fastseq.soft_dtw`, one for all pairs.
            Defaults: none, "fixed", "fixed", 0: plain DTW.

    Returns:
        (A, B) on the device of x: float64 for float64 inputs, otherwise float32. 0 for a pair with
        a length of 0; NaN for a pair with NaN or infinity in a real frame.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: inside torch.func transforms.

    Example:
        >>> import torch, fastseq
        >>> x = torch.tensor([[[0.0], [1.0]], [[3.0], [3.0]]])
        >>> y = torch.tensor([[[0.0], [0.0], [1.0]], [[3.0], [1.0], [3.0]], [[0.0], [0.0], [2.0]]])
        >>> values = fastseq.dtw_cross(x, y)
        >>> values
        tensor([[ 0., 13.,  1.],
                [22.,  4., 19.]])
        >>> values.argmin(1)  # the nearest y of each x
        tensor([0, 1])
    """
    op = "dtw_cross"
    if transforms_active():
        raise RuntimeError(
            f"{op}: it is not differentiable and does not work inside torch.func "
            'transforms (grad, vmap, jvp); to fix: soft_dtw_cross(..., backend="reference")'
        )
    check_choice(op, "cost", cost, COSTS)
    bandwidth = check_bandwidth(op, bandwidth)
    ends = checked_ends(op, begin, end, warp_penalty)
    with torch.no_grad():
        x, y, real_x, real_y = every_pair(
            op, x, y, cost, (lengths_x, lengths_y), (valid_x, valid_y)
        )
        cpu = x.device.type == "cpu" and unavailable("numba") is None
        compute = _by_kernel if cpu else _by_limit
        with no_autocast(x.device.type):
            values = compute(x, y, real_x, real_y, bandwidth, *ends)
        (odd_x, some_x), (odd_y, some_y) = _frames(x, real_x), _frames(y, real_y)
        values = values.masked_fill(odd_x[:, None] | odd_y, torch.nan)
        return torch.where(some_x[:, None] & some_y, values, 0)


def _frames(z: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each sequence: whether a real frame is not finite, whether there is a real frame."""
    mask = valid_mask(real, *z.shape[:2], z.device)
    return (~z.isfinite().all(-1) & mask).any(1), mask.any(1)


def _by_kernel(x, y, real_x, real_y, bandwidth, begin_free, end_free, penalty) -> Tensor:
    from fastseq.ops.soft_dtw.hard_kernels import hard_values
    from fastseq.ops.soft_dtw.numba import _in_threads

    lengths_x, lengths_y = (
        np.full(len(z), z.shape[1]) if real is None else real.numpy()
        for z, real in ((x, real_x), (y, real_y))
    )
    n, m = (t.ravel() for t in np.meshgrid(lengths_x, lengths_y, indexing="ij"))
    # Pairs of similar lengths side by side.
    numbers = np.lexsort((m, n))
    numbers = numbers[(n[numbers] > 0) & (m[numbers] > 0)]
    values = np.zeros(len(n))
    if len(numbers):
        problem = (
            *(z.contiguous().numpy() for z in (x, y)),
            *(lengths_x, lengths_y),
            *(-1 if bandwidth is None else bandwidth, begin_free, end_free, penalty),
        )
        counter = np.zeros(1, np.int64)
        workers = min(torch.get_num_threads(), 1 + int((n * m).sum()) // CELLS_PER_THREAD)
        _in_threads(lambda: hard_values(problem, counter, numbers, values), workers)
    return torch.from_numpy(values.reshape(len(x), len(y))).to(x.dtype)


def _by_limit(x, y, real_x, real_y, bandwidth, begin_free, end_free, penalty) -> Tensor:
    """Soft-DTW with a very small gamma. Of the weights of three steps only those of ties are then
    other than 0 or 1, and the log2 of their sum, at most 1.6, is rounded away beside costs of up
    to 2^64.

    gamma ln(2), the unit of R in the backends, is a power of two, so that it rounds nothing. It is
    computed from the data without a host read. 2^64 is far below 1e30, which stands for absent
    cells in the backends.
    """
    name = _resolve("dtw_cross", "auto", x.device.type)
    longest = [
        torch.where(valid_mask(real, *z.shape[:2], z.device), z.norm(dim=-1).nan_to_num(0, 0), 0)
        for z, real in ((x, real_x), (y, real_y))
    ]
    if not x.numel() or not y.numel():
        return x.new_zeros(len(x), len(y))
    greatest = (longest[0].max() + longest[1].max()).double().square().clamp(min=penalty)
    exponent = greatest.frexp().exponent.clamp(-50, 100)
    gamma = torch.full_like(greatest, 1 / math.log(2)).ldexp(exponent - LIMIT)[None]
    opts = SoftDTWOptions(1.0, bandwidth, begin_free, end_free, penalty)
    opts = chunks.CrossOptions(name, *opts)
    return chunks.forward(x, y, real_x, real_y, gamma, opts, (False, False))[0]
