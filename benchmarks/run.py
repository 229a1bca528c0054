"""``python -m benchmarks.run --op scl``: check every provider, time them in turns, write the CSV.

The same without pytest; ``pytest benchmarks/`` calls run_case() for each case.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch

from benchmarks import results
from benchmarks.case import PRECISIONS, Case, OpBenchmark, Unavailable, build, op_benchmark
from benchmarks.floors import GEMM_FLOP, PEAKS, Gemm, floor_seconds
from benchmarks.gate import WrongResult, gate, matmul_precision
from benchmarks.memory import cpu_peak_mb, cuda_peak_mb
from benchmarks.timing import (
    CPUCall,
    GPUCall,
    interleave,
    paired_ratio,
    quartile_range,
    rotation,
)
from benchmarks.worker import Worker

OPS = ("scl", "soft_dtw", "drop_dtw", "gta", "gta_ae2", "tcc", "contrastive_idm", "queue_nce")
OPS += ("sinkhorn", "scl_identity")
GEMM = "GEMM"


def choose_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def cases(op: OpBenchmark, device: str) -> list[Case]:
    return [
        Case(*shape, precision, device)
        for precision in op.PRECISIONS[device]
        for shape in op.SHAPES[device]
    ]


def check(
    op: OpBenchmark, case: Case, names: list[str] | None = None
) -> tuple[dict[str, Callable | Worker], dict[str, float], dict[str, str], list[str]]:
    """Return the functions that passed the gate, their gradient errors, the reasons why others are
    missing, and the wrong results.
    """
    # Every case compiles the same code; without the reset, torch.compile would fall back to eager
    # at the ninth. Where nothing was compiled, the reset alone would import the compiler, which
    # takes seconds.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    args = op.inputs(case)
    want = op.expected(case, args)
    fns, errors, notes, wrong = {}, {}, {}, []
    for provider in op.providers(case.device):
        if names and provider.name not in names:
            continue
        try:
            if provider.own_process and case.device == "cpu":
                fns[provider.name] = worker = Worker(op.__name__, provider.name, case)
                errors[provider.name] = worker.gradient_error
            else:
                fn = build(provider, case)
                errors[provider.name] = gate(provider, case, fn, args, want)
                fns[provider.name] = fn
        except Unavailable as error:
            notes[provider.name] = str(error)
        except WrongResult as error:
            notes[provider.name] = "wrong result, not timed"
            wrong.append(str(error))
        except Exception as error:
            # A peer that does not run here is a finding; if fastseq does not run, the benchmark
            # fails.
            if provider.name == op.OURS[case.device]:
                raise
            first = (str(error).strip().splitlines() or [""])[0]
            notes[provider.name] = f"does not run: {type(error).__name__}: {first[:120]}"
        if case.device == "cuda":
            torch.cuda.empty_cache()
    return fns, errors, notes, wrong


def run_case(
    op_name: str,
    case: Case,
    folder: Path = results.FOLDER,
    *,
    budget_s: float = 12.0,
    names: list[str] | None = None,
    memory: bool = True,
) -> tuple[list[dict[str, str]], list[str]]:
    """Measure a case and merge its rows into the CSV. Also returns the providers that failed the
    gate.
    """
    op = op_benchmark(op_name)
    results.environment(case.device)  # the load before this run adds to it
    with matmul_precision(case), ExitStack() as stack:
        fns, errors, notes, wrong = check(op, case, names)
        for worker in (fn for fn in fns.values() if isinstance(fn, Worker)):
            stack.callback(worker.close)
        calls, samples = {}, {}
        # If fastseq's result is wrong, nothing is compared with it.
        timed = case.pairs <= op.TIMED_PAIRS[case.device] and op.OURS[case.device] in fns
        if timed:
            calls = _calls(op, case, fns)
            samples = interleave(calls, budget_s, (op.OURS[case.device], GEMM))
        peaks = _peaks(op_name, op, case, fns, notes) if memory else {}
        rows = _rows(op_name, op, case, calls, samples, errors, notes, peaks)
    results.merge(folder / results.slug(case.device) / f"{op_name}.csv", rows)
    return rows, wrong


def _calls(op: OpBenchmark, case: Case, fns: dict) -> dict[str, Callable]:
    ours = op.OURS[case.device]
    order = [ours, *(name for name in fns if name != ours)]
    if case.device == "cpu":
        args = op.inputs(case)
        calls = {name: CPUCall(fns[name], args, case.upstream) for name in order}
        calls |= {name: fn for name, fn in fns.items() if isinstance(fn, Worker)}
        return calls | {GEMM: Gemm()}
    per_call = 4 * case.n * case.t * case.d * case.dtype.itemsize
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    sets = [op.inputs(case, seed) for seed in range(rotation(per_call, cache, 100))]
    graph = {p.name: p.graph for p in op.providers(case.device)}
    return {name: GPUCall(fns[name], list(sets), case.upstream, graph[name]) for name in order}


def _peaks(op_name: str, op: OpBenchmark, case: Case, fns: dict, notes: dict) -> dict[str, float]:
    peaks = {}
    for name in fns:
        try:
            if case.device == "cuda":
                peaks[name] = cuda_peak_mb(fns[name], op.inputs(case), case.upstream)
            else:
                peaks[name] = cpu_peak_mb(op_name, case, name)
        except RuntimeError as error:
            if name == op.OURS[case.device]:
                raise
            notes[name] = str(error)[:160]
    return peaks


def _floor(op: OpBenchmark, case: Case, mode: str, samples: dict) -> float | None:
    """Floor in seconds: from the device's peaks, or on the CPU from products timed in the same
    rounds.
    """
    if case.device == "cpu":
        rate = GEMM_FLOP / median(s["both"] for s in samples[GEMM])
        return op.least_flop(case, mode) / rate
    peaks = PEAKS.get(results.device_name(case.device))
    return floor_seconds(op.work(case, mode), case.precision, peaks) if peaks else None


def _rows(op_name, op, case, calls, samples, errors, notes, peaks) -> list[dict[str, str]]:
    common = {"op": op_name, **results.environment(case.device)}
    common |= {"n": case.n, "t": case.t, "d": case.d, "precision": case.precision}
    rows = []
    for name in dict.fromkeys([*errors, *notes]):
        for mode in op.MODES:
            row = common | {"provider": name, "mode": mode, "note": notes.get(name, "")}
            if name in errors:
                row["gradient_error"] = f"{errors[name]:.1e}"
            if name in peaks and mode == "both":
                row["peak_mb"] = f"{peaks[name]:.1f}"
            if name in samples:
                floor = _floor(op, case, mode, samples)
                ours = [s[mode] for s in samples[op.OURS[case.device]]]
                row |= _time_columns([s[mode] for s in samples[name]], ours, floor)
                row["timer"] = getattr(calls[name], "timer", "perf_counter")
                if mode == "both" and case.device == "cuda":
                    row["wall_ms"] = f"{calls[name].wall() * 1e3:.4g}"
            rows.append({key: str(value) for key, value in row.items()})
    return rows


def _time_columns(times: list[float], ours: list[float], floor: float | None) -> dict[str, str]:
    middle = median(times)
    columns = {
        "median_ms": f"{middle * 1e3:.4g}",
        "iqr_ms": f"{quartile_range(times) * 1e3:.2g}",
        "samples": len(times),
        "ratio": f"{paired_ratio(times, ours):.3g}",
    }
    if floor is not None:
        columns["floor_ms"] = f"{floor * 1e3:.4g}"
        columns["percent_of_floor"] = f"{100 * floor / middle:.0f}"
    return columns


def parse_shape(text: str) -> tuple[int, int, int]:
    try:
        n, t, d = (int(x) for x in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected N,T,D like 4,4096,128, got {text!r}") from None
    return n, t, d


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--op", choices=OPS, default="scl")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=choose_device())
    parser.add_argument("--shape", type=parse_shape, action="append", help="N,T,D; repeatable")
    parser.add_argument("--precision", choices=list(PRECISIONS), action="append")
    parser.add_argument(
        "--provider", action="append", help="repeatable; fastseq is always included"
    )
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of timing per case")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    options = parser.parse_args()
    op = op_benchmark(options.op)
    names = options.provider and [op.OURS[options.device], *options.provider]
    shapes = options.shape or op.SHAPES[options.device]
    failed = []
    print(f"{results.device_name(options.device)}, load {os.getloadavg()[0]:.2f}")
    for precision in options.precision or op.PRECISIONS[options.device]:
        rows = []
        for shape in shapes:
            case = Case(*shape, precision, options.device)
            new, wrong = run_case(
                options.op,
                case,
                options.results,
                budget_s=options.budget,
                names=names,
                memory=not options.no_memory,
            )
            rows += new
            failed += wrong
            print(f"done: {case}", flush=True)
        print(results.table([dict.fromkeys(results.COLUMNS, "") | row for row in rows]))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
