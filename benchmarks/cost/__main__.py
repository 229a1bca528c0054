"""``python -m benchmarks.cost``: static analysis of the compiled kernels, without a GPU.

Without options, every kernel is compiled at every configuration shipped, and results/offline-sm_90/
is written. With --op alone, that op's part of it is written. Any other choice prints its table and
writes nothing: --op scl --kernel grad --dtype bf16 --channels 256 --set
rows=128,columns=64,warps=8.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path

from benchmarks import results
from benchmarks.case import PRECISIONS
from benchmarks.cost import page, predict, table
from benchmarks.cost.compile import MODES, OPS, Job, Result, environment, run, tile_fields
from benchmarks.cost.machine import ARCHITECTURES, CARDS, CONSTANTS, named

CARD = "NVIDIA H100 80GB HBM3"


def shipped(ops: tuple[str, ...], arch: int) -> list[Job]:
    """D = 128 in every precision and mode, D = 64 in every precision. Slow compilations come
    first.
    """
    jobs = []
    for op in ops:
        shapes = predict.SHAPES[op]
        for precision in ("fp32",) if op == "soft_dtw" else ("fp32", "tf32", "bf16", "fp16"):
            default, *others = MODES[op]
            for d in (128, 64):
                wanted = precision in predict.PREDICTED[op]
                some = tuple(s for s in shapes if s[2] == d and wanted)
                jobs.append(Job(op, precision, d, default, arch, shapes=some))
            jobs += [Job(op, precision, 128, mode, arch) for mode in others]
    return sorted(jobs, key=lambda job: (job.op != "tcc", job.precision != "fp32"))


def run_all(jobs: list[Job], processes: int) -> list[Result]:
    """Compile in child processes, which run without the interpreter. Returns results in the order
    of the jobs.
    """
    environment()
    spawn = multiprocessing.get_context("spawn")
    done: dict[Job, Result] = {}
    failed = []
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=spawn) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in progress(as_completed(futures), len(jobs)):
            job = futures[future]
            try:
                done[job] = future.result()
            except Exception as error:  # one failed job must not lose the others
                failed.append(f"{job}: {type(error).__name__}: {str(error)[-2000:]}")
    if failed:
        print("\n".join(failed))
    if not done:
        raise SystemExit(1)
    return [done[job] for job in jobs if job in done]


def progress(some: Iterator, total: int) -> Iterator:
    """Shows the remaining time: as a bar where tqdm is installed, otherwise in a line at each
    tenth.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        begin = time.monotonic()
        for k, one in enumerate(some, 1):
            yield one
            if k * 10 // total != (k - 1) * 10 // total:
                left = (time.monotonic() - begin) / k * (total - k)
                print(f"{k} of {total} compiled, {left:.0f} s left", flush=True)
    else:
        yield from tqdm(some, total=total, unit="configuration")


def compiler() -> str:
    return f"triton {metadata.version('triton')}"


def parse_tiles(text: str) -> tuple[tuple[str, int | None], ...]:
    found = []
    for word in text.split(","):
        name, equals, value = word.partition("=")
        if not equals or not (value.isdigit() or value == "None"):
            raise argparse.ArgumentTypeError(
                f"expected name=number like rows=128,warps=8, got {word!r}"
            )
        found.append((name, None if value == "None" else int(value)))
    return tuple(found)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--op", choices=OPS)
    p.add_argument("--kernel", default="", help="part of the kernel's name, such as grad")
    p.add_argument("--dtype", choices=list(PRECISIONS), help="tf32: fp32 at precision high")
    p.add_argument("--channels", type=int)
    p.add_argument("--mode", help="online (scl), direct (contrastive_idm), classification (tcc)")
    p.add_argument("--arch", type=int, help="90 for sm_90 (default: that of the card)")
    p.add_argument("--set", type=parse_tiles, default=(), help="tiles: rows=128,columns=64,warps=8")
    p.add_argument("--card", default=CARD, help=f"card to predict for: {', '.join(CARDS)}")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    p.add_argument("--results", type=Path, default=results.FOLDER)
    return p


