"""Write a page about a run: `python -m training.report RUN` makes RUN/report.html.

One file that can be sent around and needs no network. At the top two test videos play in step, by
the alignment of their embeddings. Below: the verdict, the evaluation's table, the similarity map,
the most similar frames, the embeddings, the training curves, the configuration.

The table is RUN/evaluation.json, which `python -m training.evaluate RUN` writes, or that of
--checkpoint. Where that file is
missing and there are labels, the report writes it first, by CARL's protocol. The pictures are also
left in RUN/pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.evaluation.stored import add_checkpoint, add_no_store
from training.support.command import EXIT_STATUS, LeftOut, UserError, check_writable, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.report", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of videos (default: the run's own)"
    )
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_args(argv)

    def command() -> LeftOut:
        from training.pages.report_page import write_report

        left_out = LeftOut()
        if not args.run.is_dir():
            raise UserError(
                f"{args.run} is not a directory; pass a run of `python -m training.train`"
            )
        check_writable(args.run, "report.html")
        target = write_report(
            args.run,
            folder=args.folder,
            checkpoint=args.checkpoint,
            store=not args.no_store,
            left_out=left_out,
        )
        print(f"written: {target} ({target.stat().st_size / 1e6:.1f} MB)")
        return left_out

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
