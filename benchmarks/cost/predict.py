"""Predicted times of the benchmark's shapes, and the times measured on a card."""

import csv
from math import ceil
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import results
from benchmarks.case import Case, op_benchmark
from benchmarks.cost import model
from benchmarks.cost.compile import Result
from benchmarks.cost.loops import Values
from benchmarks.cost.machine import CARDS, SPREAD, Card, named
from benchmarks.cost.report import KernelReport, LoopReport
from benchmarks.floors import PEAKS

_SEQUENCES = ((8, 480, 128), (4, 4096, 128))
SHAPES = {
    "scl": (*_SEQUENCES, (1, 16384, 128), (1, 65536, 128)),
    "soft_dtw": ((4, 480, 128), (32, 512, 64), (8, 16384, 128)),
    "contrastive_idm": _SEQUENCES,
    "tcc": _SEQUENCES,
    "queue_nce": ((32, 131072, 128), (512, 131072, 128)),
}
PREDICTED = {op: ("fp32",) if op == "soft_dtw" else ("bf16", "fp32") for op in SHAPES}
COLUMNS = ("op", "shape", "dtype", "mode", "card", "predicted_us", "measured_us")
MORE = ("low_us", "high_us", "launches", "bound", "compiler")


class Prediction(NamedTuple):
    us: float
    launches: int
    bound: str  # "kernels", or "memory" where memory traffic takes longer


def predict(result: Result, card_name: str) -> list[dict[str, str]]:
    """Rows of predicted.csv for every shape of a job."""
    card = named("card", CARDS, card_name)
    op = op_benchmark(result.job.op)
    rows = []
    for shape, phases in result.launches.items():
        case = Case(*shape, result.job.precision)
        for mode, found in _times(result, case, phases, card).items():
            if mode not in op.MODES:
                continue
            found = _no_less_than_memory(op, case, mode, card_name, found)
            spread = SPREAD[result.job.op]
            measured = measured_us(result.job.op, case, mode, card_name)
            rows.append(
                {
                    "op": result.job.op,
                    "shape": "x".join(map(str, shape)),
                    "dtype": case.precision,
                    "mode": mode,
                    "card": card_name,
                    "predicted_us": f"{found.us:.3g}" if found.us < 1000 else f"{found.us:.0f}",
                    "measured_us": "" if measured is None else f"{measured:.4g}",
                    "low_us": f"{found.us / spread:.2g}"
                    if found.us < 100
                    else f"{found.us / spread:.0f}",
                    "high_us": f"{found.us * spread:.2g}"
                    if found.us < 50
                    else f"{found.us * spread:.0f}",
                    "launches": str(found.launches),
                    "bound": found.bound,
                }
            )
    return rows


def _times(result: Result, case: Case, phases, card: Card) -> dict[str, Prediction]:
    if result.job.op == "soft_dtw":
        each = [(_wavefront_us(k, case, card), 1) for k in result.kernels]
    else:
        each = []
        for phase in ("forward", "backward"):
            us = sum(_launch_us(result.kernels[k], grid, case, card) for k, grid in phases[phase])
            each.append((us, len(phases[phase])))
    (forward, first), (backward, second) = each
    return {
        "forward": Prediction(forward, first, "kernels"),
        "both": Prediction(forward + backward, first + second, "kernels"),
    }


def _launch_us(kernel: KernelReport, grid: int, case: Case, card: Card) -> float:
    every, last = kernel.parts(Values(kernel.constants, case.n, case.t, case.d))
    return model.launch_us(every, grid, kernel.blocks_per_sm, card, last)


def tasks(kernel: KernelReport) -> list[model.Task]:
    """Work of the warps of a soft_dtw thread block in one phase. Code that several tasks of a loop
    share is divided evenly among them.
    """
    values = Values(kernel.constants)
    found = []
    for phases in (loop for loop in kernel.loops() if loop.name == "phases"):
        whole = [loop for loop in phases.inner if _whole(loop)]
        own = [loop for loop in whole if loop.named.trips(values)]
        rest = [loop for loop in phases.inner if loop not in whole]
        load = phases.load + sum(loop.trips(values) * loop.load for loop in rest)
        alone = phases.alone + sum(loop.trips(values) * loop.alone for loop in rest if _works(loop))
        shares = max(1, len(whole))
        found += [
            model.Task(load / shares + loop.load, alone / shares + loop.alone) for loop in own
        ] or [model.Task(load, alone)]
    # Where the compiler has split the loop over phases, its tasks are separate loops.
    inside = [id(inner) for loop in kernel.loops() for inner in loop.inner]
    found += [
        model.Task(loop.load, loop.alone)
        for loop in kernel.loops()
        if _whole(loop) and loop.named.trips(values) and id(loop) not in inside
    ]
    if not any(_whole(loop) for loop in kernel.loops()):
        raise RuntimeError(f"{kernel.kernel}: no loop is known (cost/loops.py) or has its line")
    return found


def _whole(loop: LoopReport) -> bool:
    return loop.named.role is not None and loop.named.role.whole


def _works(loop: LoopReport) -> bool:
    return loop.name != "waiting"


def _wavefront_us(kernel: KernelReport, case: Case, card: Card) -> float:
    strips, backward = ceil(case.t / 32), "backward" in kernel.kernel
    return model.wavefront_us(
        tasks(kernel),
        batch=case.n,
        strips=strips,
        # The backward forms costs and weights before the first E, and gradients after the last.
        phases=strips + (7 if backward else 2),
        # A lane is 31 columns behind the strip above. It requests the next numbers while it works
        # on the last ones: 8 at a time in the forward, 16 in the backward.
        lag=(31 + 2 * (16 if backward else 8)) / 32,
        blocks_per_sm=kernel.blocks_per_sm,
        card=card,
    )


def _no_less_than_memory(op, case: Case, mode: str, card: str, found: Prediction) -> Prediction:
    if card not in PEAKS:
        return found
    least = op.work(case, mode).moved / PEAKS[card].memory * 1e6
    return found if found.us >= least else Prediction(least, found.launches, "memory")


def measured_us(
    op: str, case: Case, mode: str, card: str, folder: Path = results.FOLDER
) -> float | None:
    """Measured times of fastseq, from results/<device>/<op>.csv of that card."""
    ours = op_benchmark(op).OURS["cuda"]
    want = {"device": card, "n": str(case.n), "t": str(case.t), "d": str(case.d)}
    want |= {"precision": case.precision, "mode": mode, "provider": ours}
    for path in sorted(folder.glob(f"*/{op}.csv")):
        for row in results.read(path):
            if all(row[key] == value for key, value in want.items()) and row["median_ms"]:
                return 1e3 * float(row["median_ms"])
    return None


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def error(rows: list[dict[str, str]]) -> str:
    """One sentence on the ratio of measurements to predictions; empty without measurements."""
    off = [float(r["measured_us"]) / float(r["predicted_us"]) for r in rows if r["measured_us"]]
    if not off:
        return ""
    worst = max(off, key=lambda ratio: max(ratio, 1 / ratio))
    return (
        f"{len(off)} cases measured: measured over predicted {median(off):.2f} in the median, "
        f"{worst:.2f} at worst."
    )
