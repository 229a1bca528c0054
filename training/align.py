"""Align two videos: `python -m training.align A.mp4 B.mp4 --run RUN --out DIR`.

Writes DIR/aligned.mp4 (A at its own pace; B aligned to it by dynamic time warping; B stretched
evenly for comparison) and DIR/similarity.png (similarity of all frame pairs with the path). Of a
damaged video the sound frames are aligned, and it is named; one that cannot be read is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.support.command import make_folder, run_command

if TYPE_CHECKING:
    from training.data.index import VideoRecord


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.align", description=__doc__)
    parser.add_argument("a", type=Path, metavar="A.mp4", help="plays at its own pace")
    parser.add_argument("b", type=Path, metavar="B.mp4", help="is aligned to A")
    parser.add_argument("--run", type=Path, required=True, help="run directory with the encoder")
    parser.add_argument(
        "--out", type=Path, default=Path("aligned"), help="folder to write to (default %(default)s)"
    )
    args = parser.parse_args(argv)

    def command() -> None:
        from training.evaluation.alignment import align, write_aligned_video
        from training.evaluation.embed import embed_records
        from training.evaluation.encoders import load_encoder
        from training.evaluation.plots import similarity_map

        records = [record_of(args.a), record_of(args.b)]
        encode, cfg = load_encoder(args.run)
        make_folder(args.out)
        a, b = embed_records({"trained": encode}, records, cfg)["trained"]
        alignment = align(a, b)
        similarity_map(a, b, (alignment.i, alignment.j), args.out / "similarity.png")
        write_aligned_video(a, b, alignment, args.out / "aligned.mp4")
        for record in records:
            if record.note:
                print(
                    f"{record.id} is damaged, its sound frames were taken: {record.note}",
                    file=sys.stderr,
                )
        print(
            f"mean cosine similarity along the path: {alignment.similarity:.4f} "
            f"(stretched evenly: {alignment.straight:.4f})\n"
            f"written: {args.out / 'aligned.mp4'}, {args.out / 'similarity.png'}"
        )

    return run_command(command)


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
