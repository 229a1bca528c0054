"""Generated videos of eight classes, parts of the two actions, for methods that score whole videos.

    python -m training.demo.classes FOLDER [--seed 0]

A class is one or two successive phases of an action, forwards or backwards. Its videos show only
these, in 60 to 180 frames; colours, viewpoint, build and speed differ between videos. So the
classes of an action share its scene and some frames: one class begins with the pose in which
another ends. A class and its backward one (`REVERSED`) have the same frames in opposite order: a
single frame cannot distinguish them, only motion can.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.demo.render import (
    SHORTEST_PHASE,
    SPLITS,
    RenderSummary,
    VideoPlan,
    check_numbers,
    describe,
    write_dataset,
)
from training.demo.scene import ACTIONS

GENERATOR = "training.demo.classes/2"  # raise the number whenever the pictures or labels change
FRAMES = (60, 180)
CLASSES = {  # action, first and last phase shown
    "place-reach": ("place", 0, 1),
    "place-carry": ("place", 2, 3),
    "place-return": ("place", 4, 4),
    "swing-backswing": ("swing", 0, 1),
    "swing-downswing": ("swing", 2, 3),
    "swing-finish": ("swing", 4, 4),
    "place-fetch": ("place", 2, 3),
    "swing-rewind": ("swing", 2, 3),
}
REVERSED = {"place-fetch": "place-carry", "swing-rewind": "swing-downswing"}  # played backwards
# A video's number is its seed, so videos of different classes must not share numbers.
NUMBERS = 100_000


@dataclass(frozen=True)
class ClassPlan(VideoPlan):
    """A plan in which phases outside the class have no frames.

    `boundaries` are those of the class played forwards; `phases` and `fractions` are as shown.
    """

    name: str

    @property
    def phases(self) -> np.ndarray:
        return self._in_order(self._forwards.phases)

    @property
    def fractions(self) -> np.ndarray:
        return self._in_order(self._forwards.fractions)

    @property
    def _forwards(self) -> VideoPlan:
        return VideoPlan(self.action, self.split, self.number, self.boundaries, self.frames)

    def _in_order(self, values: np.ndarray) -> np.ndarray:
        return values[::-1] if self.name in REVERSED else values

    @property
    def id(self) -> str:
        return f"{self.name}/{self.split}_{self.number % NUMBERS:03d}.mp4"


def plan_class(seed: int, name: str, split: str, number: int) -> ClassPlan:
    action, first, last = CLASSES[name]
    place = list(CLASSES).index(name)
    rng = np.random.default_rng([seed, place, SPLITS.index(split), number, 3])
    frames = int(rng.integers(FRAMES[0], FRAMES[1], endpoint=True))
    shown = last - first + 1
    inner = np.sort(rng.integers(SHORTEST_PHASE, frames - SHORTEST_PHASE, shown - 1))
    after = len(ACTIONS[action].phases) - 1 - last
    boundaries = (*[0] * first, *inner.tolist(), *[frames] * after)
    return ClassPlan(action, split, place * NUMBERS + number, boundaries, frames, name)


def render_classes(
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    train_per_class: int = 40,
    test_per_class: int = 20,
    side: int = 96,
    clutter: bool = False,
    progress: bool = True,
) -> RenderSummary:
    """Write the data set to `folder`, or reuse it; see `training.demo.render.render_dataset`.

    In labels.json the class is the "action" of a video; there are no phases.
    """
    check_numbers(train_per_class=train_per_class, test_per_class=test_per_class)
    counts = dict(zip(SPLITS, (train_per_class, test_per_class), strict=True))
    plans = [
        plan_class(seed, name, split, number)
        for name in CLASSES
        for split, count in counts.items()
        for number in range(count)
    ]
    labels = {
        "generator": {"name": GENERATOR, "seed": seed, "side": side, "clutter": clutter},
        "videos": {plan.id: {"action": plan.name, "split": plan.split} for plan in plans},
    }
    return write_dataset(folder, plans, labels, progress=progress)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.classes", description="Render videos of eight classes."
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--train-per-class", type=int, default=40, help="training videos, default: 40"
    )
    parser.add_argument("--test-per-class", type=int, default=20, help="test videos, default: 20")
    parser.add_argument(
        "--side", type=int, default=96, help="width and height in pixels, default: 96"
    )
    parser.add_argument("--clutter", action="store_true", help="draw shapes behind the actor")
    options = parser.parse_args(argv)
    try:
        summary = render_classes(**vars(options))
    except (ValueError, OSError) as error:  # ValueError: UserError, and numpy of seeds
        parser.error(str(error))
    print(describe(summary))


if __name__ == "__main__":
    main()
