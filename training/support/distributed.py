"""Communication between the processes (ranks) that torchrun starts to train one model.

In a single process every function here does nothing or returns its argument.
"""

import functools
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from training.support.command import UserError
from training.support.time_split import TimeSplit

_timeout: timedelta | None = None  # of `start`


class OtherRankFailed(RuntimeError):
    """Another rank failed; that rank prints the reason."""


def launched_by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launcher() -> str:
    """What starts a module with as many processes as now; several machines have more options."""
    ranks = world_size()
    if ranks == 1:
        return "python"
    here = os.environ.get("LOCAL_WORLD_SIZE", str(ranks))
    machines = "" if here == str(ranks) else " ..."
    return f"torchrun{machines} --nproc-per-node {here}"


def local_rank() -> int:
    """Index of this process on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start(timeout: timedelta | None = None) -> None:
    """Join the other processes: NCCL for CUDA tensors, gloo for CPU tensors.

    ``timeout``: how long one may wait for another; default: torch's, 30 minutes.
    """
    global _timeout
    if launched_by_torchrun() and not dist.is_initialized():
        _timeout = timeout
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, timeout=timeout, **_restart_store())


def _restart_store() -> dict[str, Any]:
    """Arguments of init_process_group after which the keys of this restart are its own.

    On several machines the number of the restart differs between machines, so that
    `check_restarts` requires a store for each restart.
    """
    if not _one_store() or several_machines():
        return {}
    env = os.environ
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
    store = dist.PrefixStore(f"restart {env['TORCHELASTIC_RESTART_COUNT']}", store)
    return {"store": store, "rank": int(env["RANK"]), "world_size": int(env["WORLD_SIZE"])}


def check_restarts() -> None:
    """UserError if torchrun could not start the ranks of several machines again."""
    if _one_store() and several_machines():
        restarts = os.environ["TORCHELASTIC_MAX_RESTARTS"]
        raise UserError(
            f"torchrun --max-restarts {restarts} on several machines: a restart would fail: "
            "ranks would find addresses of ranks that have ended (pytorch issue 135712). Set "
            "the environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for every torchrun"
        )


def _one_store() -> bool:
    """Whether torchrun keeps one store, with the addresses of ended ranks, over all restarts.

    https://github.com/pytorch/pytorch/issues/135712
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def several_machines() -> bool:
    """Whether the processes were started by more than one torchrun."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1


def start_evaluation() -> None:
    """Join the other processes; "cuda" is then the GPU of this process, shared if there are fewer.

    The first process that has embedded its videos waits for the last one, up to a week. A process
    that dies ends the others, which torchrun stops. A single process has nothing to do.
    """
    start(timedelta(days=7))
    if launched_by_torchrun() and torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())


def leave(status: int) -> NoReturn:
    """End this process, which is one of several, immediately.

    Gloo's threads may still hold tensors, which they free under the interpreter's lock. Destroying
    the process group or exiting in the usual way can then hang or abort.
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


@functools.cache
def time_split(parts: int) -> TimeSplit | None:
    """This rank's part of every clip if each ``parts`` consecutive ranks share every clip.

    None for 1. The first call makes the groups, so that every rank has to make it at the same
    place. ValueError unless the number of ranks is a multiple of ``parts``.
    """
    if parts == 1:
        return None
    if world_size() % parts:
        raise ValueError(
            f"data.split_time: {parts} ranks share every clip, but there are {world_size()} ranks; "
            f"start a multiple of {parts} with torchrun"
        )
    group, _ = dist.new_subgroups(group_size=parts, timeout=_timeout)
    return TimeSplit(parts, rank() % parts, group)


def data_share(split: TimeSplit | None) -> tuple[int, int]:
    """(i, n): this rank has share i of n of the clips, the same as the ranks of its `TimeSplit`."""
    parts = 1 if split is None else split.parts
    return rank() // parts, world_size() // parts


def union_over_group(found: dict[str, str], group: dist.ProcessGroup) -> dict[str, str]:
    """The entries of all ranks of a group, in the same order on each.

    Costs the sum of one number if there are none. Of two values of one key, the first rank's is
    kept.
    """
    count = torch.tensor(len(found))
    dist.all_reduce(count, group=group)
    if not count:
        return {}
    parts = [found] * dist.get_world_size(group)
    dist.all_gather_object(parts, found, group=group)
    return {key: value for part in reversed(parts) for key, value in part.items()}


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
    """The values of all ranks in order of rank; plain types and CPU tensors."""
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
    """Call a function on rank 0 alone and return its value, or raise its error, on every rank."""
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
        error.speaks = is_main()
        raise error
    return value


def run_on_all(function: Callable[[], Any]) -> Any:
    """Call a function on every rank; if it fails on some, the others raise `OtherRankFailed`.

    So no rank waits for one that has ended. The function itself must not wait for other ranks.
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

    N_r may differ between ranks and may be 0. The gradient of a rank's rows is summed over all
    ranks, so the differentiated quantity is the sum of the ranks' losses.
    """
    return _GatherRows.apply(rows) if world_size() > 1 else rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.counts = gather_objects(len(rows))
        largest = max(ctx.counts)
        # Collectives need equal sizes, and some do not support bool.
        padded = rows.new_zeros(largest, *rows.shape[1:], dtype=_sendable(rows.dtype))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        dist.all_gather(parts, padded)
        return torch.cat([p[:n] for p, n in zip(parts, ctx.counts, strict=True)]).to(rows.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # Summed in fp32 at least; each rank then keeps its own part. gloo has no reduce-scatter of
        # unequal parts, and embeddings are small compared with the model, so this all-reduces.
        summed = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(summed)
        return summed.split(ctx.counts)[rank()].to(grad.dtype)


def _sendable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype == torch.bool else dtype
