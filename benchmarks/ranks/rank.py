"""One of several gloo processes that ``benchmarks.ranks.measure`` starts: checks, times, memory.

The job is JSON on standard input, the answer one line of JSON on standard output.
"""

import itertools
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import fastseq
from benchmarks.memory import gradient_bytes, status_kib
from benchmarks.ranks_peers import WAYS
from benchmarks.timing import gradients
from training.support.distributed import leave

CHANNELS = 128


def views(videos: int, frames: int, dtype: torch.dtype) -> list[Tensor]:
    """z1, z2 of all ranks: unit normal. t1, t2: sorted frames out of 1.25 T, as in
    ``benchmarks.scl``."""
    generator = torch.Generator().manual_seed(0)
    shape = videos, frames, CHANNELS
    z = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    pool = frames + frames // 4
    t = [
        torch.stack([torch.randperm(pool, generator=generator)[:frames] for _ in range(videos)])
        for _ in range(2)
    ]
    return z + [x.sort(1).values for x in t]


def parts(frames: int, uneven: bool) -> list[int]:
    """Frames of each rank: T / R, or different numbers, none for rank 1 of more than two."""
    ranks = dist.get_world_size()
    weights = [1] * ranks
    if uneven:
        weights = [0 if k == 1 and ranks > 2 else 1 + k % 3 for k in range(ranks)]
    ends = [frames * sum(weights[:k]) // sum(weights) for k in range(ranks + 1)]
    return [b - a for a, b in itertools.pairwise(ends)]


def mine(whole: list[Tensor], counts: list[int]) -> list[Tensor]:
    """This rank's part of each tensor (N, T, ...), embeddings with requires_grad."""
    start = sum(counts[: dist.get_rank()])
    own = [x[:, start : start + counts[dist.get_rank()]].clone() for x in whole]
    return [x.requires_grad_(x.is_floating_point()) for x in own]


def differences(frames: int, dtype: torch.dtype) -> list[dict]:
    """Largest differences to one process, relative to its value and to its largest gradient."""
    whole = views(2, frames, dtype)
    masks = [torch.rand(2, frames) < 0.9 for _ in range(2)]
    for mask in masks:
        dist.broadcast(mask, 0)
    found = []
    for way, uneven in [*((way, False) for way in WAYS), ("ring", True)]:
        counts = parts(frames, uneven)
        one = [x.requires_grad_(x.is_floating_point()) for x in map(torch.clone, whole)]
        own = mine(whole, counts)
        if uneven:
            valid1, valid2 = mine(masks, counts)
            got = fastseq.scl_loss(
                *own, valid1=valid1, valid2=valid2, group=dist.group.WORLD, split="frames"
            )
            want = fastseq.scl_loss(*one, valid1=masks[0], valid2=masks[1])
        else:
            got, want = WAYS[way](*own), fastseq.scl_loss(*one)
        value = (got - want).abs() / want.abs()
        start = sum(counts[: dist.get_rank()])
        error = torch.zeros((), dtype=dtype)
        upstream = dist.get_world_size()  # the gradient is that of the sum of the ranks' values
        for a, b in zip(gradients(got, own, 1 / upstream), gradients(want, one, 1), strict=True):
            if a.numel():
                off = (a - b[:, start : start + a.shape[1]]).abs().max()
                error = torch.maximum(error, off / b.abs().max())
        largest = torch.stack([value.detach().to(dtype), error])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        value, gradient = largest.tolist()
        names = _names(way, frames) | {"split": "uneven, masks" if uneven else "even"}
        names["dtype"] = str(dtype).removeprefix("torch.")
        found.append(names | {"value": value, "gradient": gradient})
    return found


def times(frames: int, rounds: int) -> list[dict]:
    """Milliseconds of forward and backward: of a round that of the slowest rank; and CPU time of
    all ranks together in the round with the least."""
    own = mine(views(1, frames, torch.float32), parts(frames, uneven=False))
    found = {way: [] for way in WAYS}
    names = list(WAYS)
    for number in range(-1, rounds):  # the first is a warm-up
        turn = number % len(names)
        for way in names[turn:] + names[:turn]:
            dist.barrier()
            begin, cpu = time.perf_counter(), time.process_time()
            gradients(WAYS[way](*own), own, 1)
            wall = torch.tensor(time.perf_counter() - begin)
            used = torch.tensor(time.process_time() - cpu)
            dist.all_reduce(wall, dist.ReduceOp.MAX)
            dist.all_reduce(used)
            if number >= 0:
                found[way].append((wall.item() * 1e3, used.item() * 1e3))
    return [
        _names(way, frames)
        | {
            "rounds": rounds,
            "best_ms": min(wall for wall, _ in samples),
            "cpu_ms": min(used for _, used in samples),
        }
        for way, samples in found.items()
    ]


def memory(frames: int) -> list[dict]:
    """Peak of the resident set in a call above its level before, without the gradients; MB of the
    rank with the most. Freed blocks return to the system at once (see ``benchmarks.memory``)."""
    own = mine(views(1, frames, torch.float32), parts(frames, uneven=False))
    found = []
    for way, loss in WAYS.items():
        gradients(loss(*own), own, 1)
        dist.barrier()
        before = status_kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak
        gradients(loss(*own), own, 1)
        peak = (status_kib("VmHWM") - before) * 1024 - gradient_bytes(own)
        most = torch.tensor(float(peak))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        found.append(_names(way, frames) | {"peak_mb": max(0.0, most.item() / 1e6)})
    return found


def _names(way: str, frames: int) -> dict:
    return {"way": way, "ranks": dist.get_world_size(), "frames": frames}


def answer(job: dict) -> dict[str, list[dict]]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job['meeting']}",
        rank=int(os.environ["RANK"]),
        world_size=job["ranks"],
        timeout=timedelta(seconds=job["seconds"]),
    )
    found = {"differences": [], "times": [], "memory": []}
    for dtype in job["dtypes"]:
        found["differences"] += differences(job["check_frames"], getattr(torch, dtype))
    for frames in job["times"]:
        found["times"] += times(frames, job["rounds"])
    for frames in job["memory"]:
        found["memory"] += memory(frames)
    dist.barrier()  # a rank that ends earlier would end the others' connections
    return found


def main() -> None:
    torch.set_num_threads(1)
    try:
        print(json.dumps(answer(json.load(sys.stdin))))
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
