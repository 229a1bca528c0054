"""What the evaluation commands share: errors with one message, and the videos of a run."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.index import Index, VideoRecord


class UserError(ValueError):
    """Something that the user can put right; the message says what and how."""


def run_command(command: Callable[[], None]) -> int:
    """Run a command's body; exit status 2 and one message on stderr for what a user can put right.

    130 after Ctrl-C. Other errors are bugs and keep their traceback.
    """
    try:
        from fastseq.video import VideoError
        from training.config import ConfigError
        from training.data.index import StaleIndex
        from training.data.labels import LabelError

        command()
    except ImportError as error:
        print(f"error: {missing_extra(error, 'evaluation')}", file=sys.stderr)
        return 2
    except (UserError, ConfigError, StaleIndex, LabelError, VideoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def missing_extra(error: ImportError, what: str) -> str:
    """What is not installed and the command that installs it; raises ``error`` if it is a bug."""
    if error.name is None:  # raised by fastseq, with the command
        return str(error)
    if error.name.split(".")[0] in ("fastseq", "training"):
        raise error
    return f'{error}; {what} needs: pip install "fastseq[train]"'


def open_index(cfg: Any, folder: str | Path | None) -> Index:
    """The index of ``folder``, or of the folder that the run was trained on."""
    from training.data.index import load_index

    return load_index(folder or cfg.data.folder)


def split_videos(index: Index, split: str) -> list[VideoRecord]:
    """The videos of one split; UserError if there are none."""
    records = [record for record in index.videos if record.split == split]
    if not records:
        if not index.videos:
            raise UserError(
                f"{index.folder} has no video that can be read; "
                f"`python -m training.prepare {index.folder}` says why"
            )
        splits = ", ".join(sorted({record.split for record in index.videos}))
        raise UserError(
            f"{index.folder} has no videos in the split {split!r}, only in {splits}; write "
            f'"split": "{split}" for some of them in {Path(index.folder) / "labels.json"} and run '
            f"`python -m training.prepare {index.folder}`"
        )
    return records


def make_folder(folder: Path) -> None:
    """Make a folder to write to, before there is work to lose; UserError if it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        reason = "is not writable"
    except OSError as error:
        writable = False
        reason = f"cannot be made a folder ({error.strerror})"
    if not writable:
        raise UserError(f"{folder} {reason}; give another place for the output")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON in one step; NaN becomes null."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(_without_nan(content), indent=2) + "\n")
    os.replace(partial, path)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
