"""queue_nce on NVIDIA GPUs: launches the kernels of triton_kernels.py; op.py checks the input.

Two launches forward (one over the parts of the queue, one that joins them and computes the losses),
one backward. Nothing is copied back to the host, so the call can be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseq.ops.common import launch
from fastseq.ops.common.launch import Tiles
from fastseq.ops.queue_nce.options import (
    Gradients,
    QueueNCEOptions,
    keeps_mean,
    reduced,
    spread,
)
from fastseq.ops.queue_nce.triton_kernels import (
    queue_nce_grad_kernel,
    queue_nce_loss_kernel,
    queue_nce_scan_kernel,
)

LOG2E = 1 / math.log(2)
# Most parts of the queue, and fewest rows of a part. More parts keep more multiprocessors busy when
# there are few queries, and cost memory: their sums are (N, parts, D).
MAX_PARTS, MIN_SPAN = 128, 256
# Programs that a GPU runs side by side. Beyond that number a program scans two parts one after the
# other and joins them in the loss kernel's order, so the bits are the same.
ENOUGH = 288
# bf16 tiles that an operand is split into: three have the 24 bits of fp32, two have 16.
PLANES = {"bf16": 1, "fp16": 1, "tf32": 2, "tf32x3": 3}
# Positives that the loss kernel processes at once, and channels of the mean in one of its programs.
POSITIVES, MEAN = 4, 32


@lru_cache
def tiles(d: int, operands: str, arch: int, keep: bool = True) -> Tiles:
    """The configuration of the scan for "bf16", "fp16", "tf32" or "tf32x3" operands, with the
    queue's mean (``keep``) or without.

    Nothing here may depend on N: a query has the same bits alone and in a batch. Chosen so that
    nothing spills (tests/data/queue_nce_resources.json) and to fit the 99 kB of shared memory of
    sm_86 and sm_89.
    """
    padded = max(16, triton.next_power_of_2(d))
    if arch == 0:  # the interpreter: few, large steps
        return Tiles(64, 64, padded, padded, 4, 1)
    step = min(padded, 128)
    rows = 32 if arch < 90 else 64
    # Four warps: with eight on 64 rows, pairs of warps would compute the same.
    if padded > 128:
        # Scores in steps and the mean in chunks load different tiles and need more addresses.
        if operands in ("bf16", "fp16"):
            return Tiles(rows, 32, 64, 128, 4, 2)
        return Tiles(rows, 32 if arch == 90 else 16, 32, 128, 4, 2)
    if operands in ("bf16", "fp16"):
        return Tiles(rows, 64, step, step, 4, 3 if arch < 90 else 4)
    if arch < 90:
        # Without a second product the planes of q would occupy registers of all warps.
        return Tiles(rows, 32, step if keep else min(step, 32), step, 4, 2)
    return Tiles(rows, 32, step, step, 4, 3)


@lru_cache
def parts(length: int, columns: int) -> tuple[int, int]:
    """Number of parts in which a queue of this length is scanned, and rows of each: whole tiles."""
    span = max(MIN_SPAN, launch.cdiv(launch.cdiv(length, MAX_PARTS), columns) * columns)
    return max(1, launch.cdiv(length, span)), span


def row_channels(d: int) -> int:
    """Channels of a tile that covers a whole embedding in one program."""
    return max(16, triton.next_power_of_2(d))


def forward(
    q: Tensor,
    positives: Tensor,
    temperature: Tensor | None,
    queue: Tensor,
    opts: QueueNCEOptions,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss; 1 - the probability of each positive (N, P); and for the gradients of q and the
    temperature the queue's mean under the softmax of each query (N, D)."""
    (n, per_query, d), keep = positives.shape, keeps_mean(needs)
    fp32 = {"dtype": torch.float32, "device": q.device}
    losses, lack = (torch.empty((n, per_query), **fp32) for _ in range(2))
    mean = torch.empty((n, d), **fp32) if keep else None
    if n == 0:
        return reduced(losses, opts.reduction), lack, mean
    queue = queue.contiguous()
    kernels = _kernels(q, keep, opts)
    count, span = parts(len(queue), kernels.columns)
    blocks = launch.cdiv(n, kernels.rows) * kernels.chunks
    fold = 1 if blocks * count <= ENOUGH or not kernels.pairs else 2
    stored = launch.cdiv(count, fold)
    top, total = (torch.empty((n, stored), **fp32) for _ in range(2))
    acc = torch.empty((n, stored, d), **fp32) if keep else None
    scale = LOG2E / opts.temperature
    kernels.scan(
        blocks * stored,
        (q, queue, temperature, top, total, acc),
        (n, len(queue), stored, span, fold, scale),
    )
    kernels.loss[fold - 1](
        n * kernels.programs,
        (q, positives, temperature, top, total, acc, losses, lack, mean),
        (per_query, stored, scale),
    )
    return reduced(losses, opts.reduction), lack, mean


