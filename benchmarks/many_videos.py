"""A lazy sequence of videos that exist only as arrays of numbers, for measures of scale."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

ACTIONS = 400


class ManyVideos(Sequence):
    """Videos of 100 to 399 frames at 25 frames/s, in ACTIONS actions, none of them a file.

    Args:
        numbers: int (n,), the number of each video, from which its properties follow.

    Attributes:
        made: how many videos have been made, each by one access.
    """

    def __init__(self, numbers: np.ndarray):
        self.numbers, self.made = np.asarray(numbers), 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> SimpleNamespace:
        self.made += 1
        number = int(self.numbers[position])
        return SimpleNamespace(
            id=f"{number}.mp4",
            path=f"/videos/{number}.mp4",
            frames=100 + number % 300,
            fps=25.0,
            width=640,
            height=360,
            action=f"action {number % ACTIONS}",
        )

    def column(self, name: str) -> np.ndarray:
        numbers = self.numbers
        if name in ("frames", "sound"):
            return 100 + numbers % 300
        if name == "special":
            return np.zeros(len(self), dtype=bool)
        if name == "source":
            return numbers % 3
        if name == "shard":
            return numbers // 1000
        if name == "action":
            return np.array([f"action {k}" for k in range(ACTIONS)], dtype=object)[
                numbers % ACTIONS
            ]
        texts = {"id": "{}.mp4", "path": "/videos/{}.mp4"}
        return np.array([texts[name].format(number) for number in numbers.tolist()], dtype=object)

    def take(self, positions: np.ndarray) -> ManyVideos:
        return ManyVideos(self.numbers[positions])
