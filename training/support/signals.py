"""Signals that stop a run after the current step."""

import signal
import sys
from typing import Any

from tqdm import tqdm

from training.support.distributed import is_main, world_size

ENDING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Turns the first SIGINT or SIGTERM into a request to stop; the second has its usual effect."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in ENDING:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *error: object) -> None:
        for number, handler in self._before.items():
            # After an error one of several ranks says why all end; torchrun's SIGTERM comes then.
            ending = kind is not None and number == signal.SIGTERM and world_size() > 1
            signal.signal(number, signal.SIG_IGN if ending else handler)

    def requests(self) -> list[int]:
        """For each signal of `ENDING` 1 if it was received, else 0; to be summed over ranks."""
        return [int(self.received == number) for number in ENDING]

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        if is_main():
            tqdm.write("stopping after this step, with a checkpoint", file=sys.stderr)
        self.__exit__()
