"""Align two videos: `python -m training.align A.mp4 B.mp4 --run RUN --out DIR`.

Writes DIR/aligned.mp4 (A at its own pace; B aligned to it by dynamic time warping; B stretched
evenly for comparison) and DIR/similarity.png (similarity of all frame pairs with the path). Of a
damaged video the sound frames are aligned, and it is named; one that cannot be read is an error.

First frames are paired with each other, and last frames. With --open both videos may begin and end
anywhere: each pair of frames earns its similarity less a threshold, and the path with the highest
sum wins. What is before and behind it stays out; where it begins and ends is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.support.command import make_folder, run_command

if TYPE_CHECKING:
    import numpy as np

    from training.data.index import VideoRecord
    from training.evaluation.embed import EmbeddedVideo


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.align", description=__doc__)
    parser.add_argument("a", type=Path, metavar="A.mp4", help="plays at its own pace")
    parser.add_argument("b", type=Path, metavar="B.mp4", help="is aligned to A")
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
        from training.evaluation.alignment import align, align_open, centred, write_aligned_video
        from training.evaluation.embed import embed_records
        from training.evaluation.encoders import load_encoder
        from training.evaluation.plots import similarity_map

        records = [record_of(args.a), record_of(args.b)]
        encode, cfg = load_encoder(args.run)
        make_folder(args.out)
        a, b = embed_records({"trained": encode}, records, cfg)["trained"]
        if args.centre:
            a, b = centred(a), centred(b)
        alignment = align_open(a, b, args.threshold) if args.open else align(a, b)
        path = alignment.i, alignment.j
        similarity_map(a, b, path, args.out / "similarity.png", ends=args.open)
        write_aligned_video(a, b, alignment, args.out / "aligned.mp4")
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
            f"written: {args.out / 'aligned.mp4'}, {args.out / 'similarity.png'}"
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
