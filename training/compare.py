"""Compare losses on generated videos: `python -m training.compare --seeds 3`.

Trains the same per-frame encoder for the same number of steps with each method and seed, evaluates
it by CARL's protocol, and writes a table of means and spreads to OUT/comparison.md. With
`--suite vclr` the methods are VCLR's four losses, alone and together (its Table 6), and with clips
and a 3-D network (its Table 8); the videos are of eight classes and the protocol is VCLR's. --jobs
trainings run at a time, each in a process with one thread that writes to OUT/seed_N/METHOD.log.
After an interruption the same command continues: finished (method, seed) pairs are kept in
OUT/seed_N/METHOD. The command stops with status 1 if a generated video can no longer be read,
because all methods must see the same videos.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.studies.comparison_table import TIME_INDEX_METHOD
from training.studies.suites import (
    FRAMES_METHODS,
    SUITES,
    UNTRAINED,
    VCLR_METHODS,
    time_index_result,
)
from training.studies.trainings import Job, check_same_values, run_jobs, train_or_continue
from training.support.command import INCOMPLETE, UserError, run_command
from training.support.files import write_json

DONE = "result.json"
# Steps at learning rate 0, which only update the batch-norm statistics; their initial values then
# have a weight of 0.9^50 = 0.5 %.
UNTRAINED_STEPS = 50


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe values for every method"
    )
    parser.add_argument(
        "--suite",
        choices=list(SUITES),
        default="frames",
        help="losses of frames, or VCLR's losses (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write to (default: compare; with --suite vclr: compare_vclr)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="seeds 0 to N-1, each with new videos (default: 3)",
    )
    parser.add_argument("--steps", type=int, help="steps of each training (default: the recipe's)")
    parser.add_argument(
        "--methods",
        metavar="A,B,...",
        help=f"methods to compare, from {', '.join(FRAMES_METHODS)}; with --suite vclr from "
        f"{', '.join(VCLR_METHODS)} (default: all)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(4, _cores()),
        metavar="N",
        help="trainings at a time, each on one thread; with 1 they run one after another in this "
        "process, on all threads (default: the number of cores, at most 4: %(default)s)",
    )
    parser.add_argument("--train-videos", type=int, help="training videos per action (default: 40)")
    parser.add_argument(
        "--test-videos",
        type=int,
        help="test videos per action (default: 12; with --suite vclr: 20)",
    )
    options = parser.parse_intermixed_args(argv)
    suite = SUITES[options.suite]
    options.out = options.out or Path("compare_vclr" if options.suite == "vclr" else "compare")
    options.methods = options.methods.split(",") if options.methods else list(suite.methods)
    for name in options.methods:
        if name not in suite.methods:
            expected = ", ".join(suite.methods)
            parser.error(f"argument --methods: got {name!r}; expected some of {expected}")
    for name in ("seeds", "steps", "jobs", "train_videos", "test_videos"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            got = f"got {getattr(options, name)}"
            parser.error(f"--{name.replace('_', '-')} must be at least 1, {got}")
    if options.train_videos is None:
        options.train_videos = suite.videos[0]
    if options.test_videos is None:
        options.test_videos = suite.videos[1]
    return run_command(
        lambda: _run(options),
        needs="the comparison",
        interrupted="interrupted; the same command continues",
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(options: argparse.Namespace) -> int:
    from training import prepare  # only now, so that --help need not wait for torch
    from training.recipe.load import load_config
    from training.recipe.ranks import check_one_process

    began = time.perf_counter()
    suite = SUITES[options.suite]
    results: dict[str, list[dict[str, Any]]] = {}
    for method in options.methods:
        # Before anything is rendered.
        check_one_process(load_config(suite.recipe, _overrides(method, options)))
    for seed in range(options.seeds):
        folder = options.out / f"seed_{seed}"
        videos = folder / "videos"
        suite.render(videos, seed, options.train_videos, options.test_videos)
        status = prepare.main([str(videos)])
        if status:
            return status
        if suite.time_index:
            results.setdefault(TIME_INDEX_METHOD, []).append(time_index_result(videos, folder))
    runs = [(method, seed) for seed in range(options.seeds) for method in options.methods]
    missing = [run for run in runs if not _is_done(*run, options)]
    jobs = [
        Job(
            _what(method, seed, options),
            functools.partial(_one, method, seed, options),
            _run_dir(method, seed, options).with_suffix(".log"),
        )
        for method, seed in missing
    ]
    if run_jobs(jobs, options.jobs):
        return 1
    for method, seed in runs:
        path = _run_dir(method, seed, options) / DONE
        try:
            result = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} is not JSON ({error}); remove it and repeat the command"
            ) from error
        results.setdefault(method, []).append(result)
    text = suite.table(results)
    (options.out / "comparison.md").write_text(text)
    print(f"\n{text}\nall done in {(time.perf_counter() - began) / 60:.1f} minutes")
    print(f"written to {options.out / 'comparison.md'}")
    return 0


def _overrides(method: str, options: argparse.Namespace) -> list[str]:
    steps = [] if options.steps is None else [f"train.steps={options.steps}"]
    if UNTRAINED in SUITES[options.suite].methods[method]:
        steps = [f"train.steps={min(options.steps or UNTRAINED_STEPS, UNTRAINED_STEPS)}"]
    return [*options.overrides, *SUITES[options.suite].methods[method], *steps]


def _run_dir(method: str, seed: int, options: argparse.Namespace) -> Path:
    return options.out / f"seed_{seed}" / method


def _run_overrides(method: str, seed: int, options: argparse.Namespace) -> list[str]:
    run = _run_dir(method, seed, options)
    return [
        f"data.folder={(run.parent / 'videos').resolve()}",
        f"train.run_dir={run}",
        f"train.seed={seed}",
        *_overrides(method, options),
    ]


def _is_done(method: str, seed: int, options: argparse.Namespace) -> bool:
    """Whether an earlier call has written this result, with the same recipe values."""
    run = _run_dir(method, seed, options)
    if not (run / DONE).is_file():
        return False
    recipe = SUITES[options.suite].recipe
    check_same_values(recipe, run, _run_overrides(method, seed, options), own_videos=True)
    print(f"{_what(method, seed, options)}: there already")
    return True


def _what(method: str, seed: int, options: argparse.Namespace) -> str:
    return f"{SUITES[options.suite].titles[method]}, seed {seed}"


def _one(method: str, seed: int, options: argparse.Namespace) -> int:
    """Train or continue, evaluate, write the result; returns the exit status of training.

    Returns 1 if a video was left out: the methods would not be compared on the same videos.
    """
    from fastseq.video import VideoError
    from training import train

    run = _run_dir(method, seed, options)
    if run.exists() and not (run / "config.yaml").is_file():
        shutil.rmtree(run)
    suite = SUITES[options.suite]
    overrides = _run_overrides(method, seed, options)
    status = train_or_continue(train.main, suite.recipe, run, overrides)
    try:
        if not status:
            write_json(run / DONE, suite.evaluate(run))
    except VideoError as error:
        print(f"error: {error}", file=sys.stderr)
        status = INCOMPLETE
    if status == INCOMPLETE:
        print(
            f"error: a comparison needs all videos: remove {run} and {run.parent / 'videos'}, then "
            "repeat the command, which renders them again",
            file=sys.stderr,
        )
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
