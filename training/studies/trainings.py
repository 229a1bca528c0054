"""The trainings of a study: started or continued, and several at a time."""

from __future__ import annotations

import multiprocessing.connection
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One training of a study.

    what: its name in messages. call: function that trains and returns the exit status; a new
    process can import it. log: file for the output of such a process.
    """

    what: str
    call: Callable[[], int]
    log: Path


def run_jobs(jobs: Sequence[Job], at_a_time: int, *, keep_going: bool = False) -> list[Job]:
    """Run all jobs and return those that failed.

    Args:
        at_a_time: number of jobs at a time, each in a new process with one thread; 1: one after
            another in this process, on all threads.
        keep_going: whether jobs are started after one has failed. Those that are running then end
            in any case.
    """
    return (_one_by_one if at_a_time == 1 else _in_processes)(jobs, at_a_time, keep_going)


def train_or_continue(
    train: Callable[[list[str]], int], recipe: str, run: Path, overrides: Sequence[str]
) -> int:
    """The exit status of training a run, which is continued if it has begun.

    ``train``: `training.train.main`. Raises KeyboardInterrupt if a signal stopped it.
    """
    resume = (run / "config.yaml").is_file()
    status = train([recipe, *overrides, *(["--resume"] if resume else [])])
    if status in (130, 143):
        raise KeyboardInterrupt
    return status


def check_recipe(cfg: Any, *, losses: bool = False) -> None:
    """ConfigError for a configuration that each training of a study would refuse at its start.

    ``losses``: whether to check the options of the losses too, which runs each loss once and so
    may compile it.
    """
    from training.evaluation.curve import check_evaluation
    from training.loop.trainer import check_loss, choose_device, set_deterministic
    from training.recipe.ranks import check_one_process
    from training.runs.writers import check_writers

    check_one_process(cfg)
    check_evaluation(cfg)
    check_writers(cfg)
    if losses:
        set_deterministic(cfg)
        check_loss(cfg, choose_device(cfg))


# Keys that may change when a run is resumed, and on which its result depends.
_OF_RESULT = {
    "data.folder",
    "data.class_set",
    "model.weights",
    "model.weights_key",
    "model.backbone_share",
    "train.max_minutes",
    "train.patience",
}
_OF_BEST = {"train.evaluate_every", "train.keep_best"}  # with train.keep_best


def check_same_values(
    recipe: str, run: Path, overrides: Sequence[str], *, own_videos: bool = False
) -> None:
    """ConfigError if a run of a study has other values of the recipe than these.

    Stricter than ``train --resume``: the result may not depend on a key that has changed. Videos
    and weights that are no longer where they were count as moved, not as others.

    Args:
        own_videos: the study's own videos lie beside its runs, so data.folder is not compared.
    """
    from training.data.folders import folders_of
    from training.recipe.load import (
        ConfigError,
        differences,
        load_config,
        make_paths_absolute,
        may_change,
    )

    now, before = load_config(recipe, overrides), load_config(run / "config.yaml")
    make_paths_absolute(now)
    free = may_change() - _OF_RESULT
    if own_videos or not any(path.exists() for path in folders_of(before)):
        free.add("data.folder")
    if before.model.weights not in (None, "package") and not Path(before.model.weights).exists():
        free.add("model.weights")
    if now.train.keep_best is not None:
        free -= _OF_BEST
    changed = set(differences(now, before)) - free
    if changed:
        raise ConfigError(
            f"{run} is the result of other values of {', '.join(sorted(changed))}; repeat those "
            "values, choose another --out, or remove it"
        )


def _one_by_one(jobs: Sequence[Job], _: int, keep_going: bool) -> list[Job]:
    failed, start = [], time.perf_counter()
    for done, job in enumerate(jobs, 1):
        print(f"\n== {job.what}", flush=True)
        began = time.perf_counter()
        if job.call():
            failed.append(job)
            if not keep_going:
                break
        else:
            _report(job, began, start, done, len(jobs))
    return failed


def _in_processes(jobs: Sequence[Job], at_a_time: int, keep_going: bool) -> list[Job]:
    waiting, failed, ended, start = list(jobs), [], 0, time.perf_counter()
    running: dict[int, tuple[Any, Job, float]] = {}
    try:
        while running or (waiting and (keep_going or not failed)):
            while waiting and (keep_going or not failed) and len(running) < at_a_time:
                job = waiting.pop(0)
                job.log.write_text("")
                process = multiprocessing.get_context("spawn").Process(
                    target=_in_process, args=(job,)
                )
                process.start()
                running[process.sentinel] = process, job, time.perf_counter()
            for sentinel in multiprocessing.connection.wait(running):
                process, job, began = running.pop(sentinel)
                process.join()
                ended += 1
                if process.exitcode == 0:
                    _report(job, began, start, ended, len(jobs))
                    continue
                failed.append(job)
                last = "\n".join(job.log.read_text(errors="replace").splitlines()[-15:])
                print(f"error: {job.what} failed; the end of {job.log}:\n{last}", file=sys.stderr)
    except KeyboardInterrupt:
        # Ctrl-C reaches the processes too: each writes a checkpoint and ends.
        for process, *_ in running.values():
            process.join()
        raise
    return failed


def _report(job: Job, began: float, start: float, done: int, count: int) -> None:
    from training.loop.step_time import in_words

    now = time.perf_counter()
    left = (now - start) / done * (count - done)
    rest = f", about {in_words(left)} left" if left else ""
    print(f"{job.what}: {now - began:.0f} s ({done} of {count}){rest}", flush=True)


def _in_process(job: Job) -> None:
    """The body of a process; everything that it prints goes to a log file."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch and BLAS are not loaded yet
    with open(job.log, "w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        sys.exit(job.call())
    except KeyboardInterrupt:
        sys.exit(130)
