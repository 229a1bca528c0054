"""Check a folder of videos once and write its index: python -m training.prepare FOLDER."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.data.index import Index

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
        help="give a file up after this long (default: 60)",
    )
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if args.labels is not None and not args.labels.is_file():
        parser.error(f"{args.labels} is not a file")
    if not args.time_limit > 0:
        parser.error(f"--time-limit must be positive, got {args.time_limit:g}")

    from training.data.index import INDEX_NAME, build_index, find_videos  # slow: after --help
    from training.data.labels import LabelError

    try:
        index = build_index(
            args.folder,
            labels=args.labels,
            verify=args.verify,
            time_limit=args.time_limit,
            progress=True,
        )
    except (LabelError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    print(summary(index))
    _, others = find_videos(index.folder)
    if others:
        print(f"ignored: {others} files that are not videos by the ending of their names")
    print(f"written: {index.folder / INDEX_NAME}")
    if not index.videos:
        why = "all are damaged" if index.bad else "none has the ending of a video file's name"
        print(f"error: no video can be used: {why}", file=sys.stderr)
        return 1
    return 0


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
    sys.exit(main())
