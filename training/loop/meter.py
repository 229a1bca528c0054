"""The counters of a run: time, frames, losses, and skipped steps."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from training.loop.step import StepResult
from training.runs.log import Pace
from training.support.distributed import gather_objects, is_main, world_size


class Meter:
    """Counters for the whole run and since the last log line.

    The time of a step lasts from `start` to `stepped`; the part before `arrived`, when the step's
    data are there, is waiting. Logs and checkpoints are written between `stepped` and the next
    `start` and are not counted.

    ``parts``: number of consecutive ranks that share every clip.
    """

    KEPT = ("seconds", "skipped", "skipped_in_a_row", "losses", "nonfinite")  # in checkpoints

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts
        self.seconds = 0.0  # of this part of the run and all earlier ones
        self.skipped = 0  # steps without a finite loss: in total, then in a row
        self.skipped_in_a_row = 0
        self.losses: list[float] = []  # since the last log line, as all below
        self.nonfinite: list[dict[str, Any]] = []  # skipped steps, with their videos
        self._frames = self._waited = 0.0
        self._logged_at = 0.0
        self._pace = Pace()

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.KEPT}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in self.KEPT:
            setattr(self, name, state[name])
        self._logged_at = self.seconds

    def start(self) -> None:
        """Start the clock of a step."""
        self._clock = time.perf_counter()

    def arrived(self) -> None:
        self._waited += time.perf_counter() - self._clock

    def stepped(self, step: int, result: StepResult, batches: Sequence[dict[str, Any]]) -> None:
        """Count a step; to be called on every rank."""
        self._count(step, result, batches)
        self._frames += world_size() * sum(batch["valid"].numel() for batch in batches)
        self.seconds += time.perf_counter() - self._clock

    def _count(self, step: int, result: StepResult, batches: Sequence[dict[str, Any]]) -> None:
        if result.finite:
            self.losses.append(result.loss)
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += not result.overflow  # a smaller scale will remedy that
        mine = [name for batch in batches for name in batch["ids"]]
        videos = [name for names in gather_objects(mine)[:: self.parts] for name in names]
        self.nonfinite.append({"step": step, "videos": videos})
        if result.overflow:
            if is_main():
                tqdm.write(
                    f"step {step}: the gradient overflowed in fp16; step skipped, and the scale of "
                    "the loss is halved",
                    file=sys.stderr,
                )
        elif self.skipped_in_a_row == 1 and is_main():
            tqdm.write(
                f"step {step}: loss {result.loss}, gradient norm {result.norm}; step skipped "
                f"(videos {', '.join(videos)})",
                file=sys.stderr,
            )

    @property
    def loss(self) -> float:
        """Mean over the steps since the last log line; NaN if all were skipped."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan

    @property
    def frames_per_s(self) -> float:
        return self._frames / (self.seconds - self._logged_at)

    @property
    def data_wait(self) -> float:
        """Share of the time since the last log line that was spent waiting for data."""
        return self._waited / (self.seconds - self._logged_at)

    def logged(self) -> str:
        """Reset the counters of the log line; returns a remark on its speed, usually ""."""
        worked = self.seconds - self._logged_at - self._waited
        remark = self._pace.remark(self._frames, worked)
        self.losses.clear()
        self.nonfinite.clear()
        self._frames = self._waited = 0.0
        self._logged_at = self.seconds
        return remark
