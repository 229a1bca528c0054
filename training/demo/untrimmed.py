"""Generated untrimmed videos: several actions with pauses between them, for localisation.

    python -m training.demo.untrimmed FOLDER [--seed 0]

A video shows the actor of one of the two generated actions. It rests, performs one to three
segments of four classes of `training.demo.classes`, and rests between and after them: in a rest the
pose of a moment stays, with a small sway. A segment is 8 to 35 % of the video. labels.json has the
segments, as phases of the one action "all".
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.demo.classes import CLASSES
from training.demo.render import (
    SPLITS,
    RenderSummary,
    VideoPlan,
    check_numbers,
    describe,
    write_dataset,
)
from training.demo.scene import ACTIONS

GENERATOR = "training.demo.untrimmed/1"  # raise the number whenever pictures or labels change
FRAMES = (200, 300)
SEGMENTS = (1, 3)
SHARES = (0.08, 0.35)  # of a segment in its video
SHORTEST_REST = 8  # frames
# The classes of segments. They are named here, so that a class added to CLASSES changes no video.
SHOWN = {
    name: CLASSES[name]
    for name in ("place-reach", "place-carry", "swing-backswing", "swing-downswing")
}
# A video's number is its seed, so these videos must not share numbers with those of the classes.
FIRST_NUMBER = 10_000_000


@dataclass(frozen=True)
class Segment:
    """Frames start to stop - 1, in which a class of `SHOWN` is performed once."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class UntrimmedPlan(VideoPlan):
    """A plan whose phases follow from its segments; ``boundaries`` is empty."""

    segments: tuple[Segment, ...]

    @property
    def id(self) -> str:
        return f"{self.split}_{self.number % FIRST_NUMBER:03d}.mp4"

    @property
    def phases(self) -> np.ndarray:
        return self._poses()[0]

    @property
    def fractions(self) -> np.ndarray:
        return self._poses()[1]

    def _poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Phase and fraction of every frame; in a rest those of the segment's nearest end.

        Before the middle of a pause the actor rests in the last pose of the segment before, then in
        the first pose of the next one.
        """
        place = np.empty(self.frames)  # phase + fraction
        edge = 0
        for number, one in enumerate(self.segments):
            _, first, last = SHOWN[one.name]
            inside = np.arange(one.stop - one.start) / (one.stop - one.start)
            place[edge : one.start] = first
            place[one.start : one.stop] = first + inside * (last + 1 - first)
            following = self.segments[number + 1 :]
            edge = (one.stop + following[0].start) // 2 if following else self.frames
            place[one.stop : edge] = last + 1 - 1e-6
        phases = np.floor(place).astype(np.int64)
        return phases, place - phases


def plan_untrimmed(seed: int, split: str, number: int) -> UntrimmedPlan:
    """Draw a video. The pauses share what the segments leave, by a flat Dirichlet distribution."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number, 5])
    action = list(ACTIONS)[number % len(ACTIONS)]
    frames = int(rng.integers(*FRAMES, endpoint=True))
    count = int(rng.integers(*SEGMENTS, endpoint=True))
    names = [name for name, one in SHOWN.items() if one[0] == action]
    most = min(SHARES[1], 0.7 / count)
    lengths = (frames * rng.uniform(SHARES[0], most, count)).astype(int)
    free = frames - lengths.sum() - (count + 1) * SHORTEST_REST
    shares = rng.dirichlet(np.ones(count + 1))
    rests = np.floor(shares * free).astype(int) + SHORTEST_REST
    starts = np.cumsum(rests[:-1]) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    segments = tuple(
        Segment(str(rng.choice(names)), int(start), int(start + length))
        for start, length in zip(starts, lengths, strict=True)
    )
    return UntrimmedPlan(action, split, FIRST_NUMBER + number, (), frames, segments)


def render_untrimmed(
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    train: int = 60,
    test: int = 30,
    side: int = 48,
    clutter: bool = False,
    progress: bool = True,
) -> RenderSummary:
    """Write the data set to `folder`, or reuse it; see `training.demo.render.render_dataset`.

    Args:
        train, test: numbers of videos.
        side: width and height in pixels.
    """
    check_numbers(train=train, test=test)
    plans = [
        plan_untrimmed(seed, split, number)
        for split, count in zip(SPLITS, (train, test), strict=True)
        for number in range(count)
    ]
    names = list(SHOWN)
    labels = {
        "generator": {"name": GENERATOR, "seed": seed, "side": side, "clutter": clutter},
        "classes": {"all": names},
        "videos": {
            plan.id: {
                "action": "all",
                "split": plan.split,
                "segments": [[one.start, one.stop, one.name] for one in plan.segments],
            }
            for plan in plans
        },
    }
    return write_dataset(folder, plans, labels, progress=progress)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.untrimmed", description="Render untrimmed videos."
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--train", type=int, default=60, help="training videos, default: 60")
    parser.add_argument("--test", type=int, default=30, help="test videos, default: 30")
    parser.add_argument(
        "--side", type=int, default=48, help="width and height in pixels, default: 48"
    )
    parser.add_argument("--clutter", action="store_true", help="draw shapes behind the actor")
    options = parser.parse_args(argv)
    try:
        summary = render_untrimmed(**vars(options))
    except (ValueError, OSError) as error:  # ValueError: UserError, and numpy of seeds
        parser.error(str(error))
    print(describe(summary))


if __name__ == "__main__":
    main()
