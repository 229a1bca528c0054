"""The best checkpoint of a run by a metric of its evaluations, and early stopping."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.runs.checkpoint import CheckpointError, reason_of, write_listed
from training.support.files import write_text

BEST = "best.pt"  # in RUN/checkpoints
BEST_JSON = "best.json"  # in RUN


class BestCheckpoint:
    """Keeps the weights with the best value of a metric in ``RUN/checkpoints/best.pt``.

    ``RUN/best.json`` has their ``step``, the ``metric``, its ``value`` and the ``split`` whose
    videos were scored. The first of equal values is kept; NaN is never the best. With ``patience``,
    `exhausted` is true once that many evaluations in a row were not better than the best one.

    Args:
        metric: key of the evaluations' metrics.
        patience: number of evaluations, or None.
        lower_is_better: whether the smallest value of the metric is the best.
    """

    def __init__(
        self,
        run_dir: Path,
        metric: str,
        patience: int | None = None,
        *,
        lower_is_better: bool = False,
    ) -> None:
        self.run_dir, self.metric, self.patience = run_dir, metric, patience
        self._sign = -1 if lower_is_better else 1
        self._split: str | None = None
        self._value, self._step = math.nan, -1
        self._without_better = 0

    def resume(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Continue at ``step`` with the lines of evaluations.jsonl up to it.

        A best.json of another metric is ignored: the weights of this metric's best step are not
        stored, so the best one is sought anew.
        """
        known = read_best(self.run_dir)
        if known is None or known["metric"] != self.metric:
            return
        if known["step"] <= step:
            self._split, self._value, self._step = known["split"], known["value"], known["step"]
            lines = [line for line in lines if line["step"] > known["step"]]
        # else best.pt is newer than the checkpoint, and the resumed run reaches its step again
        for line in lines:
            self._count(line["step"], line["split"], line["metrics"].get(self.metric))

    def update(
        self, step: int, found: Mapping[str, Any], weights: Callable[[], dict[str, Any]]
    ) -> None:
        """Count an evaluation, and write the best checkpoint if it is the best so far.

        Args:
            found: ``split`` and ``metrics`` of the evaluation.
            weights: returns the entries of best.pt besides step, metric, value and split.

        Raises:
            CheckpointError: writing failed; the earlier best.pt is intact.
        """
        if not self._count(step, found["split"], found["metrics"].get(self.metric)):
            return
        about = {"step": step, "metric": self.metric, "value": self._value, "split": self._split}
        save_best(self.run_dir, weights(), about)

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` evaluations in a row were not better than the best one."""
        return self.patience is not None and self._without_better >= self.patience

    def sentence(self) -> str:
        """Why the run stops, for the log."""
        count = "1 evaluation" if self.patience == 1 else f"{self.patience} evaluations"
        return (
            f"{self.metric} was not better than {self._value:.4g}, that of step {self._step}, in "
            f"{count} on the {self._split} videos"
        )

    def _count(self, step: int, split: str, value: float | None) -> bool:
        """Whether the value is the best so far; it is then the one to beat."""
        if split != self._split:  # other videos: their values cannot be compared
            self._split, self._value, self._step, self._without_better = split, math.nan, -1, 0
        defined = value is not None and math.isfinite(value)
        first = math.isnan(self._value)
        if defined and (first or self._sign * value > self._sign * self._value):
            self._value, self._step, self._without_better = float(value), step, 0
            return True
        self._without_better += not first  # without any defined value there is nothing to wait for
        return False


def read_best(run_dir: str | Path) -> dict[str, Any] | None:
    """The content of ``RUN/best.json``; None without a best checkpoint."""
    try:
        found = json.loads((Path(run_dir) / BEST_JSON).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if found.keys() >= {"step", "metric", "value", "split"} else None


def save_best(run_dir: Path, weights: dict[str, Any], about: dict[str, Any]) -> None:
    """Write ``RUN/checkpoints/best.pt`` with both dicts, its SHA-256, then ``RUN/best.json``.

    Each file is replaced whole. Raises CheckpointError if writing fails.
    """
    path = run_dir / "checkpoints" / BEST
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_listed(path, weights | about)
        write_text(run_dir / BEST_JSON, json.dumps(about, indent=2) + "\n")
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({reason_of(error)}). Free some space or grant write "
            "permission, then continue with --resume"
        ) from error
