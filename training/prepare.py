"""Check a folder of videos once and write its index: python -m training.prepare FOLDER.

With --transcode OUT it copies the videos into files that decode fast and writes the index of OUT.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.support.command import run_command

if TYPE_CHECKING:
    from training.data.files import Found
    from training.data.index import Index, VideoRecord
    from training.data.transcode import Report

_SHOWN = 10
_FEW = 3
_UNUSED = "the video is left out"
_FAR = (
    "decoding starts long before the requested frame; `python -m training.prepare {} --transcode "
    "OUT` makes copies that decode fast"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if at least one video can be read, 1 if none can, 2 for wrong usage or labels,
    130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description="Check every video of a folder, read the labels and write "
        "FOLDER/fastseq_index.json, the index that all other commands read. Videos that cannot be "
        "read are listed and left out.",
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
        "--pictures",
        metavar="PATTERN",
        help="numbered pictures to use as videos, such as 'img_*' (default: those of each folder "
        "with one sequence and no video file)",
    )
    parser.add_argument(
        "--fps", type=float, help="frames per second of folders of pictures (default: 25)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="decode every frame: finds all damage, takes longer"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="give up on a file after this time (default: 60); with --transcode, after this time "
        "without a new frame",
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
    args = parser.parse_args(arguments)
    chosen = {name: getattr(args, name) for name in ("short_side", "keyframe_every", "crf")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and args.transcode is None:
        parser.error(f"--{next(iter(chosen)).replace('_', '-')} needs --transcode OUT")
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if args.labels is not None and not args.labels.is_file():
        parser.error(f"{args.labels} is not a file")
    if args.fps is not None and not 0 < args.fps < float("inf"):
        parser.error(f"--fps must be positive, got {args.fps:g}")
    if not args.time_limit > 0:
        parser.error(f"--time-limit must be positive, got {args.time_limit:g}")

    again = "finished copies are kept; the same command continues"
    done = again if args.transcode is not None else "nothing was written"
    return run_command(
        lambda: _run(args, chosen), needs="preparing", interrupted=f"interrupted; {done}"
    )


def _run(args: argparse.Namespace, chosen: dict[str, int]) -> int:
    from training.data.files import INDEX_NAME, as_patterns  # slow: after --help
    from training.data.index import build_index

    folder, labels, report = args.folder, args.labels, None
    include = as_patterns(args.folder.resolve(), args.include)
    if args.transcode is not None:
        from training.data.transcode import Settings, transcode_folder

        report = transcode_folder(
            folder,
            args.transcode,
            Settings(**chosen),
            labels=labels,
            include=include,
            pictures=args.pictures,
            fps=args.fps,
            time_limit=args.time_limit,
            progress=True,
        )
        print(transcoded(report))
        folder, labels, include = args.transcode, None, []
    index = build_index(
        folder,
        labels=labels,
        include=include,
        pictures=args.pictures if report is None else None,
        fps=args.fps,
        verify=args.verify,
        time_limit=args.time_limit,
        progress=True,
    )
    print(summary(index))
    found = report.found if report else index.found
    for line in passed_over(found):
        print(line)
    if index.videos or index.bad:
        print(f"written: {index.folder / INDEX_NAME}")
    if index.videos and all(video.split != "test" for video in index.videos):
        print(no_test_videos(index.folder, labels))
    if not index.videos:
        bad = index.bad or (report.bad if report else [])
        none = "no file has the extension of a video or holds one, or all are broken links"
        damaged = "all videos are damaged"
        if any(entry["reason"].startswith("interlaced") for entry in bad):
            damaged += " or interlaced"
        why = damaged if bad else none
        print(f"error: no video can be used: {why}", file=sys.stderr)
        return 1
    return 0


def no_test_videos(folder: Path, labels: Path | None) -> str:
    """What a folder without a test split is good for, and how to choose one."""
    from training.data.files import LABELS_NAME

    return (
        "no test videos: training needs none, but evaluation and the report do. Choose them before "
        f'training: write "split": "test" for some videos in {labels or folder / LABELS_NAME}, or '
        f"set it in `python -m training.view {shlex.quote(str(folder))}`, and prepare again"
    )


def passed_over(found: Found) -> list[str]:
    """Lines about the files of a folder that are not used as videos."""
    from training.data.pictures import named

    lines = []
    if found.pictures:
        shown = ", ".join(found.pictures[:_FEW]) + ", ..." * (len(found.pictures) > _FEW)
        lines.append(f"folders of pictures used as videos: {len(found.pictures)} ({shown})")
    groups = defaultdict(list)
    for name, what in found.ignored.items():
        groups[what].append(name)
    if groups:
        counted = [
            f"{len(names)} {what} ({', '.join(names[:_FEW])}{', ...' * (len(names) > _FEW)})"
            for what, names in sorted(groups.items(), key=lambda item: -len(item[1]))
        ]
        lines.append(f"ignored: {', '.join(counted)}")
        lines.append("  to use one of these as a video: --include PATTERN")
    lines += named(found.sequences)
    lines += [f"--include {one}: no file of this name" for one in found.unmatched]
    lines += [f"not looked into: {name}" for name in found.closed]
    return lines


def transcoded(report: Report) -> str:
    """A summary of what was copied and what was not, in a few lines."""
    speed = f", {report.frames / report.seconds:.0f} frames/s" if report.frames else ""
    lines = [f"copied: {_number(len(report.written), 'video')}, {report.frames} frames{speed}"]
    if report.kept:
        lines.append(f"copied before: {_number(len(report.kept), 'video')}")
    bad = [(entry["reason"], entry["path"]) for entry in report.bad]
    lines += _grouped(f"not copied: {_number(len(bad), 'video')}", bad)
    unused = [(_UNUSED, name) for name in report.unused_labels]
    lines += _grouped(f"labels not copied: {_number(len(unused), 'video')}", unused)
    strays = [("no video of this name was copied", name) for name in report.strays]
    lines += _grouped(f"other videos in the output folder: {len(strays)}", strays)
    return "\n".join(lines)


def summary(index: Index) -> str:
    """A summary of an index, in a few lines."""
    videos = index.videos
    frames = sum(video.frames for video in videos)
    hours = sum(video.frames / video.fps for video in videos if video.fps) / 3600
    labelled = sum(video.phases is not None for video in videos)
    lines = [
        f"{index.folder}: {_number(len(videos), 'video')}, {_number(frames, 'frame')}, "
        f"{hours:.2f} hours",
        f"  splits: {_counts(video.split for video in videos)}",
        f"  actions: {_counts(video.action for video in videos)}",
        f"  with phase labels: {labelled}",
    ]
    if partly := _partly_used(videos):
        lines.append(f"  {partly}")
    lengths = sorted(video.frames for video in videos)
    if lengths:
        middle = lengths[len(lengths) // 2]
        lines.append(f"  frames per video: {lengths[0]} to {lengths[-1]}, median {middle}")
    notes = [(video.note, video.id) for video in videos if video.note]
    lines += _grouped(f"used in part: {_number(len(notes), 'damaged video')}", notes)
    cut = [("labels beyond the damage are ignored", name) for name in index.changed_labels]
    lines += _grouped(
        f"labels cut to the readable frames: {_number(len(cut), 'damaged video')}", cut
    )
    far = [(_FAR.format(index.folder), video.id) for video in videos if not video.random_access]
    lines += _grouped(f"slow to read: {_number(len(far), 'video')}", far)
    remarks = [(remark, video.id) for video in videos for remark in video.remarks]
    remarked = len({name for _, name in remarks})
    lines += _grouped(f"remarks: {_number(remarked, 'video')}", remarks)
    bad = [(entry["reason"], entry["path"]) for entry in index.bad]
    lines += _grouped(f"left out: {_number(len(bad), 'file')}", bad)
    unused = [(_UNUSED, name) for name in index.unused_labels]
    lines += _grouped(f"labels not used: {_number(len(unused), 'video')}", unused)
    return "\n".join(lines)


def _partly_used(videos: Sequence[VideoRecord]) -> str:
    """How many videos have a trim, a crop or a sync in their labels."""
    groups = {video.sync[0] for video in videos if video.sync}
    synchronised = sum(video.sync is not None for video in videos)
    counts = {
        "trimmed": sum(video.trim is not None for video in videos),
        "cropped": sum(video.crop is not None for video in videos),
        f"synchronised in {len(groups)} group{'s' * (len(groups) != 1)}": synchronised,
    }
    return ", ".join(f"{what}: {count}" for what, count in counts.items() if count)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


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
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    sys.exit(main())
