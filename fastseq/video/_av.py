"""The one place that imports PyAV, so that `import fastseq.video` works without it."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any


class VideoError(RuntimeError):
    """A video file that cannot be read as requested; `path` and `reason` state which and why."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)  # both as args: the error pickles across loader workers
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@functools.cache
def require_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'reading and writing video needs PyAV: pip install "fastseq[video]"'
        ) from error
    return av


@functools.cache
def single_thread() -> dict[str, Any]:
    """Arguments that keep `VideoReformatter.reformat` on one thread.

    From PyAV 17 on it starts a thread per core by default, several times slower for small frames.
    """
    return {"threads": 1} if int(require_av().__version__.split(".")[0]) >= 17 else {}
