"""Watch the videos of a folder and set their phase boundaries: `python -m training.view FOLDER`.

Opens a page in the browser, served to this machine alone. It shows every video frame by frame with
its labels; keys set where phases begin, and save FOLDER/labels.json. No index is needed before;
after saving, run `python -m training.prepare FOLDER`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.support.command import UserError, run_command

if TYPE_CHECKING:
    from training.labelling.folder import VideoFolder

_INTERRUPTED = 130
_SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.view",
        description=__doc__,
        epilog="Exit status: 0 ended by Ctrl-C, all labels saved; 2 wrong request; 130 ended by "
        "Ctrl-C without saving all labels.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder with videos, searched to any depth")
    parser.add_argument(
        "--include",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="files to take whatever their ending if they hold a video, as in prepare (default: "
        "as the folder was prepared)",
    )
    parser.add_argument(
        "--pictures",
        metavar="PATTERN",
        help="which numbered pictures are the frames, such as 'img_*', where a folder has several "
        "sequences (default: as the folder was prepared)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="frames per second of videos stored as pictures, where labels.json states none "
        "(default: as the folder was prepared, else 25)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=360,
        metavar="PIXELS",
        help="shorter side of the pictures on the page at most (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, open no browser"
    )
    args = parser.parse_args(argv)
    if args.short_side < 1:
        parser.error(f"--short-side must be at least 1, got {args.short_side}")
    if args.fps is not None and not 0 < args.fps < math.inf:
        parser.error(f"--fps must be positive, got {args.fps:g}")
    if not 0 <= args.port < 65536:
        parser.error(f"--port must lie between 0 and 65535, got {args.port}")
    return run_command(lambda: _run(args), needs="viewing")


def _run(args: argparse.Namespace) -> int:
    from training.data.files import as_patterns
    from training.labelling.folder import VideoFolder
    from training.labelling.server import LabelServer
    from training.pages import html

    include = as_patterns(args.folder.resolve(), args.include)
    folder = VideoFolder(
        args.folder,
        include=include,
        pictures=args.pictures,
        fps=args.fps,
        short_side=args.short_side,
    )
    state = folder.state()
    videos = "1 video" if len(folder.videos) == 1 else f"{len(folder.videos)} videos"
    print(f"{folder.folder}: {videos}, {folder.count_labelled()} with phase labels")
    for line in folder.unused:
        print(line)
    for line in state["absent"]:
        print(f"labels.json: {line}")
    if state["read_only"]:
        print(f"labels cannot be saved: {state['read_only']}")
    try:
        server = LabelServer(folder, html.STYLE.read_text(encoding="utf-8"), args.port)
    except OSError as error:
        raise UserError(
            f"port {args.port} of 127.0.0.1 cannot be used ({error.strerror}); give another "
            "--port, or none for a free one"
        ) from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        folder.look_ahead()
        print(f"open {server.url}\nCtrl-C ends it", flush=True)
        with contextlib.ExitStack() as opened:
            if not args.no_browser and _has_screen():
                webbrowser.open(opened.enter_context(_private_page(server.url)))
            return _wait(folder)
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # once more, while the server stops
            server.shutdown()
            server.server_close()
        folder.close()


@contextlib.contextmanager
def _private_page(url: str) -> Iterator[str]:
    """Address of a file that leads to ``url``, for this user alone; it is removed at the end.

    All users of the machine can read the command line of a browser, and ``url`` has the token.
    """
    with tempfile.TemporaryDirectory(prefix="fastseq-") as private:  # mode 0700
        page = Path(private) / "labels.html"
        page.touch(mode=0o600)
        page.write_text(
            '<!doctype html><meta charset="utf-8"><title>Labels</title>'
            f'<meta http-equiv="refresh" content="0; url={url}"><a href="{url}">Labels</a>\n'
        )
        yield page.as_uri()


def _wait(folder: VideoFolder) -> int:
    """Wait for Ctrl-C; for a second one where the page has changes that are not saved.

    Returns the exit status: Ctrl-C is the usual end, and an interruption only where changes are
    lost.
    """
    warned = False
    while True:
        try:
            _until_interrupted()
        except KeyboardInterrupt:
            if not folder.unsaved:
                print("\nended; everything is saved")
            elif warned:
                print(f"\nended; not saved: {_listed(folder.unsaved)}")
            else:
                warned = True
                print(
                    f"\nnot saved yet: {_listed(folder.unsaved)}. Press s in the page to save; "
                    "Ctrl-C again ends it without",
                    flush=True,
                )
                continue
            if folder.labels.backup:
                print(f"the labels before this start: {folder.labels.backup}")
            if folder.saved:
                choice = shlex.quote(str(folder.folder)) + folder.options
                print(f"before training: `python -m training.prepare {choice}`")
            return _INTERRUPTED if folder.unsaved else 0


def _has_screen() -> bool:
    """Whether a browser can open a window; else Python would start one in the terminal."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _until_interrupted() -> None:
    threading.Event().wait()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no UTF-8
    sys.exit(main())
