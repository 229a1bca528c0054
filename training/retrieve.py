"""Show what the network finds similar: `python -m training.retrieve --run RUN`.

Writes a contact sheet of the test split (--split): queries at the left, and what is nearest beside
each. --scope others (default) shows the most similar frame of each of the five closest other videos
of the action; --scope all the five most similar frames of all other videos. --scope videos compares
whole videos: the three training videos nearest to each test video, and R@1, 5, 10, 20 and 50 as
`evaluate --protocol vclr` computes them. A green border and a tick mean the same phase as the query
(videos: the same action), a red border and a cross another one, a grey border no labels.
Example: python -m training.retrieve --run runs/mine --scope all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.folders import place
from training.data.label_values import SPLITS
from training.evaluation.retrieval import GAP, SCOPES
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
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        default="others",
        help="; ".join(f"{name}: {text}" for name, text in SCOPES.items()),
    )
    parser.add_argument(
        "--gap",
        type=float,
        help=f"--scope all: least time between two frames of a video, in seconds (default {GAP})",
    )
    parser.add_argument(
        "--out", type=Path, help="PNG to write (default: RUN/retrieval.png, retrieval_SCOPE.png)"
    )
    parser.add_argument(
        "--queries", type=int, default=6, help="number of queries (default %(default)s)"
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        help="nearest frames or videos beside each query (default: 5 frames, 3 videos)",
    )
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_args(argv)
    if args.queries < 1:
        parser.error(f"--queries must be at least 1, got {args.queries}")
    if args.neighbours is not None and args.neighbours < 1:
        parser.error(f"--neighbours must be at least 1, got {args.neighbours}")
    if args.gap is not None and args.scope != "all":
        parser.error(f"--gap works only with --scope all, got --scope {args.scope}")
    if args.no_store and args.scope == "videos":
        parser.error("--no-store works only with frames; --scope videos stores no embeddings")
    args.gap = GAP if args.gap is None else args.gap
    if not 0 <= args.gap < float("inf"):
        parser.error(f"--gap must be a number of seconds of at least 0, got {args.gap}")
    if args.out is not None and args.out.suffix.lower() != ".png":
        parser.error(f"--out must name a PNG file, got {args.out}")

    suffix = "" if args.scope == "others" else f"_{args.scope}"
    out = args.out or args.run / f"retrieval{suffix}.png"
    shown = {"queries": args.queries, "neighbours": args.neighbours}

    def command() -> LeftOut:
        sheet = sheet_of_videos if args.scope == "videos" else sheet_of_frames
        left_out = sheet(args, out, shown)
        print(f"written: {out}")
        return left_out

    return run_command(command)


def sheet_of_frames(args: argparse.Namespace, out: Path, shown: dict[str, Any]) -> LeftOut:
    """Write the sheet of query frames."""
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
    make_folder(out.parent)
    left_out = LeftOut(len(index.bad))
    videos = embeddings.embed(records, left_out)[TRAINED]
    require_some(left_out.kept(records), split, place(index))
    options = {"scope": args.scope, "gap": args.gap, **shown}
    if not retrieval_sheet(videos, index.classes, out, **options):
        if args.scope == "others":
            few = "no action has two readable videos"
            searched = "the query's action; --scope all searches those of all actions"
        else:
            few, searched = "there is only one readable video", "the split"
        raise UserError(
            f"{few} in the split {split!r} of {place(index)}; retrieval searches the other "
            f"videos of {searched}"
        )
    return left_out


def sheet_of_videos(args: argparse.Namespace, out: Path, shown: dict[str, Any]) -> LeftOut:
    """Write the sheet of whole videos and print R@K."""
    from training.evaluation.encoders import load_encoder
    from training.evaluation.video_retrieval import retrieve_videos, video_sheet

    encoder, cfg = load_encoder(args.run, args.folder, checkpoint=args.checkpoint)
    index = open_index(cfg, args.folder)
    make_folder(out.parent)
    left_out = LeftOut(len(index.bad))
    found = retrieve_videos(encoder, index, cfg, args.split or cfg.data.test_split, left_out)
    video_sheet(found, out, **shown)
    print(found.sentence())
    return left_out


if __name__ == "__main__":
    sys.exit(main())
