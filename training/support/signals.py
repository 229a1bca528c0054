"""Ending a run on request."""

import signal
import sys
from typing import Any

from tqdm import tqdm

from training.support.distributed import is_main

ENDING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Turns the first SIGINT or SIGTERM into a request to stop; the second acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in ENDING:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requests(self) -> list[int]:
        """1 for the signal of `ENDING` that has come, to be summed over ranks."""
        return [int(self.received == number) for number in ENDING]

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        if is_main():
            tqdm.write("stopping after this step, with a checkpoint", file=sys.stderr)
        self.__exit__()
