"""What test_ring.py computes on four ranks, in child processes: gloo on the CPU.

A function here runs on every rank of a group and returns what its name says; `main` runs them all.
"""

import itertools
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import fastseq
from fastseq.ops.common.ring import Ring

RANKS = 4
# Groups that a call runs in. In the last one, a process's rank is not that in the group.
GROUPS = {"all": (0, 1, 2, 3), "two": (0, 1), "three": (1, 2, 3)}


class Case(NamedTuple):
    """One call: how the data are made, how they are split, and the options."""

    split: str
    negatives: str
    reduction: str
    given: str  # what is passed: "times", "valid", both, or neither
    options: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        shown = [f"{k}={v}" for k, v in self.options]
        return "-".join([*self[:4], *shown, str(self.dtype)[6:]])


def cases() -> Iterator[Case]:
    ways = [
        ("times valid", ()),
        ("", (("objective", "ce"), ("normalize", False), ("temperature", 2.0))),
        ("times", (("temperature", 0.01), ("target", "laplace"))),
        ("valid", (("target", "box"), ("variance", 3.0))),
    ]
    kinds = itertools.product(("frames", "videos"), ("cross", "video", "batch"))
    for (split, negatives), reduction in itertools.product(kinds, ("mean", "sum", "none", "paper")):
        for given, options in ways:
            yield Case(split, negatives, reduction, given, options)
    for split, negatives in (("frames", "cross"), ("videos", "batch")):
        for dtype in (torch.float32, torch.bfloat16):
            yield Case(split, negatives, "mean", "times valid", (), dtype)


class Data(NamedTuple):
    """The whole of a call, and the slice of each view that each rank has."""

    z: tuple[Tensor, Tensor]
    more: dict[str, Tensor]  # times and masks
    weight: Tensor  # of each video's loss, with reduction="none"
    places: list[list[int]]  # for each view, where each rank's part begins, and the end


