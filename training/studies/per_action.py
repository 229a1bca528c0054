"""One run for each action: the actions of a recipe's folders, their results and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.encoders import TRAINED
from training.evaluation.metrics import mean_of_defined
from training.evaluation.options import Options
from training.evaluation.tables import columns_without_views, format_cells, format_value
from training.support.files import file_name

if TYPE_CHECKING:
    from training.data.selection import Selection

DEFINITION = (
    "One encoder for each action, trained and evaluated on the videos of that action alone, and "
    "the mean over the actions for which a metric is defined. LAV reports Penn Action (13 actions) "
    "in this way, and also with one encoder for all actions, as CARL does: the two are not "
    "comparable with each other."
)


@dataclass(frozen=True)
class Plan:
    """What is done for every action.

    recipe, overrides: as for `training.train`. out: folder of the runs. options: of the evaluation.
    """

    recipe: str
    overrides: Sequence[str]
    out: Path
    options: Options

    def run(self, action: str) -> Path:
        """The run directory of an action; characters that a name of a file lacks are escaped."""
        return self.out / file_name(action)

    def values(self, action: str) -> list[str]:
        """The recipe's values for an action."""
        run = f"train.run_dir={json.dumps(str(self.run(action)), ensure_ascii=False)}"
        return [*self.overrides, f"data.action={json.dumps(action, ensure_ascii=False)}", run]


def actions_of(index: Selection, wanted: Sequence[str] | None) -> list[str]:
    """The actions to train on; UserError for a wanted one that does not exist."""
    from training.data.selection import check_known

    if not wanted:
        return sorted(set(index.videos.column("action")))
    check_known(index, "--actions", "action", wanted)
    return [*dict.fromkeys(wanted)]


def unfit(index: Selection, cfg: Any, action: str) -> str:
    """Why an action cannot be trained and evaluated, from the index alone; usually ""."""
    from training.evaluation.frame_level import has_labels

    for split in (cfg.data.train_split, cfg.data.test_split):
        records = index.videos.where(split=split, action=action)
        if not records:
            return f"no video in the split {split!r}"
        if not has_labels(records):
            return f"no phase labels in the split {split!r}"
    return ""


def summary(
    plan: Plan, results: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]
) -> dict[str, Any]:
    """The content of OUT/per_action.json.

    Args:
        results: action -> the result of its evaluation, see `evaluated_runs.train_and_evaluate`.
        failed: action -> reason.
    """
    first = next(iter(results.values()))
    names = [*dict.fromkeys(name for result in results.values() for name in result["rows"])]
    return {
        "recipe": str(plan.recipe),
        "values": [*plan.overrides],
        **plan.options.facts(),
        "actions": {
            action: {
                "run": str(plan.run(action)),
                "videos": result["videos"],
                "left_out": result["left_out"],
                "rows": {name: row["metrics"] for name, row in result["rows"].items()},
            }
            for action, result in results.items()
        },
        "mean": {
            name: _mean(result["rows"].get(name) for result in results.values()) for name in names
        },
        "failed": dict(failed),
        "definitions": {"per action": DEFINITION} | first["definitions"],
        "row_definitions": first["row_definitions"],
    }


def _mean(rows: Any) -> dict[str, float]:
    """The mean of each metric over the rows in which it is defined."""
    found = [row["metrics"] for row in rows if row is not None]
    keys = dict.fromkeys(key for metrics in found for key in metrics)
    numbers = {key: [metrics.get(key) for metrics in found] for key in keys}
    return {
        key: mean_of_defined(value for value in values if value is not None)
        for key, values in numbers.items()
    }


def table(content: Mapping[str, Any]) -> str:
    """The actions' trained encoders, then the means of all rows over the actions, as text."""
    actions, mean = content["actions"], content["mean"]
    shown = columns_without_views(mean[TRAINED])
    lines = [["", "train", "test", *shown.values()]]
    for action, result in actions.items():
        videos, metrics = result["videos"], result["rows"][TRAINED]
        lines.append([action, str(videos["train"]), str(videos["test"]), *_cells(metrics, shown)])
    totals = [
        str(sum(one["videos"][split] for one in actions.values())) for split in ("train", "test")
    ]
    for name in [TRAINED, *(name for name in mean if name != TRAINED)]:
        lines.append([f"mean of {len(actions)}, {name}", *totals, *_cells(mean[name], shown)])
    return format_cells(lines)


def _cells(metrics: Mapping[str, float], shown: Mapping[str, str]) -> list[str]:
    return [format_value(metrics.get(key), key) for key in shown]
