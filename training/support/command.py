"""What commands share: errors in one line, exit statuses, and the videos that were left out."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something that the user can put right; the message says what and how.

    Commands print it in one line without a traceback, as they do VideoError and OSError.
    """


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

    def add(self, name: str, reason: str) -> None:
        """Count a video and name it at once."""
        from tqdm import tqdm

        self.videos[name] = reason
        tqdm.write(f"left out {name}: {reason}", file=sys.stderr)

    def kept(self, records: Sequence[Any]) -> list[Any]:
        """The records (they have an ``id``) of videos that were not left out."""
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


def run_command(
    command: Callable[[], LeftOut | int | None],
    *,
    needs: str = "evaluation",
    interrupted: str = "interrupted",
) -> int:
    """Run a command's body; exit status 2 and one message on stderr for what a user can put right.

    INCOMPLETE where it returns that videos were left out, with these as the last lines; a status
    that it returns itself is passed on. 130 and ``interrupted`` after Ctrl-C. Other errors are bugs
    and keep their traceback. ``needs``: what cannot be done without a package that is missing.
    """
    try:
        from fastseq.video import VideoError  # only now, so that --help need not wait for torch

        result = command()
    except ImportError as error:
        print(f"error: {missing_extra(error, needs)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except (UserError, VideoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(result, int):
        return result
    left_out = result or LeftOut()
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
