"""Files that are written whole or not at all."""

import contextlib
import json
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that replaces it when the ``with`` block ends without error.

    A file that is there already keeps its mode. If writing fails, the temporary file is removed
    and ``path`` stays unchanged. A killed process leaves ``.NAME.PROCESS.part`` behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if stat.S_IMODE(partial.stat().st_mode) != mode:  # not all file systems can change it
                partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """A name as part of a path; characters that a name of a file lacks are escaped."""
    return re.sub(r"[/\\%:\x00-\x1f]|^\.", lambda c: f"%{ord(c[0]):02X}", name)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole or leave it unchanged; written text survives a power cut."""
    with replacing(path) as partial, open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file by strict JSON; NaN and infinity become null."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(without_nan(content), indent=2) + "\n")


def read_npz(path: Path, keys: Sequence[str] | None = None) -> dict[str, "np.ndarray"]:
    """The arrays of an npz file (default: all) without pickled objects.

    Raises OSError if it cannot be opened, and ValueError if it is damaged, of another kind or lacks
    a key.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in (data.files if keys is None else keys)}
    # numpy raises EOFError for an empty file; an npy file has no context.
    except (EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no complete npz file ({error})") from error


def without_nan(value: Any) -> Any:
    """The value for strict JSON: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