def data_of(case: Case, ranks: int) -> Data:
    generator = torch.Generator().manual_seed(len(str(case)) + ranks)
    shape = {"frames": (3, 23, 19), "videos": (5, 9, 11)}[case.split]
    (n, *lengths), z, more, places = shape, [], {}, []
    for view, frames in enumerate(lengths, 1):
        x = torch.randn(n, frames, 5, generator=generator, dtype=torch.float64).to(case.dtype)
        valid = torch.rand(n, frames, generator=generator) < 0.8
        if "valid" in case.given:
            more[f"valid{view}"] = valid
            x[~valid] = torch.nan
        if "times" in case.given:  # in any order, from anywhere
            more[f"t{view}"] = torch.randint(0, 2 * frames, (n, frames), generator=generator)
        z.append(x)
        size = frames if case.split == "frames" else n
        if case.split == "frames" or view == 1:
            cuts = torch.randint(0, size + 1, (ranks - 1,), generator=generator)
            cuts[: ranks > 2] = 0  # a rank without frames, or videos
            places.append([0, *sorted(cuts.tolist()), size])
    places = places * (2 // len(places))
    return Data(tuple(z), more, torch.rand(n, generator=generator), places)


def part_of(x: Tensor, data: Data, split: str, view: int, rank: int) -> Tensor:
    at = slice(*data.places[view][rank : rank + 2])
    return x[:, at] if split == "frames" else x[at]


def options_of(case: Case) -> dict[str, Any]:
    return dict(case.options) | {"negatives": case.negatives, "reduction": case.reduction}


def differentiated(case: Case, z, more, weight, **options) -> dict[str, Tensor]:
    """Value and gradients of a call, those of the temperature too."""
    z1, z2 = (x.clone().requires_grad_() for x in z)
    options = options_of(case) | options
    tau = torch.tensor(options.pop("temperature", 0.1), dtype=torch.float64, requires_grad=True)
    loss = fastseq.scl_loss(z1, z2, **more, temperature=tau, **options)
    total = (loss * weight).sum() if case.reduction == "none" else loss
    total.backward()
    return {"loss": loss.detach(), "z1": z1.grad, "z2": z2.grad, "tau": tau.grad}


def on_group(case: Case, group, backend: str) -> dict[str, Tensor]:
    """This rank's value and gradients. The temperature's is summed over ranks."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    data = data_of(case, ranks)

    def part(x: Tensor, view: int) -> Tensor:
        return part_of(x, data, case.split, view, rank)

    z = tuple(part(x, view) for view, x in enumerate(data.z))
    more = {name: part(x, int(name[-1]) - 1) for name, x in data.more.items()}
    weight = part(data.weight, 0) if case.split == "videos" else data.weight
    more |= {"group": group, "split": case.split, "backend": backend}
    found = differentiated(case, z, more, weight)
    dist.all_reduce(found["tau"], group=group)
    return found


def all_cases(groups: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Tensor]]:
    found = {}
    for number, case in enumerate(cases()):
        name = list(GROUPS)[number % len(GROUPS)]
        for backend in ("torch", "reference"):
            if groups[name] is not None and (backend == "torch" or number % 4 == 0):
                found[str(case), name, backend] = on_group(case, groups[name], backend)
    return found


def _frames(rank: int, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(2, count, 4, generator=generator, dtype=torch.float64)


def compiled(groups) -> float:
    """Largest difference between torch.compile in one graph and eager."""
    z, t = _frames(dist.get_rank()), torch.arange(6) + 6 * dist.get_rank()
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        x = z.clone().requires_grad_()

        def loss(x: Tensor, t: Tensor) -> Tensor:
            return fastseq.scl_loss(2 * x, x.flip(1), t, t, group=groups["all"], backend="torch")

        value = wrap(loss)(x, t)
        value.backward()
        results.append(torch.cat([value.detach()[None], x.grad.flatten()]))
    return float((results[0] - results[1]).abs().max())


def twice(groups) -> tuple[float, str]:
    """Difference of a Hessian-vector product from one process's, and another backend's error."""
    every = torch.cat([_frames(rank, 3) for rank in range(RANKS)], 1)
    rank = dist.get_rank()

    def product(z: Tensor, backend: str, **options) -> Tensor:
        z = z.clone().requires_grad_()
        loss = fastseq.scl_loss(z, z.flip(2), backend=backend, **options)
        (grad,) = torch.autograd.grad(loss, z, create_graph=True)
        (twice,) = torch.autograd.grad(grad.square().sum(), z)
        return twice

    own = product(every[:, 3 * rank : 3 * rank + 3], "reference", group=groups["all"])
    # The value, and with it the gradient, counts once for each rank, and so do their squares.
    expected = RANKS**2 * product(every, "reference")[:, 3 * rank : 3 * rank + 3]
    difference = float((own - expected).abs().max() / expected.abs().max())
    return difference, error_of(lambda: product(every, "torch", group=groups["all"]))


def only_one_view(groups) -> float:
    """Difference of z1's gradient when no other is needed."""
    z = _frames(dist.get_rank())
    found = []
    for others in (False, True):
        x, y = z.clone().requires_grad_(), z.flip(1).requires_grad_(others)
        fastseq.scl_loss(x, y, group=groups["all"], backend="torch").backward()
        found.append(x.grad)
    return float((found[0] - found[1]).abs().max())


def far_apart(groups) -> tuple[float, float]:
    """Loss of ranks whose times are out of each other's reach, and of a NaN time on one rank."""
    z = _frames(dist.get_rank())
    t = torch.arange(6.0) + 1000 * dist.get_rank()
    other = t + 1000 * RANKS
    isolated = fastseq.scl_loss(z, z, t, other, group=groups["all"])
    if dist.get_rank() == 1:
        t[2] = torch.nan
    return float(isolated), float(fastseq.scl_loss(z, z, t, t, group=groups["all"]))


def nothing(groups) -> tuple[float, list]:
    """Loss and shape of the gradient without videos, and without real frames."""
    z = _frames(0)[:0].requires_grad_()
    fastseq.scl_loss(z, z, group=groups["all"]).backward()
    x = torch.full((2, 3, 4), torch.nan, requires_grad=True)
    loss = fastseq.scl_loss(x, x, lengths1=[0, 0], lengths2=[0, 0], group=groups["all"])
    loss.backward()
    return float(loss), [list(z.grad.shape), float(x.grad.abs().sum())]


def other_times(groups) -> float:
    """Loss with integer times on some ranks and floats on others, against floats on all."""
    rank = dist.get_rank()
    z, t = _frames(rank), torch.arange(6) + 6 * rank
    mixed = t if rank % 2 else t.float()
    a, b = (fastseq.scl_loss(z, z.flip(1), x, x, group=groups["all"]) for x in (mixed, t.double()))
    return float(abs(a - b))


def travelling(groups) -> dict[str, tuple[int, int]]:
    """Number of hops of a forward and backward, and the most received blocks in memory when
    another one begins to arrive."""
    received, most = [], []

    def exchange(self, here, coming, *peers, exchange=Ring._exchange):
        most.append(sum(any(x() is not None for x in block) for block in received))
        received.append([weakref.ref(x) for x in coming])
        return exchange(self, here, coming, *peers)

    found, kept = {}, Ring._exchange
    Ring._exchange = exchange
    try:
        for split, negatives in itertools.product(("frames", "videos"), ("cross", "batch")):
            z = _frames(dist.get_rank()).requires_grad_()
            mask = torch.ones(2, 6, dtype=torch.bool)
            options = {"valid1": mask, "valid2": mask, "split": split, "negatives": negatives}
            fastseq.scl_loss(z, z.flip(1), group=groups["all"], **options).backward()
            found[f"{split} {negatives}"] = len(most), max(most, default=0)
            received.clear()
            most.clear()
    finally:
        Ring._exchange = kept
    return found


def other_lengths(groups) -> dict[str, float]:
    """Largest difference of values and gradients from one process, where the ranks' videos have
    other lengths."""
    rank, found = dist.get_rank(), {}
    frames = [(4, 7), (6, 3), (0, 5), (2, 0)]  # T1 and T2 of each rank
    generator = torch.Generator().manual_seed(0)
    n, (longest1, longest2) = 2 * RANKS, map(max, zip(*frames, strict=True))
    whole = [
        torch.randn(n, longest, 4, generator=generator, dtype=torch.float64)
        for longest in (longest1, longest2)
    ]
    mine = slice(2 * rank, 2 * rank + 2)
    own = [z[mine, :length] for z, length in zip(whole, frames[rank], strict=True)]
    lengths = [[pair[view] for pair in frames for _ in (0, 1)] for view in (0, 1)]
    for negatives, backend in itertools.product(("cross", "batch"), ("torch", "reference")):

        def gradients(z, negatives=negatives, **options) -> list[Tensor]:
            z = [x.clone().requires_grad_() for x in z]
            loss = fastseq.scl_loss(*z, negatives=negatives, **options)
            return [loss.detach(), *torch.autograd.grad(loss, z)]

        value, *want = gradients(whole, lengths1=lengths[0], lengths2=lengths[1])
        want = [x[mine, :t] for x, t in zip(want, frames[rank], strict=True)]
        options = {"group": groups["all"], "split": "videos", "backend": backend}
        loss, *got = gradients(own, **options)
        pairs = [(loss, value), *zip(got, want, strict=True)]
        factors = (1, RANKS, RANKS)
        found[f"{negatives} {backend}"] = max(
            float((a / factor - b).abs().max()) if b.numel() else 0.0
            for (a, b), factor in zip(pairs, factors, strict=True)
        )
    return found


def errors(groups) -> dict[str, str]:
    rank, z, group = dist.get_rank(), _frames(0), groups["all"]
    one = rank == 2

    def call(z=z, **options) -> Callable[[], Tensor]:
        return lambda: fastseq.scl_loss(z, z, group=group, **options)

    calls = {
        "D": call(z[..., : 4 - one]),
        "N": call(z[: 2 - one]),
        "dtype": call(z.float() if one else z),
        "options": call(temperature=0.2 if one else 0.1),
        "backend": call(backend="reference" if one else "torch"),
        "split": call(split="videos" if one else "frames"),
        "tensor": call(temperature=torch.tensor(0.1) if one else 0.1),
        "times": call(**({"t1": torch.arange(6), "t2": torch.arange(6)} if one else {})),
        "variance": call(variance=torch.tensor(10.0) if one else 10.0),
        "gradient": call(z.clone().requires_grad_() if one else z),
        "vmap": lambda: torch.vmap(lambda x: fastseq.scl_loss(x, x, group=group))(z[None]),
        "group": lambda: fastseq.scl_loss(z, z, group="all"),
        "what": call(split="time"),
        "outside": lambda: fastseq.scl_loss(z, z, group=dist.GroupMember.NON_GROUP_MEMBER),
    }
    return {name: error_of(call) for name, call in calls.items()}


def lost(groups) -> str:
    """What the others report when a rank is gone."""
    if dist.get_rank() == RANKS - 1:
        return ""
    z = _frames(0)
    return error_of(lambda: fastseq.scl_loss(z, z, group=groups["all"]))


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


FUNCTIONS = (
    *(all_cases, compiled, twice, only_one_view, far_apart, nothing, other_times, travelling),
    *(other_lengths, errors, lost),
)


def main(rank: int, store: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    groups = {name: dist.new_group(list(ranks)) for name, ranks in GROUPS.items()}
    groups = {name: group if rank in GROUPS[name] else None for name, group in groups.items()}
    results = {function.__name__: function(groups) for function in FUNCTIONS}
    torch.save(results, folder / f"{rank}.pt")
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may hang at an ordinary exit
