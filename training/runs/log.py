"""The logs of a run: log.jsonl, evaluations.jsonl, and measures of collapse."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.runs.writers import Writer
from training.support.files import without_nan, write_text

LOG = "log.jsonl"
EVALUATIONS = "evaluations.jsonl"  # see training.evaluation.curve


class JsonLines:
    """A file of JSON objects, one per line, each with its step; NaN and infinities become null.

    Continuing at ``start_step`` drops lines that an interrupted run wrote after its checkpoint.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= start_step]
        if path.exists():  # replaced whole: these lines are in no checkpoint
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.last_step = kept[-1]["step"] if kept else None
        self._file = open(path, "a")  # noqa: SIM115 - closed in close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(without_nan({"step": step} | values)) + "\n")
        self._file.flush()
        self.last_step = step

    def sync(self) -> None:
        """Flush to disk, so that all lines survive a power cut; called before each checkpoint."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class RunLog:
    """Writes ``RUN/log.jsonl`` and ``RUN/evaluations.jsonl``, and the same numbers to a writer.

    Each file has one JSON object per line. Continuing at ``start_step`` drops what an interrupted
    run wrote after its checkpoint.

    Args:
        writer: shows the numbers too, see `training.runs.writers`; closed with this object.
        evaluations: whether the run is evaluated while it trains.
    """

    def __init__(
        self,
        run_dir: Path,
        start_step: int = 0,
        *,
        writer: Writer | None = None,
        evaluations: bool = False,
    ) -> None:
        self._lines = JsonLines(run_dir / LOG, start_step)
        self._evaluations = JsonLines(run_dir / EVALUATIONS, start_step) if evaluations else None
        self._writer = writer

    @property
    def last_evaluation(self) -> int | None:
        """Step of the last line in evaluations.jsonl."""
        return None if self._evaluations is None else self._evaluations.last_step

    def write(
        self, step: int, values: dict[str, float | int], nonfinite: list[dict[str, Any]]
    ) -> None:
        """Write a line; ``nonfinite``: steps skipped since the last line, with their videos."""
        self._lines.write(step, values | ({"nonfinite": nonfinite} if nonfinite else {}))
        if self._writer is not None:
            self._writer.scalars(step, values)

    def write_evaluation(self, step: int, found: dict[str, Any]) -> None:
        """Write a line with ``split``, ``metrics`` and ``time_index``.

        The writer names the numbers ``SPLIT/METRIC`` and ``SPLIT/time_index/METRIC``; it has none
        that is undefined (NaN).
        """
        self._evaluations.write(step, found)
        if self._writer is not None:
            places = {"": found["metrics"], "time_index/": found["time_index"]}
            self._writer.scalars(
                step,
                {
                    f"{found['split']}/{place}{name}": value
                    for place, metrics in places.items()
                    for name, value in metrics.items()
                    if math.isfinite(value)
                },
            )

    def sync(self) -> None:
        """Flush to disk, see `JsonLines.sync`."""
        for lines in (self._lines, self._evaluations):
            if lines is not None:
                lines.sync()

    def close(self) -> None:
        for part in (self._lines, self._evaluations, self._writer):
            if part is not None:
                part.close()


class Pace:
    """Warns once if training has become much slower than at first.

    Time spent waiting for data does not count; the log's ``data_wait`` shows it. With one thread
    there is no warning: no thread waits for another.
    """

    FIRST = 3  # intervals that determine the usual speed
    SHARE = 0.4  # of the usual speed

    def __init__(self) -> None:
        self._first: list[float] = []
        self._said = False

    def remark(self, frames: float, seconds: float) -> str:
        """The warning after an interval of so many frames and seconds of work, usually ""."""
        rate = frames / max(seconds, 1e-9)
        if len(self._first) < self.FIRST:
            self._first.append(rate)
            return ""
        usual = sorted(self._first)[self.FIRST // 2]
        if self._said or rate >= self.SHARE * usual or torch.get_num_threads() == 1:
            return ""
        self._said = True
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        return (
            f"training takes {rate:.0f} frames/s, at first it took {usual:.0f}{load} on "
            f"{os.cpu_count()} cores: other work on the cores slows down the threads, which wait "
            "for each other. OMP_WAIT_POLICY=passive or OMP_NUM_THREADS=1 reduces the slowdown"
        )


def read_log(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of ``RUN/log.jsonl``, see `read_lines`."""
    return read_lines(Path(run_dir) / LOG)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that a `JsonLines` wrote, without a last line that a crash cut short."""
    lines = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def collapse_measures(embeddings: Tensor, most: int = 512) -> dict[str, float]:
    """Two numbers that fall when embeddings (rows of (M, E)) collapse.

    ``pairwise_distance``: mean Euclidean distance of two different rows of unit length, about 1.41
    for unrelated rows, 0 if all embeddings are equal. ``effective_rank``: exp of the entropy of the
    normalised singular values of the centred rows, 1 if they lie on a line, at most E. At most
    ``most`` evenly spaced rows are used. Both are NaN if one of these is not finite.
    """
    rows = embeddings.detach().float()
    rows = torch.nn.functional.normalize(rows[:: max(1, len(rows) // most)], dim=-1)
    if not torch.isfinite(rows).all():  # svdvals would raise; the step is skipped anyway
        return {"pairwise_distance": math.nan, "effective_rank": math.nan}
    singular = torch.linalg.svdvals(rows - rows.mean(0))
    share = singular / singular.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {
        "pairwise_distance": torch.pdist(rows).mean().item() if len(rows) > 1 else 0.0,
        "effective_rank": entropy.exp().item(),
    }
