"""Align two videos: `python -m training.align A B --run RUN --out DIR`.

A and B are video files, folders of pictures, or ids of videos in the run's folder; trim and crop
apply to videos of that folder. Writes to DIR:

    alignment.html    a page that plays both videos in step, with the similarity map; no network
    alignment.csv     matched frames, their times in seconds, their cosine similarity
    alignment.json    the same, with the videos, the options and the whole path
    aligned.mp4       A plays; B aligned to it by dynamic time warping; B stretched evenly
    similarity.png    similarity of all frame pairs, with the path

A damaged video is named, and its sound frames are aligned; one that cannot be read is an error.

First frames are paired with each other, and last frames. With --open both videos may begin and end
anywhere: each pair of frames scores its similarity minus a threshold, and the path with the highest
sum wins. Frames before and after it stay unmatched; the command prints where it begins and ends.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.evaluation.stored import add_checkpoint, add_no_store
from training.support.command import UserError, make_folder, run_command

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig

    from fastseq.video import VideoInfo
    from training.data.index import VideoRecord
    from training.evaluation.alignment import Alignment
    from training.evaluation.embed import EmbeddedVideo

# A gain in mean cosine similarity below which the alignment is worth a look. On golf clips with
# ImageNet features good alignments gain 0.2, one that missed the impact by 8 frames 0.02.
LITTLE = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.align",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="video that plays unchanged")
    parser.add_argument("b", metavar="B", help="video that is aligned to A")
    parser.add_argument("--run", type=Path, required=True, help="run directory with the encoder")
    parser.add_argument(
        "--out", type=Path, default=Path("aligned"), help="folder to write to (default %(default)s)"
    )
    parser.add_argument(
        "--open", action="store_true", help="both videos may begin and end anywhere"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="S",
        help="with --open: the cosine similarity above which a pair of frames raises the score, "
        "-1 to 1 (default: that which a fifth of all pairs exceed)",
    )
    parser.add_argument(
        "--centre",
        action="store_true",
        help="take each video's mean embedding off first: place, person and view then count less",
    )
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_args(argv)
    if args.threshold is not None and not args.open:
        parser.error("--threshold needs --open")
    if args.threshold is not None and not -1 <= args.threshold < 1:
        parser.error(f"--threshold must be at least -1 and below 1, got {args.threshold:g}")

    def command() -> None:
        from training.evaluation.alignment import (
            align,
            align_open,
            centred,
            write_aligned_video,
            write_alignment,
            write_matches,
        )
        from training.evaluation.encoders import TRAINED
        from training.evaluation.plots import similarity_map
        from training.evaluation.stored import RunEmbeddings
        from training.pages.align_page import write_align_page

        embeddings = RunEmbeddings(args.run, checkpoint=args.checkpoint, store=not args.no_store)
        cfg = embeddings.cfg
        records = find_records([args.a, args.b], cfg)
        make_folder(args.out)
        a, b = embeddings.embed(records)[TRAINED]
        if args.centre:
            a, b = centred(a), centred(b)
        if args.open:
            alignment = align_open(a, b, args.threshold)
            back = align_open(b, a, alignment.threshold)
        else:
            alignment, back = align(a, b), align(b, a)
        path = alignment.i, alignment.j
        said = summary(a, b, alignment)
        options = {"open": args.open, "centre": args.centre}
        files = {
            name: args.out / name
            for name in (
                *("alignment.html", "alignment.csv", "alignment.json"),
                *("aligned.mp4", "similarity.png"),
            )
        }
        write_matches(a, b, alignment, files["alignment.csv"])
        write_alignment(
            a, b, alignment, files["alignment.json"], run=str(args.run), options=options
        )
        similarity_map(a, b, path, files["similarity.png"], ends=args.open)
        write_align_page(
            *(a, b, alignment, back, files["alignment.html"]),
            classes=phase_names(records, cfg),
            said=said,
        )
        write_aligned_video(a, b, alignment, files["aligned.mp4"])
        for record in records:
            if record.note:
                print(
                    f"{record.id} is damaged, its sound frames were taken: {record.note}",
                    file=sys.stderr,
                )
        print("\n".join(said))
        if alignment.similarity - alignment.straight < LITTLE:
            print(
                "the alignment is little better than stretching evenly: check it in "
                f"{files['alignment.html']}"
                + ("" if args.open and args.centre else ", and try --open --centre")
            )
        print(f"written: {', '.join(map(str, files.values()))}")

    return run_command(command)


def summary(a: EmbeddedVideo, b: EmbeddedVideo, alignment: Alignment) -> list[str]:
    """What an alignment amounts to, a line each: score and ends of an open one, then similarity."""
    lines = []
    if alignment.threshold is not None:
        lines.append(
            f"score {alignment.score:.4g}: the sum over {len(alignment.i)} pairs of frames of "
            f"their similarity less {alignment.threshold:.4f}"
        )
        lines += [span(a, alignment.i), span(b, alignment.j)]
    lines.append(
        f"mean cosine similarity along the path: {alignment.similarity:.4f} "
        f"(stretched evenly: {alignment.straight:.4f})"
    )
    return lines


def span(video: EmbeddedVideo, rows: np.ndarray) -> str:
    """Where a path begins and ends in a video, in frames and seconds."""
    from training.evaluation.videos import seconds_of

    record = video.record
    first, last = ends = video.frames[[rows[0], rows[-1]]]
    begin, end = seconds_of(record, ends)
    return f"{record.id}: frames {first} to {last} of {record.frames}, {begin:.2f} s to {end:.2f} s"


def phase_names(records: Sequence[VideoRecord], cfg: DictConfig) -> dict[str, list[str]]:
    """Action -> names of its phases, in the folders that labelled records are from."""
    from training.data.selection import open_folders

    if all(record.phases is None for record in records):
        return {}
    return open_folders(cfg, check=False).classes


def find_records(names: Sequence[str], cfg: DictConfig) -> list[VideoRecord]:
    """Files and folders of pictures, or ids of the videos of a run, as records.

    A video in one of the run's folders has its record there. The folder of pictures, or a pattern
    of their names, also finds the record, unless several videos fit. Where a folder has no valid
    index, files are taken as they are, and a line on stderr says so. UserError for what is neither.
    """
    from fastseq.video.pictures import is_pictures
    from fastseq.video.source import file_of
    from training.data.folders import folders_of
    from training.data.selection import open_folders

    folders = folders_of(cfg)
    try:
        videos, problem = open_folders(cfg).videos, ""
    except (UserError, OSError) as error:
        videos, problem = [], str(error)
    by_id = {record.id: record for record in videos}
    by_path = {str(Path(record.path).resolve()): record for record in videos}
    patterns: dict[Path, list[VideoRecord]] = defaultdict(list)
    for record in videos:
        folder = file_of(record.path)
        if folder != Path(record.path) and folder.is_dir():
            patterns[folder.resolve()].append(record)
    found = []
    for name in names:
        path = Path(name)
        exists = path.exists() or is_pictures(name)
        record = by_path.get(str(path.resolve())) if exists else by_id.get(name)
        if exists and record is None:
            pattern = "*" if path.is_dir() else path.name
            held = patterns.get(file_of(name).resolve(), [])
            fitting = [one for one in held if fnmatch.fnmatch(Path(one.path).name, pattern)]
            record = fitting[0] if len(fitting) == 1 else None
        if record is not None:
            found.append(checked(record))
        elif exists:
            if problem and any(one.resolve() in path.resolve().parents for one in folders):
                print(f"{name} is taken without trim and crop: {problem}", file=sys.stderr)
            found.append(record_of(path))
            for remark in found[-1].remarks:
                print(f"{name}: {remark}", file=sys.stderr)
        else:
            places = " and ".join(map(str, folders))
            no_id = problem or f"no video of {places} that can be read has this id"
            raise UserError(
                f"{name}: no such file, and {no_id}; give a video file, a folder of pictures "
                "or an id"
            )
    return found


def checked(record: VideoRecord) -> VideoRecord:
    """A record of an index, less the frames that prove damaged when the whole file is decoded."""
    from fastseq.video import probe
    from fastseq.video.gaps import frames_of, gaps_of

    info = probe(record.path, decode=True)
    known = frames_of(record)
    sound = set(frames_of(info).tolist()) & set(known.tolist())
    if info.frames == record.frames and len(sound) == len(known):
        return record
    gaps = gaps_of(frame for frame in range(info.frames) if frame not in sound)
    trim = record.trim if record.trim and record.trim[1] < info.frames else None
    changed = {"frames": info.frames, "gaps": gaps, "note": info.note, "trim": trim}
    return replace(record, **changed, times=times_of(info), phases=None)


def times_of(info: VideoInfo) -> np.ndarray | None:
    """A video's times as an index has them: None at a constant rate."""
    from training.data.packing import packed_times, unpacked_times

    return unpacked_times(packed_times(info.times, info.fps))


def record_of(path: Path) -> VideoRecord:
    """An unlabelled record for a video that is in no index: decoded once, to know damage.

    Pictures count as 25 frames per second: no file states their rate.
    """
    from fastseq.video import probe
    from training.data.index import VideoRecord

    info = probe(path, decode=True)
    return VideoRecord(
        id=path.name or str(path.resolve()),
        path=str(path),
        frames=info.frames,
        fps=info.fps,
        split="test",
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        codec=info.codec,
        note=info.note,
        gaps=info.gaps,
        remarks=info.remarks,
        times=times_of(info),
    )


if __name__ == "__main__":
    sys.exit(main())
