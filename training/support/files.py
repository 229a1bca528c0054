"""Files that are written whole or not at all."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place once it is whole.

    Where writing fails the file is removed, and what ``path`` held stays. A kill leaves
    ``.NAME.PROCESS.part`` behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole, or leave it as it was; what is written survives a power cut."""
    with replacing(path) as partial, open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file by strict JSON; NaN becomes null."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(without_nan(content), indent=2) + "\n")


def without_nan(value: Any) -> Any:
    """What strict JSON can hold: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
