"""The runs of a study: trained or continued, evaluated in the same way, skipped where finished."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.encoders import TRAINED
from training.evaluation.few_shot import write_few_shot
from training.evaluation.options import Options
from training.evaluation.video_level import NAME as VIDEO_LEVEL
from training.studies.trainings import Job, check_same_values, train_or_continue
from training.support.command import INCOMPLETE, UserError
from training.support.files import write_json

DONE = "result.json"
_OF_RUN = ("split", "checkpoint")


def facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is computed, for comparison and for the study's file; UserError for wrong options.

    ``options``: see `train_and_evaluate`.
    """
    chosen = {name: options[name] for name in _OF_RUN if options.get(name)}
    if options["protocol"] == VIDEO_LEVEL:
        return {"protocol": VIDEO_LEVEL} | chosen
    return Options(**_of_scores(options)).facts() | chosen


def train_and_evaluate(
    train: Callable[[list[str]], int],
    recipe: str,
    run: Path,
    values: Sequence[str],
    options: Mapping[str, Any],
) -> int:
    """Train or continue a run and evaluate it; returns an exit status and prints what failed.

    Writes RUN/evaluation.json (`evaluation_file`) and, last, RUN/result.json.

    Args:
        train: `training.train.main`.
        values: the recipe's values, train.run_dir among them.
        options: of the evaluation: "protocol", for protocols of frames also the other fields of
            `training.evaluation.options.Options`; "split" and "checkpoint" as for
            `training.evaluate`.
    """
    from fastseq.video import VideoError
    from training.runs.folder import evaluation_file  # imports torch

    try:
        status = train_or_continue(train, recipe, run, values)
        if status in (0, INCOMPLETE):
            result = _evaluate(run, options)
            file = run / evaluation_file(**_of_run(options))
            write_json(file, result)
            write_few_shot(file, result["rows"])
            write_json(run / DONE, result | {"options": facts(options)})
            return 0
        return status
    except (UserError, VideoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:  # out of memory, for example; the other runs go on
        traceback.print_exc()
        return 1


def _evaluate(run: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    chosen = _of_run(options)
    if options["protocol"] == VIDEO_LEVEL:
        from training.evaluation.video_level import evaluate_video_level

        return evaluate_video_level(run, **chosen)
    from training.evaluation.frame_level import evaluate_frame_level

    return evaluate_frame_level(run, **chosen, **_of_scores(options))


def _of_run(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options.get(name) for name in _OF_RUN}


def _of_scores(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OF_RUN}


def finished(recipe: str, run: Path, values: Sequence[str], options: Mapping[str, Any]) -> bool:
    """Whether an earlier call has trained this run and evaluated it with the same options.

    ConfigError if it was started with other values of the recipe.
    """
    if (run / "config.yaml").is_file():
        check_same_values(recipe, run, values)
    if not (run / DONE).is_file():
        return False
    return read_result(run).get("options") == json.loads(json.dumps(facts(options)))


def read_result(run: Path) -> dict[str, Any]:
    """RUN/result.json."""
    path = run / DONE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON ({error}); remove it and repeat the command"
        ) from error


def failures(jobs: Iterable[Job], at_a_time: int) -> dict[str, str]:
    """Why each of these jobs of `run_jobs` has no result, by its name."""
    where = {job.what: "its error is above" if at_a_time == 1 else f"see {job.log}" for job in jobs}
    return {what: f"its training or evaluation failed, {one}" for what, one in where.items()}


def conclude(results: Collection[Mapping[str, Any]], failed: Mapping[str, str]) -> int:
    """Print the videos that were left out and the runs without a result; the exit status.

    ``failed``: name of a run -> reason.
    """
    left_out = {name: why for result in results for name, why in result["left_out"].items()}
    for name, why in left_out.items():
        print(f"left out {name}: {why}")
    for what, why in failed.items():
        print(f"no result for {what}: {why}", file=sys.stderr)
    if not results:
        return 1
    return INCOMPLETE if failed or left_out else 0


def trained_metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of the trained network in a result."""
    return result["rows"][TRAINED]["metrics"]
