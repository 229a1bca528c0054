"""Read a data set as its owner releases it and write labels.json: `python -m training.labels`.

Each data set has its own reader; `python -m training.labels NAME --help` shows the files that it
expects. The data set itself is never changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.datasets.dataset import Reader
from training.datasets.readers import READERS
from training.support.command import UserError, run_command

MEDIA = ("link", "transcode", "none")
_STATUS = (
    "Exit status: 0 done; 3 done, but annotated videos are missing or could not be copied, which "
    "are named; 2 wrong layout, annotation or request; 130 interrupted: the same command continues."
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.labels",
        description=__doc__,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for reader in READERS.values():
        _add(commands, reader)
    args = parser.parse_args(argv)
    return run_command(
        lambda: _run(READERS[args.name], args),
        needs="reading data sets",
        interrupted="interrupted; finished videos are kept; the same command continues",
    )


def _add(commands: argparse._SubParsersAction, reader: Reader) -> None:
    one = commands.add_parser(
        reader.name,
        help=reader.summary,
        description=f"{reader.summary}\n\nExpected files:\n{reader.layout.rstrip()}",
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("source", type=Path, metavar="SOURCE", help="the data set, see above")
    one.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder for labels.json and videos; not needed with --dry-run",
    )
    one.add_argument(
        "--media",
        choices=MEDIA,
        default="link",
        help="link (default): symbolic links to the videos; clips cut out of longer videos and "
        "frames stored in one large file become files. transcode: copies that decode fast. none: "
        "labels for videos that are in FOLDER already",
    )
    one.add_argument(
        "--short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="shorter side of copies and cuts at most (default: %(default)s)",
    )
    one.add_argument("--dry-run", action="store_true", help="count, check and write nothing")
    one.add_argument("--overwrite", action="store_true", help="replace FOLDER/labels.json")
    one.add_argument("--all", action="store_true", help="show every name instead of the first 10")
    reader.add_arguments(one)


def _run(reader: Reader, args: argparse.Namespace) -> int:
    from training.datasets.summary import summary
    from training.datasets.write import check_out, write_data_set

    if not args.source.exists():
        raise UserError(f"{args.source} does not exist")
    if getattr(args, "export", None) is not None:  # csv alone has this option
        from training.datasets.csv_table import export

        for line in export(args.source, args.export, overwrite=args.overwrite):
            print(line)
        return 0
    if args.out is not None:
        check_out(args.source, args.out, args.media, args.overwrite or args.dry_run)
    elif args.media == "none":
        raise UserError("--out FOLDER is needed: with --media none, it has the videos")
    elif not args.dry_run:
        raise UserError("--out FOLDER is needed: the folder for labels.json")
    data_set = reader.read(args.source, args)
    written = write_data_set(
        data_set,
        args.out,
        args.media,
        args.dry_run,
        progress=True,
        overwrite=args.overwrite,
        short_side=args.short_side,
    )
    for line in summary(data_set, written, every=args.all):
        print(line)
    return written.status


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    sys.exit(main())
