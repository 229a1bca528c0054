"""Phase bench: ``python -m benchmarks.gpu.bench GROUP ...`` measures the most important cases
first.

A case is measured as by ``python -m benchmarks.run``: checked, then timed in turns with the peers;
its rows are merged into <device>/<op>.csv. Each group is a process (in a rehearsal, one process
runs all): "first" (scl_loss in bf16), "soft_dtw" (whose thread blocks wait for each other), "rest".
``bench.py compile K OF`` compiles in advance.
"""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch

from benchmarks import results
from benchmarks.case import Case, op_benchmark
from benchmarks.gate import matmul_precision
from benchmarks.gpu import predictions, problems, record
from benchmarks.run import run_case
from benchmarks.timing import elapsed


class Wanted(NamedTuple):
    group: str
    op: str
    shape: tuple[int, int, int]
    precision: str
    peers: tuple[str, ...] = ()
    needs_s: float = 4.0


PLAN = [
    Wanted("first", "scl", (8, 480, 128), "bf16"),
    Wanted("first", "scl", (4, 4096, 128), "bf16"),
    Wanted("first", "scl", (1, 16384, 128), "bf16"),
    Wanted("first", "scl", (1, 65536, 128), "bf16", needs_s=8),
    Wanted("soft_dtw", "soft_dtw", (4, 480, 128), "fp32"),
    Wanted("soft_dtw", "soft_dtw", (32, 512, 64), "fp32"),
    Wanted("soft_dtw", "soft_dtw", (8, 16384, 128), "fp32", needs_s=15),
    Wanted("rest", "contrastive_idm", (8, 480, 128), "bf16"),
    Wanted("rest", "tcc", (8, 480, 128), "bf16"),
    Wanted("rest", "queue_nce", (32, 131072, 128), "bf16"),
    Wanted("rest", "contrastive_idm", (4, 4096, 128), "bf16"),
    Wanted("rest", "tcc", (4, 4096, 128), "bf16"),
    Wanted("rest", "queue_nce", (512, 131072, 128), "bf16"),
    Wanted("rest", "scl", (4, 4096, 128), "fp32"),
    Wanted("rest", "scl", (8, 480, 128), "bf16", ("eager",)),
    Wanted("rest", "scl", (4, 4096, 128), "bf16", ("eager",)),
    Wanted("rest", "scl_identity", (1, 65536, 384), "bf16", ("memeff",), 15),
    # Each compilation by torch.compile takes most of a minute.
    Wanted("rest", "scl", (4, 4096, 128), "bf16", ("torch.compile", "FlexAttention"), 50),
]
DRY_PLAN = [
    Wanted("first", "scl", (1, 9, 16), "fp32", ("eager",)),
    # On a CPU soft_dtw uses numba, which compiles for half a minute.
    Wanted("soft_dtw", "contrastive_idm", (1, 9, 16), "fp32"),
    Wanted("rest", "queue_nce", (5, 70, 16), "fp32"),
]
TIMING_S = 0.6  # per case, plus the same per peer


def plan() -> list[Wanted]:
    return DRY_PLAN if record.dry() else PLAN


def jobs(group: str) -> Iterator[record.Job]:
    if group == "rest":
        yield record.Job("ceilings", ceilings)
    for wanted in plan():
        if wanted.group == group:
            case = Case(*wanted.shape, wanted.precision, record.device())
            name = " ".join([wanted.op, str(case), *(f"vs {peer}" for peer in wanted.peers)])
            yield record.Job(name, partial(measure, name, wanted, case), wanted.needs_s)


def measure(name: str, wanted: Wanted, case: Case) -> None:
    ours = op_benchmark(wanted.op).OURS[case.device]
    rows, wrong = run_case(
        wanted.op,
        case,
        record.folder("RESULTS"),
        budget_s=0.01 if record.dry() else TIMING_S * (1 + len(wanted.peers)),
        names=[ours, *wanted.peers],
        memory=not record.dry(),  # on a CPU each one starts a process
    )
    times = {(row["provider"], row["mode"]): row for row in rows}
    both = times[ours, "both"]
    fields = {"op": wanted.op, "shape": list(wanted.shape), "precision": case.precision}
    for mode in ("forward", "both"):
        if times.get((ours, mode), {}).get("median_ms"):
            fields[f"{mode}_us"] = round(float(times[ours, mode]["median_ms"]) * 1e3, 1)
    if both.get("wall_ms"):
        fields["wall_us"] = round(float(both["wall_ms"]) * 1e3, 1)
    fields["predicted_us"] = predictions.microseconds(wanted.op, case, "both", both["device"])
    for key in ("timer", "iqr_ms", "percent_of_floor", "peak_mb", "gradient_error"):
        fields[key] = both.get(key, "")
    for peer in wanted.peers:
        row = times.get((peer, "both"), {})
        fields[peer] = f"{row['ratio']}x" if row.get("ratio") else row.get("note", "")
    fields["note"] = "WRONG: " + "; ".join(wrong) if wrong else ""
    kept = {key: value for key, value in fields.items() if value != ""}
    record.say("bench", name, ok=not wrong, **kept)
    if case.device == "cuda":
        torch.cuda.empty_cache()


def ceilings() -> None:
    """Rates of this card, for comparison: bf16 products of random matrices, and copies."""
    if record.dry():
        record.say("bench", "ceilings", ok=None, error="a rehearsal")
        return
    size, count = 8192, 1 << 29
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b, c = torch.randn_like(a), torch.empty_like(a)
    x = torch.randn(count, device="cuda")
    y = torch.empty_like(x)
    rates = {}
    calls = {
        "tflops": (partial(torch.mm, a, b, out=c), 2e-12 * size**3),
        "tb_s": (partial(y.copy_, x), 8e-12 * count),
    }
    for name, (run, work) in calls.items():
        run()
        rates[name] = round(work / sorted(elapsed(run) for _ in range(15))[7], 2)
    record.say("bench", "ceilings", **rates)


def compile_part(part: int, of: int) -> None:
    """Compiles the kernels of the plan into Triton's cache, once for each D and dtype; T does not
    matter.
    """
    kinds = dict.fromkeys((w.op, w.shape[2], w.precision) for w in plan() if w.op != "soft_dtw")
    tiny = [(op, (*shape, d), p) for op, d, p in kinds for shape in problems.TINY[op]]
    for op, shape, precision in tiny[part::of]:
        case = problems.case(op, shape, precision)
        try:
            with matmul_precision(case):
                args = op_benchmark(op).inputs(case)
                problems.loss_and_gradients(problems.ours(op, case), args, case.upstream)
            problems.synchronize()
        except Exception as error:  # the bench fails at it again and reports it
            print(f"{op} {case}: {type(error).__name__}: {str(error)[:200]}", flush=True)


def main(argv: list[str]) -> None:
    if argv[0] == "compile":
        compile_part(int(argv[1]), int(argv[2]))
    else:
        results.environment(record.device())  # the load before this run adds to it
        record.attempt("bench", chain.from_iterable(map(jobs, argv)))


if __name__ == "__main__":
    main(sys.argv[1:])
