"""Show where the network looks: `python -m training.gradcam RUN` writes RUN/gradcam.png.

Frames of test videos (--split), and over them Grad-CAM of the backbone's last map: before the
training and after it, or of two runs (--beside). A run with a classifier of actions shows where the
score of the predicted class is from, others where the similarity with the video is from. Layers
behind the backbone do not count. Example: python -m training.gradcam runs/mine --beside runs/other
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.data.folders import place
from training.data.label_values import SPLITS
from training.evaluation.stored import add_checkpoint
from training.evaluation.videos import open_index, require_some, split_videos
from training.support.command import EXIT_STATUS, LeftOut, make_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.gradcam", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="RUN",
        help="another run, shown instead of the network before the training",
    )
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of videos (default: that of the run)"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="the videos (default: the run's data.test_split)"
    )
    parser.add_argument(
        "--videos", type=int, default=4, help="number of videos (default %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=6, help="frames of each video (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="PNG to write (default: RUN/gradcam.png)")
    add_checkpoint(parser)
    args = parser.parse_args(argv)
    for name in ("videos", "frames"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.out is not None and args.out.suffix.lower() != ".png":
        parser.error(f"--out must name a PNG file, got {args.out}")

    def command() -> LeftOut:
        from training.evaluation.gradcam_run import networks_of, spread_over_actions, write_gradcam

        groups = networks_of(args.run, beside=args.beside, checkpoint=args.checkpoint)
        index = open_index(groups[0].cfg, args.folder)
        split = args.split or groups[0].cfg.data.test_split
        records = spread_over_actions(split_videos(index, split), args.videos)
        out = args.out or args.run / "gradcam.png"
        make_folder(out.parent)
        left_out = LeftOut(len(index.bad))
        shown = write_gradcam(groups, records, out, args.frames, left_out)
        require_some(shown, split, place(index))
        print(f"written: {out}")
        return left_out

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
