"""The demo: `python -m training.demo` renders videos, trains CARL on them, evaluates, reports.

OUT/videos gets 104 short H.264 files with their labels, OUT/run the trained model, evaluation.json
and report.html. Labels are used for evaluation only. An earlier demo in OUT is replaced.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from training.support.command import run_command

RECIPE = "recipes/carl_demo.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace recipe values")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="default: %(default)s")
    parser.add_argument("--clutter", action="store_true", help="moving shapes behind the actor")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train with seeds 0 to N-1, each on videos rendered with that seed, and print mean "
        "and spread (default: 1)",
    )
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    return run_command(lambda: _run(options), needs="the demo")


def _run(options: argparse.Namespace) -> int:
    import av  # noqa: F401  only now, so that --help need not wait for it and for torch

    from training import evaluate, prepare, report, train
    from training.demo.render import describe, render_dataset
    from training.recipe.load import load_config

    load_config(RECIPE, options.overrides)  # ConfigError before the videos are rendered
    began = time.perf_counter()
    evaluations = []
    for seed in range(options.seeds):
        videos = options.out / ("videos" if seed == 0 else f"videos_{seed}")
        run = options.out / ("run" if seed == 0 else f"run_{seed}")
        title = f" (seed {seed})" if options.seeds > 1 else ""
        with step(f"1/5 render videos{title}"):
            print(describe(render_dataset(videos, seed=seed, clutter=options.clutter)))
        arguments = [RECIPE, f"data.folder={videos}", f"train.run_dir={run}"]
        arguments += [f"train.seed={seed}", *options.overrides, "--overwrite"]
        steps: list[tuple[str, Callable[[list[str]], int], list[str]]] = [
            ("2/5 check and index them", prepare.main, [str(videos)]),
            ("3/5 train CARL", train.main, arguments),
            ("4/5 evaluate", evaluate.main, [str(run)]),
            ("5/5 write the report", report.main, [str(run)]),
        ]
        for name, command, words in steps:
            with step(name + title):
                status = command(words)
            if status:
                return status
        evaluations.append(json.loads((run / "evaluation.json").read_text()))
    if options.seeds > 1:
        print(f"\nmean and standard deviation over {options.seeds} seeds\n")
        print(spread_table(evaluations))
    print(f"\nall done in {(time.perf_counter() - began) / 60:.1f} minutes")
    print(f"open {options.out / 'run' / 'report.html'}")
    return 0


class step:
    """Announces a step and tells how long it took."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        print(f"\n== {self.name}", flush=True)
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        print(f"   {time.perf_counter() - self.began:.0f} s", flush=True)


def spread_table(evaluations: Sequence[dict]) -> str:
    """Mean and standard deviation over runs of every metric, one line for each row."""
    from training.evaluation.protocols import COLUMNS
    from training.evaluation.tables import BELOW_ZERO, format_cells, is_below_zero

    first = next(iter(evaluations[0]["rows"].values()))["metrics"]
    columns = [metric for metric in COLUMNS if metric in first]
    lines = [["", *(COLUMNS[metric] for metric in columns)]]
    for row in evaluations[0]["rows"]:
        cells = []
        for metric in columns:
            values = [e["rows"][row]["metrics"].get(metric) for e in evaluations]
            known = [value for value in values if value is not None]
            if len(known) < 2:
                cells.append("-")
            elif is_below_zero(metric, statistics.mean(known)):
                cells.append(BELOW_ZERO)
            else:
                cells.append(f"{statistics.mean(known):.3f} ±{statistics.stdev(known):.3f}")
        lines.append([row, *cells])
    return format_cells(lines)


if __name__ == "__main__":
    sys.exit(main())
