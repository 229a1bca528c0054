"""The demo: `python -m training.demo` renders videos, trains CARL on them, evaluates and reports.

Writes 104 short H.264 files with their labels to OUT/videos, and the trained model, evaluation.json
and report.html to OUT/run; open OUT/run/report.html. Labels are used only for evaluation. An
earlier run in OUT is replaced.

With --real FOLDER the videos are your own clips, a dozen or more of one action, and the recipe is
recipes/carl_small.yaml. An index and the backbone's features (.fastseq_features) are written to
FOLDER.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from training.support.command import INCOMPLETE, run_command

RECIPE = "recipes/carl_demo.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values that replace those of the recipe, such as train.steps=300",
    )
    parser.add_argument(
        "--real", type=Path, metavar="FOLDER", help="train on the clips of this folder instead"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: demo; with --real: demo_real)"
    )
    parser.add_argument(
        "--clutter", action="store_true", help="render moving shapes behind the actor"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train with seeds 0 to N-1 and print mean and standard deviation; without --real each "
        "seed has new videos (default: 1)",
    )
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if options.clutter and options.real:
        parser.error("--clutter applies to rendered videos, not to --real; leave it out")
    if options.out is None:
        options.out = Path("demo_real" if options.real else "demo")
    run = _run_real if options.real else _run
    return run_command(lambda: run(options), needs="the demo")


def _run(options: argparse.Namespace) -> int:
    import av  # noqa: F401  only now, so that --help need not wait for it and for torch

    from training import evaluate, prepare, report, train
    from training.demo.render import describe, render_dataset
    from training.recipe.load import load_config
    from training.recipe.ranks import check_one_process

    # ConfigError before the videos are rendered.
    check_one_process(load_config(RECIPE, options.overrides))
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
        status = _run_steps(
            [
                (f"2/5 check and index them{title}", prepare.main, [str(videos)]),
                (f"3/5 train CARL{title}", train.main, arguments),
                (f"4/5 evaluate{title}", evaluate.main, [str(run)]),
                (f"5/5 write the report{title}", report.main, [str(run)]),
            ]
        )
        if status:
            return status
        evaluations.append(json.loads((run / "evaluation.json").read_text()))
    _conclude(evaluations, began, options.out)
    return 0


def _run_real(options: argparse.Namespace) -> int:
    import av  # noqa: F401  as above

    from training import evaluate, prepare, report, train
    from training.data.index import StaleIndex, load_index
    from training.demo import real
    from training.recipe.load import load_config
    from training.recipe.ranks import check_one_process

    folder: Path = options.real
    check_one_process(load_config(real.RECIPE, options.overrides))
    real.check_places(folder, options.out)
    began = time.perf_counter()
    try:
        index = load_index(folder)
    except StaleIndex:
        status = _run_steps([("check and index the clips", prepare.main, [str(folder)])])
        if status:
            return status
        index = load_index(folder)
    clips = real.Clips.of(index)
    evaluations = []
    left_out = False
    for seed in range(options.seeds):
        run = options.out / ("run" if seed == 0 else f"run_{seed}")
        title = f" (seed {seed})" if options.seeds > 1 else ""
        arguments = [real.RECIPE, f"data.folder={folder}", f"train.run_dir={run}"]
        arguments += [f"train.seed={seed}", *clips.overrides, *options.overrides, "--overwrite"]
        steps = [(f"train CARL{title}", train.main, arguments)]
        if clips.labelled:
            steps.append((f"evaluate{title}", evaluate.main, [str(run)]))
        steps.append((f"write the report{title}", report.main, [str(run)]))
        status = _run_steps(steps)
        if status not in (0, INCOMPLETE):
            return status
        left_out |= status == INCOMPLETE
        if clips.labelled:
            evaluations.append(json.loads((run / "evaluation.json").read_text()))
    _conclude(evaluations, began, options.out)
    for line in clips.advice():
        print(line)
    return INCOMPLETE if left_out else 0


def _run_steps(steps: Sequence[tuple[str, Callable[[list[str]], int], list[str]]]) -> int:
    """Run commands in order until one fails; returns INCOMPLETE if any left videos out."""
    done = 0
    for name, command, words in steps:
        with step(name):
            status = command(words)
        if status not in (0, INCOMPLETE):
            return status
        done = max(done, status)
    return done


def _conclude(evaluations: Sequence[dict], began: float, out: Path) -> None:
    if len(evaluations) > 1:
        print(f"\nmean and standard deviation over {len(evaluations)} seeds\n")
        print(spread_table(evaluations))
    print(f"\nall done in {(time.perf_counter() - began) / 60:.1f} minutes")
    print(f"open {out / 'run' / 'report.html'}")


class step:
    """Context that prints the name of a step and then its time in seconds."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        print(f"\n== {self.name}", flush=True)
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        print(f"   {time.perf_counter() - self.began:.0f} s", flush=True)


def spread_table(evaluations: Sequence[dict]) -> str:
    """Mean and standard deviation of every metric over runs, one line per row."""
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
