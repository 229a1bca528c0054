"""Check a folder of videos once and write its index: python -m training.prepare FOLDER.

With --transcode OUT it copies the videos into files that decode fast and writes the index of OUT,
with --shards OUT it packs them into tar files and writes their index too.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from training.support.command import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if at least one video can be read, 1 if none can, 2 for wrong usage or labels,
    130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description="Check every video of a folder, read the labels and write "
        "FOLDER/fastseq_index.sqlite, the index that all other commands read. Videos that cannot "
        "be read are listed and left out. A file is checked again only if it has changed, and an "
        "interrupted check continues.",
        epilog="Example: python -m training.prepare my_videos. Exit status: 0 done; 1 no video can "
        "be used; 2 wrong request or labels; 130 interrupted.",
    )
    parser.add_argument("folder", type=Path, help="folder with videos, searched to any depth")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="labels file (default: FOLDER/labels.json)"
    )
    parser.add_argument(
        "--include",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="also use files that match this pattern, such as '*.dat', if they hold a video (after "
        "FOLDER; may be repeated). Without it, files with an unknown extension are opened to see "
        "whether they hold a video; files whose extension means text, sound, picture or archive "
        "are ignored",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="decode every frame of the files for which this was not done before: finds all "
        "damage, takes longer",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="give up on a file after this time (default: 60); with --transcode, after this time "
        "without a new frame",
    )
    parser.add_argument(
        "--all", action="store_true", help="list every name instead of the first of each group"
    )
    pictures = parser.add_argument_group("videos stored as folders of numbered pictures")
    pictures.add_argument(
        "--pictures",
        metavar="PATTERN",
        help="which pictures are the frames, such as 'img_*', where a folder has several sequences",
    )
    pictures.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="their frames per second, where labels.json states none (default: 25)",
    )
    copies = parser.add_argument_group("copies that decode fast")
    copies.add_argument(
        "--transcode",
        type=Path,
        metavar="OUT",
        help="copy the videos and labels to this folder, in a form that decodes fast, and write "
        "the index of the copies instead; the same command continues after an interruption",
    )
    copies.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="shorter side of the copies (default: 256)",
    )
    copies.add_argument(
        "--keyframe-every",
        type=int,
        metavar="FRAMES",
        help="distance between key frames (default: 16)",
    )
    copies.add_argument(
        "--crf",
        type=int,
        help="x264's quality from 0 to 51: a smaller number means better quality and larger files "
        "(default: 20)",
    )
    shards = parser.add_argument_group("WebDataset shards")
    shards.add_argument(
        "--shards",
        type=Path,
        metavar="OUT",
        help="pack the videos (the copies, with --transcode) and labels into tar files in this "
        "folder, and write the index of it too",
    )
    shards.add_argument(
        "--shard-size",
        type=float,
        metavar="MB",
        help="largest size of a tar file in 10^6 bytes (default: 500)",
    )
    args = parser.parse_args(arguments)
    args.words = sys.argv[1:] if arguments is None else [*arguments]
    chosen = {name: getattr(args, name) for name in ("short_side", "keyframe_every", "crf")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and args.transcode is None:
        parser.error(f"--{next(iter(chosen)).replace('_', '-')} needs --transcode OUT")
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if args.labels is not None and not args.labels.is_file():
        parser.error(f"{args.labels} is not a file")
    for name in ("time_limit", "fps", "shard_size"):
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is not None and not 0 < value < math.inf:
            parser.error(f"{option} must be positive, got {value:g}")
    if args.shard_size is not None and args.shards is None:
        parser.error("--shard-size needs --shards OUT")
    return run_command(
        lambda: _run(args, chosen),
        needs="preparing",
        interrupted="interrupted; finished checks and copies are kept; the same command continues",
    )


def _run(args: argparse.Namespace, chosen: dict[str, int]) -> int:
    from training.data.files import INDEX_NAME, as_patterns  # slow: after --help
    from training.data.index import build_index
    from training.data.summary import Summary, forgotten, no_test_videos, nothing_usable

    texts = Summary(everything=args.all, verify=args.verify)
    folder, labels, bad = args.folder, args.labels, []
    limits = {"time_limit": args.time_limit, "progress": True}
    chosen_files = {"include": as_patterns(folder.resolve(), args.include)}
    given = {"pictures": args.pictures, "fps": args.fps}
    chosen_files |= {name: value for name, value in given.items() if value is not None}
    repeated = {name for name, value in {**chosen_files, "labels": labels}.items() if value}
    for line in forgotten(folder, repeated, args.words):
        print(line)
    if args.transcode is not None:
        from training.data.transcode import Settings, transcode_folder

        report = transcode_folder(
            folder, args.transcode, Settings(**chosen), labels=labels, **chosen_files, **limits
        )
        print("\n".join([texts.of_copies(report), *texts.of_source(folder, report.found)]))
        folder, labels, bad = args.transcode, None, report.bad
        chosen_files = {}
    index = build_index(folder, labels=labels, verify=args.verify, **chosen_files, **limits)
    if args.shards is not None and index.videos:
        from training.data.shards import write_shards

        print(texts.of_index(index))
        if args.transcode is None:
            for line in texts.of_source(folder, index.found):
                print(line)
        size = {} if args.shard_size is None else {"size_mb": args.shard_size}
        print(write_shards(index, args.shards, **size, progress=True))
        labels = None
        index = build_index(args.shards, verify=args.verify, **limits)
    print(texts.of_index(index))
    if args.transcode is None and args.shards is None:
        for line in texts.of_others(index.found):
            print(line)
    if index.videos or index.bad:
        print(f"written: {index.folder / INDEX_NAME}")
    if index.videos and not index.videos.where(split="test"):
        val = len(index.videos.where(split="val"))
        print(no_test_videos(index.folder, labels, val))
    if not index.videos:
        print(f"error: no video can be used: {nothing_usable(index.bad or bad)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    sys.exit(main())
