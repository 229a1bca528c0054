"""What the evaluation commands share: errors with one message, and the videos of a run."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastseq.video import VideoError
    from training.data.index import Index, VideoRecord


class UserError(ValueError):
    """Something that the user can put right; the message says what and how."""


INCOMPLETE = 3  # exit status: done, but for videos that could not be read
EXIT_STATUS = (
    "Exit status: 0 done; 3 done, but for videos that could not be read, which are named as they "
    "are met and in the last lines; 2 wrong request; 130 interrupted."
)


@dataclass
class LeftOut:
    """The videos that a command could not read, and the files that `prepare` had left out.

    in_index: how many these are; they do not change the exit status. videos: id -> reason.
    """

    in_index: int = 0
    videos: dict[str, str] = field(default_factory=dict)

    def add(self, record: VideoRecord, error: VideoError) -> None:
        """Count a video and name it at once."""
        from tqdm import tqdm

        self.videos[record.id] = error.reason
        tqdm.write(f"left out {record.id}: {error.reason}", file=sys.stderr)

    def kept(self, records: Sequence[VideoRecord]) -> list[VideoRecord]:
        return [record for record in records if record.id not in self.videos]

    def lines(self) -> list[str]:
        """What a command says of it in the end."""
        out = []
        if self.in_index:
            files = "1 file was" if self.in_index == 1 else f"{self.in_index} files were"
            out.append(f"{files} left out when the folder was prepared")
        if self.videos:
            count = "1 video" if len(self.videos) == 1 else f"{len(self.videos)} videos"
            out.append(f"{count} could not be read and had to be left out:")
            out += [f"  {name}: {reason}" for name, reason in self.videos.items()]
            out.append(
                "repair or remove such files; `python -m training.prepare FOLDER --verify` finds "
                "all of them"
            )
        return out


def run_command(command: Callable[[], LeftOut | None]) -> int:
    """Run a command's body; exit status 2 and one message on stderr for what a user can put right.

    INCOMPLETE where it returns that videos were left out, with these as the last lines. 130 after
    Ctrl-C. Other errors are bugs and keep their traceback.
    """
    try:
        from fastseq.video import VideoError
        from training.data.index import StaleIndex
        from training.data.labels import LabelError
        from training.recipe.load import ConfigError

        left_out = command() or LeftOut()
    except ImportError as error:
        print(f"error: {missing_extra(error, 'evaluation')}", file=sys.stderr)
        return 2
    except (UserError, ConfigError, StaleIndex, LabelError, VideoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for line in left_out.lines():
        print(line)
    return INCOMPLETE if left_out.videos else 0


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


def require_some(kept: Sequence[VideoRecord], split: str, folder: Path) -> None:
    """UserError if no video of a split could be read; each has been named then."""
    if not kept:
        raise UserError(
            f"none of the videos in the split {split!r} of {folder} can be read: "
            f"`python -m training.prepare {folder} --verify` says why"
        )


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
