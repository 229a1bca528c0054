"""Check a folder of videos once and write its index: python -m training.prepare FOLDER.

With --transcode OUT: copy the videos into files that decode fast, and write the index of OUT.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.data.index import Index
    from training.transcode import Report

_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 with at least one good video, 1 without, 2 for wrong usage or labels, 130
    after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description="Checks every video of a folder, reads the labels and writes "
        "FOLDER/fastseq_index.json. Videos that cannot be read are listed and left out.",
    )
    parser.add_argument("folder", type=Path, help="folder with videos, searched to any depth")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="labels file (default: FOLDER/labels.json)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="decode every frame: finds all damage, takes longer"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="give a file up after this long (default: 60), with --transcode after this long "
        "without a new frame",
    )
    copies = parser.add_argument_group("copies that decode fast")
    copies.add_argument(
        "--transcode",
        type=Path,
        metavar="OUT",
        help="copy the videos and labels to this folder, in a form that decodes fast, and write "
        "its index instead; goes on where it was interrupted",
    )
    copies.add_argument("--short-side", type=int, metavar="PIXELS", help="default: 256")
    copies.add_argument("--keyframe-every", type=int, metavar="FRAMES", help="default: 16")
    copies.add_argument(
        "--crf", type=int, help="quality, 0 to 51, smaller is better and larger (default: 20)"
    )
    args = parser.parse_args(arguments)
    chosen = {name: getattr(args, name) for name in ("short_side", "keyframe_every", "crf")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and args.transcode is None:
        parser.error(f"--{next(iter(chosen)).replace('_', '-')} needs --transcode OUT")
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if args.labels is not None and not args.labels.is_file():
        parser.error(f"{args.labels} is not a file")
    if not args.time_limit > 0:
        parser.error(f"--time-limit must be positive, got {args.time_limit:g}")

    from training.data.index import INDEX_NAME, build_index, find_videos  # slow: after --help

    folder, labels, report = args.folder, args.labels, None
    try:
        if args.transcode is not None:
            from training.transcode import Settings, transcode_folder

            report = transcode_folder(
                folder,
                args.transcode,
                Settings(**chosen),
                labels=labels,
                time_limit=args.time_limit,
                progress=True,
            )
            print(transcoded(report))
            folder, labels = args.transcode, None
        index = build_index(
            folder,
            labels=labels,
            verify=args.verify,
            time_limit=args.time_limit,
            progress=True,
        )
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "finished copies stay, the same command goes on"
        what = "nothing was written" if args.transcode is None else goes_on
        print(f"interrupted; {what}", file=sys.stderr)
        return 130
    print(summary(index))
    _, others, closed = find_videos(args.folder)
    if others:
        print(f"ignored: {others} files without the ending of a video's name, or broken links")
    for name in closed:
        print(f"not looked into: {name}")
    print(f"written: {index.folder / INDEX_NAME}")
    if not index.videos:
        bad = index.bad or (report.bad if report else [])
        none = "none has the ending of a video file's name, or all are broken links"
        why = "all are damaged" if bad else none
        print(f"error: no video can be used: {why}", file=sys.stderr)
        return 1
    return 0


def transcoded(report: Report) -> str:
    """What was copied and what was not, in a few lines."""
    speed = f", {report.frames / report.seconds:.0f} frames/s" if report.frames else ""
    lines = [f"copied: {len(report.written)} videos, {report.frames} frames{speed}"]
    if report.kept:
        lines.append(f"copied before: {len(report.kept)} videos")
    bad = [(entry["reason"], entry["path"]) for entry in report.bad]
    lines += _grouped(f"not copied: {len(bad)} videos", bad)
    strays = [("no video of this name was copied", name) for name in report.strays]
    lines += _grouped(f"in the output folder all the same: {len(strays)} videos", strays)
    return "\n".join(lines)


def summary(index: Index) -> str:
    """What an index holds, in a few lines."""
    videos = index.videos
    frames = sum(video.frames for video in videos)
    hours = sum(video.frames / video.fps for video in videos if video.fps) / 3600
    labelled = sum(video.phases is not None for video in videos)
    lines = [
        f"{index.folder}: {len(videos)} videos, {frames} frames, {hours:.2f} hours",
        f"  splits: {_counts(video.split for video in videos)}",
        f"  actions: {_counts(video.action for video in videos)}",
        f"  with phase labels: {labelled}",
    ]
    lengths = sorted(video.frames for video in videos)
    if lengths:
        middle = lengths[len(lengths) // 2]
        lines.append(f"  frames a video: {lengths[0]} to {lengths[-1]}, median {middle}")
    notes = [(video.note, video.id) for video in videos if video.note]
    lines += _grouped(f"used as far as they go: {len(notes)} damaged videos", notes)
    bad = [(entry["reason"], entry["path"]) for entry in index.bad]
    lines += _grouped(f"left out: {len(bad)} files", bad)
    return "\n".join(lines)


def _counts(values: Iterable[str]) -> str:
    counted = sorted(Counter(values).items())
    return ", ".join(f"{name} {count}" for name, count in counted) or "none"


def _grouped(title: str, items: list[tuple[str, str]]) -> list[str]:
    if not items:
        return []
    groups = defaultdict(list)
    for reason, name in items:
        groups[reason].append(name)
    lines = [title]
    for reason, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - _SHOWN} more (see the index)" if len(names) > _SHOWN else ""
        lines.append(f"  {reason} ({len(names)}): {', '.join(names[:_SHOWN])}{more}")
    return lines


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no UTF-8
    sys.exit(main())