def backward(
    grad: Tensor,
    q: Tensor,
    positives: Tensor,
    temperature: Tensor | None,
    lack: Tensor,
    mean: Tensor | None,
    opts: QueueNCEOptions,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients of q, of the positives and of the temperature in their dtypes, None where not
    needed."""
    need_q, need_positives, need_temperature = needs
    n, per_query, _ = positives.shape
    dq = torch.empty_like(q) if need_q else None
    dp = torch.empty_like(positives) if need_positives else None
    each = torch.empty(n, dtype=torch.float32, device=q.device) if need_temperature else None
    if n > 0 and any(needs):
        grad = spread(grad, lack, opts.reduction)
        _kernels(q, keeps_mean(needs), opts).grad(
            n,
            (q, positives, temperature, lack, mean, grad, dq, dp, each),
            (per_query, *grad.stride(), 1 / opts.temperature),
        )
    return dq, dp, None if each is None else each.sum().to(temperature.dtype)


class Kernels(NamedTuple):
    """The kernels of one kind of call; rows and columns of the scan's tiles, its programs that
    cover the channels; the loss kernel for single parts and joined ones, its programs per query."""

    scan: launch.Kernel
    rows: int
    columns: int
    chunks: int
    pairs: bool
    loss: tuple[launch.Kernel, launch.Kernel]
    programs: int
    grad: launch.Kernel


def _kernels(q: Tensor, keep: bool, opts: QueueNCEOptions) -> Kernels:
    arch = launch.architecture(q.device)
    return _choose(q.shape[1], launch.operands(q.dtype)[0], arch, opts.normalize, keep)


@launch.once
def _choose(d: int, operands: str, arch: int, normalize: bool, keep: bool) -> Kernels:
    tile = tiles(d, operands, arch, keep)
    both = {"D": d, "NORM": normalize}
    scan = launch.Kernel(
        queue_nce_scan_kernel,
        **both,
        BM=tile.rows,
        BN=tile.columns,
        BK=tile.step,
        BD=tile.channels,
        PLANES=PLANES[operands],
        PAIRS=PLANES[operands] == 1,
        KEEP=keep,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers or launch.MOST_REGISTERS,
    )
    whole = row_channels(d)
    width = min(MEAN, whole)
    loss = [
        launch.Kernel(
            queue_nce_loss_kernel,
            **both,
            BS=MAX_PARTS // 2,
            BP=POSITIVES,
            BC=width,
            BD=whole,
            FOLDED=folded,
            KEEP=keep,
            num_warps=4,
        )
        for folded in (False, True)
    ]
    grad = launch.Kernel(queue_nce_grad_kernel, **both, BD=whole, num_warps=4)
    chunks, programs = (
        (launch.cdiv(d, tile.channels), launch.cdiv(d, width) + 1) if keep else (1, 1)
    )
    pairs = PLANES[operands] == 1
    return Kernels(scan, tile.rows, tile.columns, chunks, pairs, (loss[0], loss[1]), programs, grad)
