"""``python -m benchmarks.host``: microseconds of host time per call, without running a kernel.

For fastseq, with 128 channels: checks, allocation, autograd and Triton's launcher up to the driver,
which is replaced by one that launches nothing. For comparison, the same loss in plain PyTorch. The
tensors are so small that dispatching the operations dominates. The host time depends on neither N
nor T, except for Soft-DTW in plain PyTorch, which loops over T (480 frames here).

Measured: CPU time of one thread, in turns. Each figure is the lowest of many short loops, because
other work on the machine only adds time. No GPU is needed. The driver's own time (a few
microseconds per launch) is not included in either figure.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.case import Case, op_benchmark
from benchmarks.pretend import pretend
from benchmarks.timing import gradients
from fastseq.ops.common.dispatch import interpreting

COLUMNS = (
    *("op", "mode", "fastseq_us", "eager_us", "ratio", "launches", "eager_t", "load"),
    *("device", "torch", "triton", "python", "commit"),
)
SMALL = Case(1, 2, 8)
EAGER = {
    "scl": ("eager", SMALL),
    "soft_dtw": ("wavefront", Case(1, 480, 1)),
    "tcc": ("eager", SMALL),
    "contrastive_idm": ("eager", SMALL),
    "queue_nce": ("logits once", SMALL),
}
OPS = tuple(EAGER)  # those whose kernels have a launcher
OURS = {op: Case(8, 4, 128, "fp32" if op == "soft_dtw" else "bf16") for op in OPS}
ROUNDS, SECONDS = 40, 0.02  # loops; seconds per loop


def calls(op: str) -> dict[str, dict[str, Callable[[], object]]]:
    """Calls of fastseq and eager, forward and both, as functions without arguments."""
    module = op_benchmark(op)
    name, small = EAGER[op]
    case = OURS[op]
    ours = next(p for p in module.providers("cuda") if p.name == module.OURS["cuda"])
    eager = next(p for p in module.providers("cpu") if p.name == name)
    return {
        "fastseq": _modes(ours.build(case), module.inputs(case)),
        "eager": _modes(eager.build(small), module.inputs(small)),
    }


def _modes(fn, args) -> dict[str, Callable[[], object]]:
    return {"forward": lambda: fn(*args), "both": lambda: gradients(fn(*args), args, 1.0)}


def lowest(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds per call of each, measured in turns."""
    counts = {}
    for name, function in functions.items():
        start = time.thread_time()
        for _ in range(5):
            function()
        counts[name] = max(1, int(SECONDS / ((time.thread_time() - start) / 5)))
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.thread_time()
            for _ in range(counts[name]):
                function()
            best[name] = min(best[name], (time.thread_time() - start) / counts[name] * 1e6)
    return best


def measure(op: str, rounds: int = ROUNDS) -> list[dict[str, str]]:
    """Two rows: forward, and forward and backward."""
    torch.set_num_threads(1)
    environment = {k: v for k, v in results.environment("cpu").items() if k in COLUMNS}
    rows = []
    with pretend(90) as launches:
        found = calls(op)
        for mode in ("forward", "both"):
            found["fastseq"][mode]()  # the first call compiles
            launches.clear()
            found["fastseq"][mode]()
            count = len(launches) if op != "soft_dtw" else {"forward": 1, "both": 2}[mode]
            with pretend(90, note=False):
                us = lowest({who: found[who][mode] for who in found}, rounds)
            row = {
                "op": op,
                "mode": mode,
                "launches": count,
                "eager_t": EAGER[op][1].t,
            }
            row |= {"fastseq_us": f"{us['fastseq']:.0f}", "eager_us": f"{us['eager']:.0f}"}
            row |= {"ratio": f"{us['eager'] / us['fastseq']:.2f}"} | environment
            rows.append({key: str(value) for key, value in row.items()})
    return rows


def table(rows: list[dict[str, str]]) -> str:
    lines = [
        "| op | fastseq us: forward, both | plain PyTorch us | launches |",
        "|---|---|---|---|",
    ]
    for forward, both in zip(rows[::2], rows[1::2], strict=True):
        lines.append(
            f"| {forward['op']} | {forward['fastseq_us']}, {both['fastseq_us']} | "
            f"{forward['eager_us']}, {both['eager_us']} | {both['launches']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument(
        "--op", choices=OPS, action="append", help="op to measure; repeatable (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="number of loops (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="CSV file to write (default: none)")
    options = parser.parse_args()
    if interpreting():
        parser.error("needs Triton's compiler: unset TRITON_INTERPRET")
    rows = []
    for op in options.op or OPS:
        rows += measure(op, options.rounds)
        print(f"done: {op}", flush=True)
    print(table(rows))
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
