"""A sweep over values of a recipe: its runs, and their results as a table."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.evaluation.baselines import TIME_INDEX
from training.evaluation.tables import (
    columns_without_views,
    format_cells,
    format_value,
    is_below_zero,
)
from training.studies.evaluated_runs import trained_metrics
from training.support.command import UserError
from training.support.files import file_name

_LONGEST = 120  # characters of a folder's name

DEFINITION = (
    "Each line is one combination of values: mean ± standard deviation (n - 1) over the seeds, of "
    "the trained network."
)
CHOICE = (
    "The best line is a choice made on these test videos, so its figures are too good: choose on "
    'val videos ("split": "val" in labels.json, and --split val), then evaluate the chosen run on '
    "the test videos."
)


@dataclass(frozen=True)
class Point:
    """One combination of values: (key, value) for each key that has several."""

    values: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The values as text, such as "optim.lr=1e-4 model.layers=2"."""
        return " ".join(f"{key}={value}" for key, value in self.values) or "recipe"

    @property
    def folder(self) -> str:
        """Its folder below --out; a long name ends in a checksum."""
        name = file_name(self.name.replace(" ", ","))
        if len(name) <= _LONGEST:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return f"{name[:_LONGEST]}~{digest}"


@dataclass(frozen=True)
class Sweep:
    """What is trained: every point with every seed.

    recipe: as for `training.train`. fixed: "key=value" for all runs. swept: key -> its values.
    seeds: number of seeds, 0 to seeds - 1. out: folder of the runs.
    """

    recipe: str
    fixed: tuple[str, ...]
    swept: Mapping[str, Sequence[str]]
    seeds: int
    out: Path

    def points(self) -> list[Point]:
        """All combinations; the last key changes fastest."""
        pairs = [[(key, value) for value in values] for key, values in self.swept.items()]
        return [Point(chosen) for chosen in itertools.product(*pairs)]

    def run(self, point: Point, seed: int) -> Path:
        return self.out / point.folder / f"seed_{seed}"

    def values(self, point: Point, seed: int) -> list[str]:
        """The recipe's values of a run."""
        run = json.dumps(str(self.run(point, seed)), ensure_ascii=False)
        chosen = [f"{key}={value}" for key, value in point.values]
        return [*self.fixed, *chosen, f"train.seed={seed}", f"train.run_dir={run}"]


def parse(words: Sequence[str]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """``key=value`` and ``key=a,b,c``: the fixed words, and the values of each swept key.

    Commas within brackets, braces and quotes separate no values: optim.betas=[0.9,0.99] is one.
    """
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign:
            raise UserError(
                f"{word!r}: expected key=value or key=a,b,c, such as optim.lr=1e-4,1e-3"
            )
        for own, option in (("train.seed", "--seeds"), ("train.run_dir", "--out")):
            if key == own:
                raise UserError(f"{word}: {option} sets {own}; leave it out")
        values = _values(word, text)
        if len(values) == 1:
            fixed.append(word)
        elif key in swept:
            raise UserError(f"{key} is swept twice; write all its values in one place")
        else:
            swept[key] = values
    again = [word for word in fixed if word.partition("=")[0] in swept]
    if again:
        raise UserError(f"{again[0]}: this key is also swept; leave one of the two out")
    return tuple(fixed), swept


def _values(word: str, text: str) -> list[str]:
    values, quote, depth = [""], "", 0
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and not depth:
            values.append("")
            continue
        values[-1] += character
    if len(values) > 1:
        values = [value.strip() for value in values]
        if "" in values:
            raise UserError(f"{word}: a value between commas is empty; write null for none")
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise UserError(f"{word}: {', '.join(sorted(twice))} occurs twice")
    return values


def summary(
    sweep: Sweep,
    options: Mapping[str, Any],
    results: Mapping[tuple[Point, int], Mapping[str, Any]],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The content of OUT/sweep.json.

    Args:
        options: what was computed, see `evaluated_runs.facts`.
        results: (point, seed) -> the result of its evaluation.
        failed: name of a run -> reason.
    """
    first = next(iter(results.values()))
    points = []
    for point in sweep.points():
        seeds = {seed: one for (of, seed), one in results.items() if of == point}
        if seeds:
            metrics = [trained_metrics(one) for one in seeds.values()]
            points.append(
                {
                    "name": point.name,
                    "values": dict(point.values),
                    "runs": {seed: str(sweep.run(point, seed)) for seed in seeds},
                    "metrics": _statistics(metrics),
                    "rows": {seed: _rows(one) for seed, one in seeds.items()},
                }
            )
    return {
        "recipe": sweep.recipe,
        "fixed": [*sweep.fixed],
        "swept": {key: [*values] for key, values in sweep.swept.items()},
        "seeds": sweep.seeds,
        **options,
        "split": first["split"],
        "videos": first["videos"],
        "points": points,
        "failed": dict(failed),
        "definitions": {"sweep": DEFINITION} | first["definitions"],
    }


def _rows(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row["metrics"] for name, row in result["rows"].items()}


def _statistics(runs: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """For each metric its mean, its standard deviation and its values, over the defined ones."""
    out = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run[key] for run in runs if run.get(key) is not None]
        values = [value for value in values if value == value]  # no NaN
        out[key] = {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "values": values,
        }
    return out


def table(content: Mapping[str, Any]) -> str:
    """A line for each point: number of runs, then mean ± standard deviation of each metric."""
    points = content["points"]
    shown = shown_columns(content)
    lines = [["", "runs", *shown.values()]]
    clock = next((row for p in points for row in p["rows"].values() if TIME_INDEX in row), None)
    if clock:  # the same for all runs
        cells = [format_value(clock[TIME_INDEX].get(key), key) for key in shown]
        lines.append([TIME_INDEX, "", *cells])
    for point in points:
        cells = [_cell(point["metrics"].get(key), key) for key in shown]
        lines.append([point["name"], str(len(point["runs"])), *cells])
    return format_cells(lines)


def shown_columns(content: Mapping[str, Any]) -> dict[str, str]:
    """The metrics that the table shows with their titles: no column for a pair of views."""
    points = content["points"]
    return columns_without_views(key for point in points for key in point["metrics"])


def _cell(found: Mapping[str, Any] | None, key: str) -> str:
    if found is None or found["mean"] is None:
        return "-"
    mean = format_value(found["mean"], key)
    if found["std"] is None or is_below_zero(key, found["mean"]):
        return mean
    return f"{mean} ± {format_value(found['std'])}"
