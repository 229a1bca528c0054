"""Align two videos: `python -m training.align A.mp4 B.mp4 --run RUN --out DIR`.

Writes DIR/aligned.mp4 (A at its own pace; B aligned to it by dynamic time warping; B stretched
evenly for comparison), DIR/similarity.png (similarity of all frame pairs with the path) and
DIR/alignment.csv (matched frames and their times). A and B are files, or ids of videos in the run's
folder; of a video in that folder trim and crop hold. Of a damaged video the sound frames are
aligned, and it is named; one that cannot be read is an error.

First frames are paired with each other, and last frames. With --open both videos may begin and end
anywhere: each pair of frames earns its similarity less a threshold, and the path with the highest
sum wins. What is before and behind it stays out; where it begins and ends is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.support.command import UserError, make_folder, run_command

if TYPE_CHECKING:
    import numpy as np

    from training.data.index import VideoRecord
    from training.evaluation.embed import EmbeddedVideo


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.align", description=__doc__)
    parser.add_argument("a", metavar="A.mp4", help="plays at its own pace")
    parser.add_argument("b", metavar="B.mp4", help="is aligned to A")
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
            write_matches,
        )
        from training.evaluation.embed import embed_records
        from training.evaluation.encoders import load_encoder
        from training.evaluation.plots import similarity_map

        encoder, cfg = load_encoder(args.run)
        records = find_records([args.a, args.b], cfg.data.folder)
        make_folder(args.out)
        a, b = embed_records({"trained": encoder}, records, cfg)["trained"]
        if args.centre:
            a, b = centred(a), centred(b)
        alignment = align_open(a, b, args.threshold) if args.open else align(a, b)
        path = alignment.i, alignment.j
        similarity_map(a, b, path, args.out / "similarity.png", ends=args.open)
        write_aligned_video(a, b, alignment, args.out / "aligned.mp4")
        write_matches(a, b, alignment, args.out / "alignment.csv")
        for record in records:
            if record.note:
                print(
                    f"{record.id} is damaged, its sound frames were taken: {record.note}",
                    file=sys.stderr,
                )
        if args.open:
            print(
                f"score {alignment.score:.4g}: the sum over {len(alignment.i)} pairs of frames of "
                f"their similarity less {alignment.threshold:.4f}"
            )
            for video, rows in zip((a, b), path, strict=True):
                print(span(video, rows))
        print(
            f"mean cosine similarity along the path: {alignment.similarity:.4f} "
            f"(stretched evenly: {alignment.straight:.4f})\n"
            f"written: {args.out / 'aligned.mp4'}, {args.out / 'similarity.png'}, "
            f"{args.out / 'alignment.csv'}"
        )

    return run_command(command)


def span(video: EmbeddedVideo, rows: np.ndarray) -> str:
    """Where a path begins and ends in a video, in frames and seconds."""
    record = video.record
    first, last = video.frames[rows[0]], video.frames[rows[-1]]
    return (
        f"{record.id}: frames {first} to {last} of {record.frames}, {first / record.fps:.2f} s to "
        f"{last / record.fps:.2f} s"
    )


def find_records(names: Sequence[str], folder: str) -> list[VideoRecord]:
    """Files, or ids of the videos in a prepared folder, as records; UserError for what is neither.

    A file that lies in the folder has its record there. Where the folder has no index that holds,
    files are taken as they are, and it is said.
    """
    from training.data.index import load_index

    try:
        videos, problem = load_index(folder).videos, ""
    except (UserError, OSError) as error:
        videos, problem = [], str(error)
    by_id = {record.id: record for record in videos}
    by_path = {str(Path(record.path).resolve()): record for record in videos}
    found = []
    for name in names:
        path = Path(name)
        record = by_path.get(str(path.resolve())) if path.exists() else by_id.get(name)
        if record is not None:
            found.append(checked(record))
        elif path.exists():
            if problem and Path(folder).resolve() in path.resolve().parents:
                print(f"{name} is taken without trim and crop: {problem}", file=sys.stderr)
            found.append(record_of(path))
        else:
            no_id = problem or f"no video of {folder} that can be read has this id"
            raise UserError(f"{name}: no such file, and {no_id}; give a video file or an id")
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
    return replace(record, frames=info.frames, gaps=gaps, note=info.note, trim=trim, phases=None)


def record_of(path: Path) -> VideoRecord:
    """An unlabelled record for a video file that is in no index: decoded once, to know damage."""
    from fastseq.video import probe
    from training.data.index import VideoRecord

    info = probe(path, decode=True)
    return VideoRecord(
        id=path.name,
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
    )


if __name__ == "__main__":
    sys.exit(main())