def one(options: argparse.Namespace) -> Job:
    """The configuration that the options describe; raises ValueError if there is none."""
    if not options.op:
        raise ValueError(f"which op? Add --op, one of {', '.join(OPS)}")
    mode = options.mode or next(iter(MODES[options.op]))
    named(f"mode of {options.op}", MODES[options.op], mode)
    if options.set:
        if options.op == "soft_dtw":
            raise ValueError("soft_dtw's tiles are fixed in its CUDA source: leave out --set")
        known = tile_fields(options.op)
        for name, _ in options.set:
            named(f"tile value of {options.op}", dict.fromkeys(known), name)
    dtype = options.dtype or ("fp32" if options.op == "soft_dtw" else "bf16")
    if options.op == "soft_dtw" and dtype != "fp32":
        raise ValueError(f"soft_dtw is reported in fp32 only, got --dtype {dtype}")
    channels = options.channels or 128
    if channels < 1:
        raise ValueError(f"expected a positive number of channels, got {channels}")
    shapes = tuple(s for s in predict.SHAPES[options.op] if s[2] == channels)
    return Job(options.op, dtype, channels, mode, options.arch, options.kernel, options.set, shapes)


def print_one(job: Job, card: str) -> None:
    environment()
    result = run(job)
    lines = table.rows([result], compiler())
    chosen = [row for row in lines if job.kernel in row["kernel"]]
    if not chosen:
        known = ", ".join(dict.fromkeys(row["kernel"] for row in lines))
        raise ValueError(
            result.note
            if not lines
            else f"kernel {job.kernel!r} is not known: expected a part of {known}"
        )
    print(table.text(chosen, classes=True))
    if CARDS[card].arch == job.arch:
        print(f"\npredicted for {card}, microseconds:")
        for row in predict.predict(result, card):
            print(f"  {row['shape']:<14} {row['mode']:<8} {row['predicted_us']}")
        print("\n" + "\n".join(f"  {n} = {v:g}: {what}" for n, (v, what) in CONSTANTS.items()))


def write_all(ops: tuple[str, ...], arch: int, card: str, processes: int, folder: Path) -> None:
    begin = time.monotonic()
    done = run_all(shipped(ops, arch), processes)
    folder = folder / f"offline-sm_{arch}"
    rows = [row for row in predict.read(folder / "predicted.csv") if row["op"] not in ops]
    for op in ops:
        mine = sorted((r for r in done if r.job.op == op), key=_by_configuration)
        lines = table.rows(mine, compiler())
        for note in dict.fromkeys(r.note for r in mine if r.note and not r.kernels):
            print(note)
        if lines:
            table.write(folder / f"{op}.csv", table.COLUMNS, lines)
        if CARDS[card].arch == arch:
            rows += [
                row | {"compiler": result.note or compiler()}
                for result in mine
                if result.kernels
                for row in predict.predict(result, card)
            ]
    rows.sort(key=lambda row: (OPS.index(row["op"]), row["dtype"], _size(row)))
    table.write(folder / "predicted.csv", (*predict.COLUMNS, *predict.MORE), rows)
    print(page.write(folder, arch))
    if folder == results.FOLDER / "offline-sm_90" and card == CARD:
        page.write_quotes(folder)
    print(f"{time.monotonic() - begin:.0f} s with {processes} processes")


def _size(row: dict[str, str]) -> float:
    n, t, _ = map(int, row["shape"].split("x"))
    return n * t * t


def _by_configuration(result: Result) -> tuple[int, int, int]:
    """Ordered by how often readers look for them: halves, D = 128 and the default mode first."""
    job = result.job
    return list(PRECISIONS).index(job.precision), -job.channels, list(MODES[job.op]).index(job.mode)


def main(arguments: list[str] | None = None) -> None:
    p = parser()
    options = p.parse_args(arguments)
    try:
        card = named("card", CARDS, options.card)
        options.arch = options.arch or card.arch
        named("architecture", ARCHITECTURES, options.arch)
        chosen = (options.kernel, options.dtype, options.channels, options.mode, options.set)
        if any(chosen):
            print_one(one(options), options.card)
            return
    except ValueError as error:
        p.error(str(error))
    ops = (options.op,) if options.op else OPS
    write_all(ops, options.arch, options.card, max(1, options.jobs), options.results)


if __name__ == "__main__":
    main()
