"""Compare two runs in one page: `python -m training.side_by_side RUN_A RUN_B --out page.html`.

Both networks are evaluated on the videos that both runs have. The page shows their metrics with the
differences, the phases that a classifier predicts over time, the frames nearest to the same query
frames, the training curves, and the keys of the recipe that differ. One file that needs no network.
Example: python -m training.side_by_side runs/lav runs/tcc --out lav_tcc.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.data.label_values import SPLITS
from training.evaluation.protocols import PROTOCOLS
from training.evaluation.stored import add_checkpoint, add_no_store
from training.support.command import EXIT_STATUS, LeftOut, UserError, make_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.side_by_side", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("run_a", type=Path, help="first run directory")
    parser.add_argument("run_b", type=Path, help="second run directory")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("side_by_side.html"),
        help="HTML page to write (default %(default)s)",
    )
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of videos (default: that of both runs)"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="the videos (default: data.test_split of both runs)"
    )
    parser.add_argument(
        "--protocol",
        choices=[*PROTOCOLS],
        default="carl",
        help="protocol of the metrics (default %(default)s)",
    )
    parser.add_argument(
        "--stride", type=int, help="step in frames of Kendall's tau (default: the protocol's)"
    )
    parser.add_argument(
        "--queries", type=int, default=4, help="number of query frames (default %(default)s)"
    )
    parser.add_argument(
        "--scope",
        choices=("others", "all"),
        default="others",
        help="where nearest frames are searched, see training.retrieve (default %(default)s)",
    )
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_args(argv)
    for name in ("queries", "stride"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if args.out.suffix.lower() != ".html":
        parser.error(f"--out must name an HTML file, got {args.out}")

    def command() -> LeftOut:
        from training.evaluation.two_runs import load_two_runs
        from training.pages.compare_page import write_compare_page

        both = [args.run_a, args.run_b]
        if both[0].resolve() == both[1].resolve():
            raise UserError(f"{both[0]} and {both[1]} are the same run; pass two different runs")
        make_folder(args.out.parent)
        left_out = LeftOut()
        runs = load_two_runs(
            both,
            folder=args.folder,
            split=args.split,
            checkpoint=args.checkpoint,
            store=not args.no_store,
            left_out=left_out,
        )
        write_compare_page(
            runs,
            args.out,
            left_out=left_out,
            protocol=args.protocol,
            stride=args.stride,
            queries=args.queries,
            scope=args.scope,
        )
        print(f"written: {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")
        for remark in runs.remarks:
            print(remark)
        return left_out

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
