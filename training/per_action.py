"""Train and evaluate one run for each action: `python -m training.per_action RECIPE --out DIR`.

Each action of the folder is trained on alone (data.action=ACTION) in DIR/ACTION and evaluated by a
paper's protocol. The last lines are a table: a row for each action, then the mean over actions.
DIR/per_action.json has the same numbers with the definition of every column. After an interruption
the same command continues: finished actions are skipped. An action that fails does not stop the
others. Example: python -m training.per_action recipes/lav.yaml data.folder=penn
model.weights=resnet50.pth --out runs/penn --protocol lav
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.evaluation.options import Options, add_arguments, from_arguments
from training.evaluation.protocols import PROTOCOLS
from training.support.command import UserError, make_folder, run_command
from training.support.files import write_json

if TYPE_CHECKING:
    from training.studies.per_action import Plan

EXIT_STATUS = (
    "Exit status: 0 done; 3 done, except for the actions or videos that are named in the last "
    "lines; 1 every action failed; 2 wrong request; 130 interrupted."
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.per_action", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("recipe", help="recipe, as for python -m training.train")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe values for every action"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument(
        "--actions", nargs="+", metavar="A", help="only these actions (default: all)"
    )
    parser.add_argument(
        "--protocol",
        choices=[*PROTOCOLS],
        default="carl",
        help="the protocol of python -m training.evaluate (default %(default)s)",
    )
    add_arguments(parser)
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="trainings at a time, each in a process with one thread that writes to "
        "DIR/ACTION.log; with 1 they run one after another in this process, on all threads "
        "(default: 1)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the actions, print the plan and stop"
    )
    args = parser.parse_intermixed_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    return run_command(
        lambda: _run(args),
        needs="training",
        interrupted="interrupted; the same command continues",
    )


def _run(args: argparse.Namespace) -> int:
    from training.data.selection import open_index
    from training.studies import per_action
    from training.studies.evaluated_runs import conclude, failures, finished, read_result
    from training.studies.per_action import Plan
    from training.studies.trainings import Job, check_recipe, run_jobs
    from training.train import compose

    own = [one for one in args.overrides if one.startswith("train.run_dir=")]
    if own:
        raise UserError(f"{own[0]}: the runs are written to --out; leave train.run_dir out")
    cfg = compose(args)
    check_recipe(cfg)
    plan = Plan(args.recipe, args.overrides, args.out, Options(**from_arguments(args)))
    options = vars(plan.options)
    index = open_index(cfg)
    actions = per_action.actions_of(index, args.actions)
    failed = {action: why for action in actions if (why := per_action.unfit(index, cfg, action))}
    for action, why in failed.items():
        print(f"left out {action}: {why}", file=sys.stderr)
    if args.dry_run:
        return _dry_run(plan, [action for action in actions if action not in failed])
    make_folder(args.out)
    fit = [action for action in actions if action not in failed]
    missing = []
    for action in fit:
        if finished(plan.recipe, plan.run(action), plan.values(action), options):
            print(f"{action}: there already")
        else:
            missing.append(action)
    jobs = {
        action: Job(
            action, functools.partial(_one, plan, action), args.out / f"{plan.run(action).name}.log"
        )
        for action in missing
    }
    failed |= failures(run_jobs([*jobs.values()], args.jobs, keep_going=True), args.jobs)
    results = {action: read_result(plan.run(action)) for action in fit if action not in failed}
    if results:
        content = per_action.summary(plan, results, failed)
        write_json(args.out / "per_action.json", content)
        print(f"\n{per_action.table(content)}\n")
        print(content["definitions"]["per action"])
        print(f"written to {args.out / 'per_action.json'}, with the definition of every column")
    return conclude(results.values(), failed)


def _dry_run(plan: Plan, actions: Sequence[str]) -> int:
    """Print the runs, and the plan of the first one."""
    from training import train

    for action in actions:
        print(f"{action}: {plan.run(action)}")
    print(f"{len(actions)} runs")
    if not actions:
        return 1
    print(f"\nthe first of them, {actions[0]}:")
    return train.main([plan.recipe, *plan.values(actions[0]), "--dry-run"])


def _one(plan: Plan, action: str) -> int:
    """Train or continue one action and evaluate it; returns an exit status."""
    from training import train
    from training.studies.evaluated_runs import train_and_evaluate

    return train_and_evaluate(
        train.main, plan.recipe, plan.run(action), plan.values(action), vars(plan.options)
    )


if __name__ == "__main__":
    sys.exit(main())
