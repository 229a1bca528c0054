"""Shared by all commands: one-line errors, exit statuses, and the videos that were left out."""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """An error that the user can fix; the message states what is wrong and how to fix it.

    Commands print it in one line without a traceback; the same holds for VideoError and OSError.
    """


# Seconds within which all ranks start. torchrun ends the others as soon as one has failed.
START_SPREAD = 2
INCOMPLETE = 3  # exit status: done without the videos that could not be read
EXIT_STATUS = (
    "Exit status: 0 done; 3 done without the videos that could not be read, which are named when "
    "met and in the last lines; 2 wrong request; 130 interrupted."
)


@dataclass
class LeftOut:
    """The videos that a command could not read, and the number of files that `prepare` left out.

    videos: id -> reason. in_index: number of files that `prepare` left out; it does not change the
    exit status.
    """

    in_index: int = 0
    videos: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Add a video and print its name and reason immediately."""
        from tqdm import tqdm

        self.videos[name] = reason
        tqdm.write(f"left out {name}: {reason}", file=sys.stderr)

    def kept(self, records: Sequence[Any]) -> list[Any]:
        """The records (they have an ``id``) of videos that were not left out."""
        return [record for record in records if record.id not in self.videos]

    def lines(self) -> list[str]:
        """The last lines of a command's output about the videos left out."""
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


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 video", "2 videos"."""
    return f"{count} {noun}{'s' * (count != 1)}"


@contextlib.contextmanager
def short_warnings() -> Iterator[None]:
    """Print the loader's warnings of videos that it leaves out in one line each, above a bar.

    Python's way adds the file, the category and a line of the source.
    """
    from tqdm import tqdm

    usual = warnings.showwarning

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        if str(message).startswith("left out "):
            tqdm.write(str(message), file=sys.stderr)
        else:
            usual(message, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def run_command(
    command: Callable[[], LeftOut | int | None],
    *,
    needs: str = "evaluation",
    interrupted: str = "interrupted",
    several: bool = False,
) -> int:
    """Run the body of a command and return its exit status.

    Errors that a user can fix are printed on stderr as one message; the status is 2. If the body
    returns a `LeftOut` with videos, they are listed last and the status is INCOMPLETE; a status
    that it returns is passed on. Ctrl-C prints ``interrupted``; the status is 130. Other errors are
    bugs and keep their traceback. ``needs``: subject of the message about a missing package.

    Only a command with ``several`` may run as more than one process of torchrun. Of these, one
    prints; its status is 0 where it would be INCOMPLETE, as torchrun takes any other one for a
    failure.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and not several:
        return _refuse_ranks(rank, ranks)
    try:
        from fastseq.video import VideoError  # only now, so that --help need not wait for torch
        from training.support.distributed import OtherRankFailed

        result = command()
    except ImportError as error:
        print(f"error: {missing_extra(error, needs)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except (UserError, VideoError, OSError) as error:
        if getattr(error, "speaks", rank == 0):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except OtherRankFailed:
        return 2
    if isinstance(result, int):
        return result
    left_out = result or LeftOut()
    for line in left_out.lines() if rank == 0 else ():
        print(line)
    return INCOMPLETE if left_out.videos and ranks == 1 else 0


def _refuse_ranks(rank: int, ranks: int) -> int:
    """Refuse to run: each rank would do the whole work and write the same files."""
    if rank == 0:
        print(
            f"error: this command runs as one process, but WORLD_SIZE is {ranks}; start it with "
            "python, without torchrun",
            file=sys.stderr,
        )
    else:
        time.sleep(START_SPREAD)
    return 2


def missing_extra(error: ImportError, what: str) -> str:
    """The missing package and the command that installs it; raises ``error`` if it is a bug."""
    if error.name is None:  # raised by fastseq; its message contains the command
        return str(error)
    if error.name.split(".")[0] in ("fastseq", "training"):
        raise error
    return f'{error}; {what} needs: pip install "fastseq[train]"'


def check_writable(folder: Path, name: str) -> None:
    """UserError before any work is done if a folder that exists cannot receive a file."""
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder} is not writable, and {name} is written there: grant write permission, or "
            "work on a copy of the folder"
        )


def make_folder(folder: Path) -> None:
    """Make an output folder before any work is done; UserError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        reason = "is not writable"
    except OSError as error:
        writable = False
        reason = f"cannot be created ({error.strerror})"
    if not writable:
        raise UserError(f"{folder} {reason}; choose another folder for the output")
