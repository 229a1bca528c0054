"""Several processes that train one model together, as torchrun starts them.

In one process every function here does nothing, or returns what it is given.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor


class OtherRankFailed(RuntimeError):
    """Another rank has said why."""


def launched_by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Number of this process on its machine: the GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start() -> None:
    """Join the other processes: CUDA tensors go through NCCL, those of the CPU through gloo."""
    if launched_by_torchrun() and not dist.is_initialized():
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")


def leave(status: int) -> NoReturn:
    """End this process, one of several at once.

    Gloo's threads may still hold tensors that they free under the interpreter's lock, and both
    freeing the process group and an ordinary exit can then wait forever, or abort.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that logs and writes."""
    return rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum over ranks of a CPU tensor."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def max_over_ranks(value: int) -> int:
    """The largest of the ranks' values."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, in order; plain types and CPU tensors."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_from_main(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def run_on_main(function: Callable[[], Any]) -> Any:
    """What a function gives on rank 0, on every rank; its error is raised on every rank too."""
    if world_size() == 1:
        return function()
    value, error = None, None
    if is_main():
        try:
            value = function()
        except Exception as raised:
            error = raised
    value, error = broadcast_from_main((value, error))
    if error is not None:
        raise error
    return value


def run_on_all(function: Callable[[], Any]) -> Any:
    """Call a function on every rank; where it fails on some, the others raise `OtherRankFailed`.

    So no rank waits for one that is gone. The function itself must not wait for other ranks.
    """
    value, error = None, None
    try:
        value = function()
    except Exception as raised:
        if world_size() == 1:
            raise
        error = raised
    failed = [r for r, one in enumerate(gather_objects(error is not None)) if one]
    if error is not None:
        error.speaks = failed[0] == rank()
        raise error
    if failed:
        raise OtherRankFailed(f"rank {failed[0]} could not start")
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, one rank after the other: (sum of N_r, ...) from (N_r, ...).

    N_r may differ, and be 0. The gradient of a rank's rows is the sum of those that all ranks
    have for them, so that the sum of the ranks' losses is what is differentiated.
    """
    return _GatherRows.apply(rows) if world_size() > 1 else rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.counts = gather_objects(len(rows))
        largest = max(ctx.counts)
        # A collective takes equal sizes, and not every one takes bool.
        padded = rows.new_zeros(largest, *rows.shape[1:], dtype=_sendable(rows.dtype))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        dist.all_gather(parts, padded)
        return torch.cat([p[:n] for p, n in zip(parts, ctx.counts, strict=True)]).to(rows.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # Summed in fp32 at least; every rank then takes its own part. An all-reduce, because gloo
        # has no reduce-scatter of unequal parts, and embeddings are small beside the model.
        summed = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(summed)
        return summed.split(ctx.counts)[rank()].to(grad.dtype)


def _sendable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype == torch.bool else dtype
