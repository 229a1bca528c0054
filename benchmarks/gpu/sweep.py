"""Phase sweep: ``python -m benchmarks.gpu.sweep``, tiles other than the shipped ones.

Variants of scl_loss's two kernels at (4, 4096, 128) bf16, and a few of the other ops, are compared
with the shipped tiles and timed in turns with them. ``sweep.py compile K OF`` compiles a part of
them into Triton's cache, on tiny problems, so that the GPU does not wait for a compiler.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.case import Case, op_benchmark
from benchmarks.gate import relative
from benchmarks.gpu import environment, problems, record
from benchmarks.timing import CPUCall, GPUCall, interleave, paired_ratio
from fastseq.ops.common import launch

COLUMNS = (
    *("op", "n", "t", "d", "precision", "kernel", "change", "mode", "us", "of_default", "timer"),
    *("registers", "spills", "shared", "loss_difference", "gradient_difference", "note"),
    *environment.NAMED,
)
# Largest relative difference to the result of the shipped tiles; more is a bug, not reordering.
ALLOWED_LOSS, ALLOWED_GRADIENT = 1e-4, 1e-2
TIMING_S = 0.3


class Variant(NamedTuple):
    op: str
    shape: tuple[int, int, int]
    kernels: tuple[str, ...]  # kernels whose tiles change; () where the op has one
    # Replaced fields of the op's Tiles; empty: the shipped tiles.
    change: Mapping[str, int | None] = MappingProxyType({})
    times: bool = True  # False: scl_loss without timestamps, which needs no search for near tiles

    @property
    def mode(self) -> str:
        """The pass that is timed: the one to which the kernel belongs."""
        only = {("stats",): "forward", ("grad",): "backward"}
        return only.get(self.kernels, "both") if self.op == "scl" else "both"

    def __str__(self) -> str:
        what = " ".join(f"{key}={value}" for key, value in self.change.items())
        return what or ("shipped" if self.times else "no times")


def _tiles(rows: int, columns: int, warps: int, stages: int, registers: int | None) -> dict:
    tile = {"rows": rows, "columns": columns, "warps": warps, "stages": stages}
    return tile | {"registers": registers}


SCL = {
    "stats": [
        _tiles(64, 32, 4, 3, 168),
        _tiles(64, 64, 4, 3, 255),
        _tiles(128, 64, 8, 2, 128),
        _tiles(128, 64, 8, 4, 128),
        _tiles(128, 64, 8, 3, 255),
        _tiles(128, 32, 8, 3, 128),
        _tiles(64, 64, 8, 3, None),
        _tiles(128, 128, 8, 3, 255),
        _tiles(64, 32, 4, 4, 168),
    ],
    "grad": [
        _tiles(64, 64, 4, 3, 255),
        _tiles(128, 64, 8, 3, 255),
        _tiles(64, 32, 4, 4, 255),
        _tiles(64, 32, 4, 2, 255),
        _tiles(64, 64, 4, 2, 255),
        _tiles(128, 64, 8, 2, 255),
        _tiles(64, 64, 8, 3, 255),
        _tiles(128, 32, 8, 3, 255),
        _tiles(64, 32, 4, 3, 168),
    ],
}
OTHERS = [
    Variant("queue_nce", (32, 131072, 128), (), {"stages": 3}),
    Variant("contrastive_idm", (4, 4096, 128), ("grad",), {"columns": 32}),
    Variant("queue_nce", (512, 131072, 128), (), {"columns": 128}),
    Variant("contrastive_idm", (4, 4096, 128), ("grad",), {"stages": 2}),
    Variant("tcc", (8, 480, 128), ("nearest", "moments", "pull"), {"columns": 32}),
    Variant("tcc", (4, 4096, 128), ("keys", "through"), {"columns": 32}),
]


def variants() -> list[Variant]:
    """Both kernels in turns, so that both are covered when time runs out."""
    shape = (4, 4096, 128)
    if record.dry():
        change = {"rows": 32, "columns": 32}
        scl = [Variant("scl", shape, (kernel,), change) for kernel in SCL]
        return [Variant("scl", shape, ("stats",)), *scl, Variant("queue_nce", shape, (), change)]
    every = {name: [{}, *changes] for name, changes in SCL.items()}
    pairs = zip(*([Variant("scl", shape, (k,), c) for c in every[k]] for k in every), strict=True)
    without = [Variant("scl", shape, (kernel,), times=False) for kernel in SCL]
    return [*(variant for pair in pairs for variant in pair), *without, *OTHERS]


@contextmanager
def using(variant: Variant) -> Iterator[None]:
    """Make the op's launcher use the variant's tiles; cached choices are cleared before and
    after.
    """
    module = importlib.import_module(f"fastseq.ops.{variant.op}.triton")
    forget = getattr(launch, "clear", lambda: None)
    shipped = module.tiles

    def tiles(*args: Any) -> Any:
        tile = shipped(*args)
        if variant.kernels and args[0] not in variant.kernels:
            return tile
        return tile._replace(**variant.change)

    module.tiles = tiles
    forget()
    try:
        yield
    finally:
        module.tiles = shipped
        forget()


class Problem:
    """Inputs of a shape, and the result with the shipped tiles."""

    def __init__(self, op: str, case: Case, times: bool) -> None:
        self.fn, args = problems.ours(op, case), op_benchmark(op).inputs(case)
        self.case, self.args = case, args if times else args[:2]
        self.result, self.call = self.run(), self.timer()

    def run(self) -> tuple[Tensor, ...]:
        return problems.loss_and_gradients(self.fn, self.args, self.case.upstream)

    def timer(self) -> CPUCall | GPUCall:
        if self.case.device == "cpu":
            return CPUCall(self.fn, self.args, self.case.upstream)
        return GPUCall(self.fn, [self.args], self.case.upstream, graph=True)


@lru_cache(maxsize=2)
def problem(op: str, case: Case, times: bool = True) -> Problem:
    return Problem(op, case, times)


def compiled(variant: Variant) -> list[Any]:
    """Binaries that Triton has compiled of the one kernel that changes, newest last; Triton has no
    public interface for this. Empty for other ops than scl, and without a GPU.
    """
    if variant.op != "scl":
        return []
    kernels = importlib.import_module("fastseq.ops.scl.triton_kernels")
    kernel = getattr(kernels, f"scl_{variant.kernels[0]}_kernel", None)
    caches = getattr(kernel, "device_caches", None)
    if not caches or not torch.cuda.is_available():
        return []
    return list(caches[torch.cuda.current_device()][0].values())


def measure(name: str, variant: Variant, case: Case, path: Path) -> None:
    shipped = problem(variant.op, case)
    mine = shipped if variant.times else problem(variant.op, case, False)
    named = results.environment(case.device)
    row = {"op": variant.op, "kernel": " ".join(variant.kernels), "change": str(variant)}
    row |= dict(zip(("n", "t", "d", "precision"), case[:4], strict=True)) | {"mode": variant.mode}
    row |= {"card": named["device"]} | {key: named[key] for key in environment.NAMED[1:]}
    try:
        known = len(compiled(variant))
        with using(variant):
            got, call = mine.run(), mine.timer()
            problems.synchronize()
            found = compiled(variant)
            # The shipped ones are compiled already.
            if len(found) > known or not variant.change:
                row |= resources(found[-1]) if found else {}
        if variant.times:
            loss, *grads = (relative(a, b) for a, b in zip(got, shipped.result, strict=True))
            worst = float(torch.tensor(grads, dtype=torch.float64).max())
            row |= {"loss_difference": f"{loss:.1e}", "gradient_difference": f"{worst:.1e}"}
            if not (loss <= ALLOWED_LOSS and worst <= ALLOWED_GRADIENT):
                row["note"] = "WRONG"
        row["timer"] = getattr(call, "timer", "perf_counter")
        calls = {"shipped": shipped.call, "variant": _under(variant, call)}
        rounds = {"min_rounds": 1} if record.dry() else {}
        samples = interleave(calls, TIMING_S, ("shipped",), **rounds)
        ours, theirs = ([s[variant.mode] for s in samples[who]] for who in calls)
        row["us"] = f"{median(theirs) * 1e6:.1f}"
        row["of_default"] = f"{paired_ratio(theirs, ours):.3f}"
    except Exception as error:
        row["note"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise
    finally:
        record.append_row(path, COLUMNS, row)
    shown = ("us", "of_default", "registers", "spills", "gradient_difference", "note")
    fields = {key: row[key] for key in shown if row.get(key, "") != ""}
    fields |= {"what": what(variant, case), "change": str(variant), "mode": variant.mode}
    record.say("sweep", name, ok=row.get("note") != "WRONG", **fields)


def what(variant: Variant, case: Case) -> str:
    return " ".join([variant.op, *variant.kernels, str(case)])


def _under(variant: Variant, call: Callable) -> Callable:
    """Plain calls choose their tiles each time; a captured graph contains them."""
    if getattr(call, "timer", "") == "graph":
        return call

    def sample() -> dict[str, float]:
        with using(variant):
            if isinstance(call, GPUCall):
                call.run["both"]()  # choose the tiles again, outside the timing
            return call()

    return sample


def resources(kernel: Any) -> dict[str, Any]:
    shared = getattr(getattr(kernel, "metadata", None), "shared", "")
    registers, spills = getattr(kernel, "n_regs", ""), getattr(kernel, "n_spills", "")
    return {"registers": registers, "spills": spills, "shared": shared}


def jobs(path: Path) -> Iterator[record.Job]:
    for variant in variants():
        case = problems.case(variant.op, variant.shape, "bf16")
        name = f"{what(variant, case)} {variant}"
        yield record.Job(name, partial(measure, name, variant, case, path))


def compile_part(part: int, of: int) -> None:
    every = dict.fromkeys((v.op, v.kernels, tuple(v.change.items()), v.times) for v in variants())
    tiny = [(*each, shape) for each in every for shape in problems.TINY[each[0]]]
    for op, kernels, change, times, shape in tiny[part::of]:
        if record.left() < 5:
            return
        case = problems.case(op, (*shape, problems.D), "bf16")
        variant = Variant(op, case[:3], kernels, dict(change), times)
        try:
            with using(variant):
                args = op_benchmark(op).inputs(case)
                args = args if times else args[:2]
                problems.loss_and_gradients(problems.ours(op, case), args, case.upstream)
                problems.synchronize()
        except Exception as error:  # the sweep fails at it again and reports it
            print(f"{op} {variant}: {type(error).__name__}: {str(error)[:200]}", flush=True)


def main(argv: list[str]) -> None:
    if argv[:1] == ["compile"]:
        compile_part(int(argv[1]), int(argv[2]))
        return
    path = record.folder("RESULTS") / results.slug(record.device()) / "sweep.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    record.attempt("sweep", jobs(path))


if __name__ == "__main__":
    main(sys.argv[1:])
