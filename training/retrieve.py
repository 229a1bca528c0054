"""Show frames that the network finds similar: `python -m training.retrieve --run RUN`.

Writes a contact sheet: query frames at the left, and beside each query the most similar frame of
the five closest other videos of the same action and of the test split (--split). A green border and
a tick mean the same phase as the query, a red border and a cross another phase, a grey border no
labels. Example: python -m training.retrieve --run runs/mine
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.data.folders import place
from training.data.label_values import SPLITS
from training.evaluation.stored import add_checkpoint, add_no_store
from training.evaluation.videos import open_index, require_some, split_videos
from training.support.command import EXIT_STATUS, LeftOut, UserError, make_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.retrieve", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory with the encoder")
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of videos (default: that of the run)"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="the videos (default: the run's data.test_split)"
    )
    parser.add_argument("--out", type=Path, help="PNG to write (default: RUN/retrieval.png)")
    parser.add_argument(
        "--queries", type=int, default=6, help="number of query frames (default %(default)s)"
    )
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_args(argv)
    if args.queries < 1:
        parser.error(f"--queries must be at least 1, got {args.queries}")
    if args.out is not None and args.out.suffix.lower() != ".png":
        parser.error(f"--out must name a PNG file, got {args.out}")

    def command() -> LeftOut:
        from training.evaluation.encoders import TRAINED
        from training.evaluation.retrieval import retrieval_sheet
        from training.evaluation.stored import RunEmbeddings

        embeddings = RunEmbeddings(
            args.run, checkpoint=args.checkpoint, folder=args.folder, store=not args.no_store
        )
        cfg = embeddings.cfg
        index = open_index(cfg, args.folder)
        split = args.split or cfg.data.test_split
        records = split_videos(index, split)
        out = args.out or args.run / "retrieval.png"
        make_folder(out.parent)
        left_out = LeftOut(len(index.bad))
        videos = embeddings.embed(records, left_out)[TRAINED]
        require_some(left_out.kept(records), split, place(index))
        if not retrieval_sheet(videos, index.classes, out, queries=args.queries):
            raise UserError(
                f"no action has two readable videos in the split {split!r} of "
                f"{place(index)}; retrieval searches the other videos of the query's action"
            )
        print(f"written: {out}")
        return left_out

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
