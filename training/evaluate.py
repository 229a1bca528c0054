"""Evaluate a run by a paper's protocol: `python -m training.evaluate RUN`.

Prints a table and writes it, with the definition of every metric, to RUN/evaluation.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.frame_level import (
    ROW_DEFINITIONS,
    TAU_REMARK,
    TIME_INDEX,
    evaluate_embeddings,
    format_table,
)
from training.evaluation.protocols import PROTOCOLS, definitions, find_protocol
from training.evaluation.video_level import NAME as VIDEO_LEVEL
from training.evaluation.video_level import evaluate_video_level
from training.evaluation.videos import open_index, require_some, split_videos
from training.support.command import EXIT_STATUS, LeftOut, UserError, run_command
from training.support.files import write_json

if TYPE_CHECKING:
    from training.evaluation.embed import EmbeddedVideo


def evaluate_run(
    run: str | Path,
    *,
    folder: str | Path | None = None,
    protocol: str = "carl",
    stride: int | None = None,
    fractions: Sequence[float] = (1.0,),
    few_shot: bool = False,
    left_out: LeftOut | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Embed the run's videos with the trained and the untrained network and compute every metric.

    Args:
        run: run directory of ``python -m training.train``.
        folder: prepared folder of videos with labels; the run's own by default.
        protocol, stride, fractions, few_shot: see
            :func:`training.evaluation.frame_level.evaluate_embeddings`.
        left_out: takes the videos that cannot be read; all rows are without them.
    Returns:
        What RUN/evaluation.json holds: ``rows`` (name -> metrics, per_action, left_out), the videos
        that could not be read (``left_out``: id -> reason), the
        definitions as sentences, and what was evaluated.
    """
    from training.evaluation.baselines import time_index
    from training.evaluation.embed import embed_records
    from training.evaluation.encoders import load_compared_encoders

    start = time.perf_counter()
    left_out = LeftOut() if left_out is None else left_out
    stride = find_protocol(protocol).stride if stride is None else stride
    encoders, cfg = load_compared_encoders(run)
    index = open_index(cfg, folder)
    train = split_videos(index, cfg.data.train_split)
    test = split_videos(index, cfg.data.test_split)
    _require_labels(index, train, cfg.data.train_split)
    _require_labels(index, test, cfg.data.test_split)
    left_out.in_index = len(index.bad)

    def row(videos: Sequence[EmbeddedVideo]) -> dict[str, Any]:
        return evaluate_embeddings(
            videos[: len(train)],
            videos[len(train) :],
            index.classes,
            protocol=protocol,
            stride=stride,
            fractions=fractions,
            few_shot=few_shot,
        )

    # The time index first: wrong options and labels show before the long part.
    rows = {TIME_INDEX: row(time_index(train + test))}
    embedded = embed_records(encoders, train + test, cfg, left_out, progress=progress)
    if left_out.videos:  # from all rows, so that they are of the same videos
        train, test = left_out.kept(train), left_out.kept(test)
        for split, name in ((train, cfg.data.train_split), (test, cfg.data.test_split)):
            require_some(split, name, index.folder)
            _require_labels(index, split, name)
        rows = {TIME_INDEX: row(time_index(train + test))}
    rows.update({name: row(videos) for name, videos in embedded.items()})
    return {
        "run": str(run),
        "folder": str(index.folder),
        "protocol": protocol,
        "stride": stride,
        "fractions": list(fractions),
        "videos": {"train": len(train), "test": len(test)},
        "actions": sorted({record.action for record in test}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": left_out.videos,
        "rows": rows,
        "definitions": definitions(
            protocol, stride, views=[record.view for record in test], few_shot=few_shot
        ),
        "row_definitions": ROW_DEFINITIONS,
        "remark": TAU_REMARK,
    }


def _require_labels(index: Any, records: Sequence[Any], split: str) -> None:
    if not any(record.phases is not None and (record.phases >= 0).any() for record in records):
        raise UserError(
            f"none of the {len(records)} readable videos of the split {split!r} has phase labels, "
            f"and the metrics need them: write {Path(index.folder) / 'labels.json'} and run "
            f"`python -m training.prepare {index.folder}`"
        )


def left_out_lines(rows: dict[str, Any]) -> list[str]:
    """What was left out of the metrics, one line per reason; by row where the rows differ."""
    reasons = sorted({reason for row in rows.values() for reason in row["left_out"]})
    lines = []
    for reason in reasons:
        counts = {name: Counter(row["left_out"])[reason] for name, row in rows.items()}
        values = set(counts.values())
        if len(values) == 1:
            lines.append(f"{values.pop()} {reason}")
        else:
            where = ", ".join(f"{count} in {name!r}" for name, count in counts.items() if count)
            lines.append(f"{reason}: {where}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of labelled videos (default: the run's own)"
    )
    parser.add_argument(
        "--protocol",
        choices=[*PROTOCOLS, VIDEO_LEVEL],
        default="carl",
        help="whose classifier, scores and strides (default %(default)s); vclr judges whole "
        "videos by their action, the others frames by their phase",
    )
    parser.add_argument(
        "--stride",
        type=int,
        help="every how many frames Kendall's tau looks, and CARL's AP@K (default 5; CARL takes 2 "
        "for Penn Action)",
    )
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="F",
        help="shares of the training videos for classification; the table shows the last "
        "(default 1.0; CARL: 0.1 0.5 1.0)",
    )
    parser.add_argument(
        "--few-shot",
        action="store_true",
        help="also classify from 1, 2, 3, 5, 10 and half of the training videos, as AE2 does (260 "
        "classifiers an action and row: minutes); with --protocol ae2",
    )
    args = parser.parse_args(argv)

    def command() -> LeftOut:
        left_out = LeftOut()
        if args.protocol == VIDEO_LEVEL:
            for name in ("stride", "fractions", "few_shot"):
                if getattr(args, name) != parser.get_default(name):
                    option = f"--{name.replace('_', '-')}"
                    raise UserError(f"{option} is for frames, --protocol {VIDEO_LEVEL} for videos")
            result = evaluate_video_level(args.run, folder=args.folder, left_out=left_out)
            report(args.run, result)
            return left_out
        result = evaluate_run(
            args.run,
            folder=args.folder,
            protocol=args.protocol,
            stride=args.stride,
            fractions=args.fractions,
            few_shot=args.few_shot,
            left_out=left_out,
        )
        report(args.run, result)
        return left_out

    return run_command(command)


def report(run: Path, result: dict[str, Any]) -> None:
    """Write RUN/evaluation.json and print what it says."""
    write_json(run / "evaluation.json", result)
    print(format_table(result["rows"]))
    stride = f"stride {result['stride']}; " if "stride" in result else ""
    print(
        f"\n{result['videos']['train']} training and {result['videos']['test']} test videos; "
        f"actions: {', '.join(result['actions'])}; {stride}{result['seconds']:.0f} s"
    )
    print(result["definitions"]["protocol"])
    if "across views" in result["definitions"]:
        print(f"across views: {result['definitions']['across views']}")
    for line in left_out_lines(result["rows"]):
        print(f"left out: {line}")
    if "remark" in result:
        print(result["remark"])
    print(f"written to {run / 'evaluation.json'}, with the definition of every column")


if __name__ == "__main__":
    sys.exit(main())
