"""Train and evaluate a recipe for several values: `python -m training.sweep RECIPE key=a,b,c`.

Every combination of the values is trained with every seed in OUT/key=value/seed_N and evaluated by
a paper's protocol. The last lines are a table: a line for each combination, mean and standard
deviation over the seeds. OUT/sweep.json has the same numbers with the definition of every column,
OUT/sweep.png shows them over the values of the first key. After an interruption the same command
continues: finished runs are skipped. A run that fails does not stop the others. Example: python -m
training.sweep recipes/carl_small.yaml model.layers=1,2,3,4 --folder my_clips --seeds 3 --out layers
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.label_values import SPLITS
from training.evaluation.options import ARGUMENTS, add_arguments, from_arguments
from training.evaluation.protocols import PROTOCOLS
from training.evaluation.stored import add_checkpoint
from training.evaluation.video_level import NAME as VIDEO_LEVEL
from training.support.command import UserError, make_folder, run_command
from training.support.files import write_json

if TYPE_CHECKING:
    from training.studies.sweep import Point, Sweep

EXIT_STATUS = (
    "Exit status: 0 done; 3 done, except for the runs or videos that are named in the last lines; "
    "1 every run failed; 2 wrong request; 130 interrupted."
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.sweep", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("recipe", help="recipe, as for python -m training.train")
    parser.add_argument(
        "values",
        nargs="*",
        metavar="key=a,b,c",
        help="values of a key; key=value sets it for every run",
    )
    parser.add_argument("--folder", help="prepared folder of videos, the same as data.folder=")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1 (default %(default)s)"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="the videos that are scored (default: the run's data.test_split); choose values on "
        "val videos",
    )
    parser.add_argument(
        "--protocol",
        choices=[*PROTOCOLS, VIDEO_LEVEL],
        default="carl",
        help="the protocol of python -m training.evaluate (default %(default)s)",
    )
    add_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time, each in a process with one thread; with 1 they run one after another "
        "in this process, on all threads (default: 1)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check every run, print the plan and stop"
    )
    args = parser.parse_intermixed_args(argv)
    for name in ("jobs", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return run_command(
        lambda: _run(args, _options(args, parser)),
        needs="training",
        interrupted="interrupted; the same command continues",
    )


def _run(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from training.data.selection import open_index, videos_of_split
    from training.studies import sweep as study
    from training.studies.evaluated_runs import conclude, facts, failures, finished, read_result
    from training.studies.trainings import Job, check_recipe, run_jobs
    from training.train import compose

    folder = [f"data.folder={args.folder}"] if args.folder else []
    fixed, swept = study.parse([*args.values, *folder])
    sweep = study.Sweep(args.recipe, fixed, swept, args.seeds, args.out)
    facts(options)
    runs = [*itertools.product(sweep.points(), range(args.seeds))]
    for point in sweep.points():
        words = argparse.Namespace(recipe=args.recipe, overrides=sweep.values(point, 0))
        cfg = compose(words)
        check_recipe(cfg, losses=args.dry_run)
        index = open_index(cfg)
        for split in (cfg.data.train_split, args.split or cfg.data.test_split):
            videos_of_split(index, split)
    done = {run: finished(args.recipe, *_of(sweep, *run), options) for run in runs}
    if args.dry_run:
        return _dry_run(sweep, done)
    make_folder(args.out)
    jobs = []
    for point, seed in runs:
        if done[point, seed]:
            print(f"{_what(point, seed)}: there already")
            continue
        log = args.out / f"{point.folder},seed_{seed}.log"
        call = functools.partial(_one, sweep, point, seed, options)
        jobs.append(Job(_what(point, seed), call, log))
    failed = failures(run_jobs(jobs, args.jobs, keep_going=True), args.jobs)
    results = {
        (point, seed): read_result(sweep.run(point, seed))
        for point, seed in runs
        if _what(point, seed) not in failed
    }
    if results:
        _write(sweep, study.summary(sweep, facts(options), results, failed))
    return conclude(results.values(), failed)


def _options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options of the evaluation, see `evaluated_runs.train_and_evaluate`."""
    of_run = {"split": args.split, "checkpoint": args.checkpoint}
    if args.protocol != VIDEO_LEVEL:
        return from_arguments(args) | of_run
    for name in ARGUMENTS:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')} applies to frames, but --protocol {VIDEO_LEVEL} "
                "scores videos; leave it out"
            )
    return {"protocol": args.protocol} | of_run


def _of(sweep: Sweep, point: Point, seed: int) -> tuple[Path, list[str]]:
    return sweep.run(point, seed), sweep.values(point, seed)


def _what(point: Point, seed: int) -> str:
    return f"{point.name}, seed {seed}"


def _dry_run(sweep: Sweep, done: Mapping[tuple[Point, int], bool]) -> int:
    """Print the runs, and the plan of the first one that is missing."""
    from training import train

    missing = [run for run, there in done.items() if not there]
    for point, seed in done:
        there = " (there already)" if done[point, seed] else ""
        print(f"{_what(point, seed)}: {sweep.run(point, seed)}{there}")
    print(f"{len(done)} runs, {len(missing)} to be trained")
    if not missing:
        return 0
    print(f"\nthe first of them, {_what(*missing[0])}:")
    status = train.main([sweep.recipe, *sweep.values(*missing[0]), "--dry-run"])
    if not status and len(missing) > 1:
        print(f"\n{len(missing)} such runs; the others may take more or less time")
    return status


def _write(sweep: Sweep, content: dict[str, Any]) -> None:
    from training.studies import sweep as study
    from training.studies.sweep_picture import draw

    write_json(sweep.out / "sweep.json", content)
    print(f"\n{study.table(content)}\n")
    print(study.DEFINITION)
    if content["split"] == "test" and len(content["points"]) > 1:
        print(study.CHOICE)
    files = [str(sweep.out / "sweep.json")]
    if sweep.swept:
        draw(content, sweep.out / "sweep.png")
        files.append(str(sweep.out / "sweep.png"))
    print(f"written to {' and '.join(files)}")


def _one(sweep: Sweep, point: Point, seed: int, options: Mapping[str, Any]) -> int:
    """Train or continue one run and evaluate it; returns an exit status."""
    from training import train
    from training.studies.evaluated_runs import train_and_evaluate

    return train_and_evaluate(train.main, sweep.recipe, *_of(sweep, point, seed), options)


if __name__ == "__main__":
    sys.exit(main())
