"""Evaluate a run by a paper's protocol: `python -m training.evaluate RUN`.

Prints the protocol's tables and writes them, with the definition of every metric, to
RUN/evaluation.json. With --few-shot it also draws RUN/few_shot.png, with --protocol action
RUN/confusion.png. --split val and a class set
other than the run's have files with their names: RUN/evaluation_val.json,
RUN/evaluation_gym288.json. Example: python -m training.evaluate runs/mine --protocol lav
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.label_values import SPLITS
from training.evaluation.action import AVERAGES, evaluate_actions
from training.evaluation.action import NAME as ACTION
from training.evaluation.action_scores import class_cells
from training.evaluation.confusion import write_confusion
from training.evaluation.encoders import TRAINED
from training.evaluation.few_shot import write_few_shot
from training.evaluation.frame_level import evaluate_frame_level
from training.evaluation.metrics import FEWER_CANDIDATES
from training.evaluation.options import ARGUMENTS, add_arguments, from_arguments
from training.evaluation.protocols import COLUMNS, PROTOCOLS
from training.evaluation.stored import add_checkpoint, add_no_store
from training.evaluation.synchronised import NAME as SYNCHRONISED
from training.evaluation.synchronised import WINDOW, evaluate_synchronised
from training.evaluation.tables import (
    event_cells,
    few_shot_cells,
    format_cells,
    format_tables,
    left_out_lines,
)
from training.evaluation.video_level import NAME as VIDEO_LEVEL
from training.evaluation.video_level import evaluate_video_level
from training.support.command import (
    EXIT_STATUS,
    LeftOut,
    UserError,
    check_writable,
    counted,
    run_command,
)
from training.support.files import write_json

WIDTH = 100  # characters of a printed table; wider ones are split
WHOLE = (VIDEO_LEVEL, SYNCHRONISED, ACTION)  # protocols that embed parts of videos
VIEWS = ("clips", "crops", "average")  # options of --protocol action
CROPS = (1, 3, 10)
MOST = 20  # printed names of actions
FEW = 5  # printed names of videos


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="run directory of `python -m training.train`, or a folder of npz files with "
        "embeddings of any origin",
    )
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of labelled videos (default: that of the run)"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="the videos that are scored (default: the run's data.test_split); classifiers are "
        "always fitted to the training videos",
    )
    parser.add_argument(
        "--class-set",
        metavar="NAME",
        help="the phases and splits, if labels.json has several class sets (default: the run's "
        "data.class_set)",
    )
    parser.add_argument(
        "--protocol",
        choices=[*PROTOCOLS, VIDEO_LEVEL, ACTION, SYNCHRONISED],
        default="carl",
        help="the paper whose classifier, scores and strides are used (default %(default)s): "
        "finegym classifies frames by a linear layer and computes nothing else, vclr scores whole "
        "videos by their action, action scores the run's own classifier of actions, sync scores "
        "the alignment of synchronised videos by true time, "
        "the others score frames by their phase",
    )
    add_arguments(parser)
    parser.add_argument(
        "--window",
        type=float,
        default=WINDOW,
        metavar="SHARE",
        help="with --protocol sync: share of the common instants that is kept at the beginning of "
        "the first video and at the end of the second, above 0.5 and below 1 (default "
        "%(default)s)",
    )
    parser.add_argument(
        "--clips",
        type=int,
        metavar="K",
        help="with --protocol action: evenly spaced clips of a video (default: data.segments of "
        "the run, or 1 with model.shift)",
    )
    parser.add_argument(
        "--crops",
        type=int,
        choices=CROPS,
        default=1,
        help="with --protocol action: crops of a clip. 1: the centre; 3: along the longer side; "
        "10: corners and centre, also mirrored (default %(default)s)",
    )
    parser.add_argument(
        "--average",
        choices=AVERAGES,
        default="score",
        help="with --protocol action: average the scores of all views or their probabilities "
        "(default %(default)s)",
    )
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_args(argv)

    def command() -> LeftOut:
        from training.evaluation.folder_of_embeddings import evaluate_folder, has_npz
        from training.runs.folder import evaluation_file  # imports torch
        from training.runs.model import LATEST
        from training.support.distributed import launched_by_torchrun, start_evaluation

        check_writable(args.run, evaluation_file(args.split, args.class_set, args.checkpoint))
        start_evaluation()
        left_out = LeftOut()
        given = {"folder": args.folder, "split": args.split, "class_set": args.class_set}
        given["left_out"] = left_out
        is_run = (args.run / "config.yaml").exists()
        of_embeddings = not is_run and has_npz(args.run)
        if args.run.is_dir() and not is_run and not of_embeddings:
            raise UserError(
                f"{args.run} is not a run: it contains no config.yaml. python -m training.train "
                "writes runs. It is no folder of embeddings either: it contains no npz file"
            )
        if launched_by_torchrun() and (of_embeddings or args.protocol in WHOLE):
            raise UserError("only frames of a run are embedded by several processes; use one")
        if of_embeddings:
            refuse("whole videos, frame by frame", "window", *VIEWS)
            if args.checkpoint:
                raise UserError(
                    f"--checkpoint applies to the network of a run, and {args.run} contains "
                    "embeddings; leave it out"
                )
            if args.protocol in WHOLE:
                raise UserError(
                    f"--protocol {args.protocol} embeds parts of videos, so it needs a run; "
                    f"{args.run} contains embeddings"
                )
            given["folder_of_videos"] = given.pop("folder")
            result = evaluate_folder(args.run, **given, **from_arguments(args))
            write_and_print(args.run / evaluation_file(args.split, args.class_set), result)
            return left_out
        given["checkpoint"] = args.checkpoint
        if args.protocol == VIDEO_LEVEL:
            refuse("videos", *ARGUMENTS, "window", "no_store", *VIEWS)
            result = evaluate_video_level(args.run, **given)
        elif args.protocol == SYNCHRONISED:
            refuse("windows of videos", *ARGUMENTS, "no_store", *VIEWS)
            result = evaluate_synchronised(args.run, window=args.window, **given)
        elif args.protocol == ACTION:
            refuse("videos", *ARGUMENTS, "window", "no_store")
            if args.clips is not None and args.clips < 1:
                raise UserError(f"--clips: expected at least 1, got {args.clips}")
            views = {name: getattr(args, name) for name in VIEWS}
            result = evaluate_actions(args.run, **views, **given)
        else:
            refuse("whole videos, frame by frame", "window", *VIEWS)
            options = from_arguments(args)
            result = evaluate_frame_level(args.run, store=not args.no_store, **given, **options)
        if result is None:  # another rank than 0
            return left_out
        other = result["class_set"] != result["run_class_set"]
        class_set = result["class_set"] if other else None
        name = evaluation_file(args.split, class_set, args.checkpoint)
        chosen = args.checkpoint not in (None, LATEST)
        write_and_print(args.run / name, result, name_weights=chosen)
        return left_out

    def refuse(judged: str, *names: str) -> None:
        for name in names:
            if getattr(args, name) != parser.get_default(name):
                option = f"--{name.replace('_', '-')}"
                if name in VIEWS:
                    raise UserError(
                        f"{option} works only with --protocol {ACTION}, got --protocol "
                        f"{args.protocol}; leave {option} out"
                    )
                what = "windows" if name == "window" else "frames"
                raise UserError(
                    f"{option} applies to {what}, but --protocol {args.protocol} scores {judged}; "
                    f"leave {option} out"
                )

    return run_command(command, several=True)


def write_and_print(file: Path, result: dict[str, Any], *, name_weights: bool = False) -> None:
    """Write RUN/evaluation.json, or that of another split or class set, and print its tables.

    With few-shot classification the plot is written beside it: RUN/few_shot.png. With
    ``name_weights`` the text names the checkpoint and its step.
    """
    lost = replaced(file, result)
    write_json(file, result)
    print(format_tables(result["rows"], WIDTH))
    for score, cells in few_shot_cells(result["rows"]).items():
        print(f"\n{COLUMNS[score]} from N labelled videos, mean (standard deviation) over draws")
        print(format_cells(cells))
    if cells := event_cells(result["rows"]):
        print(f"\nevents carried over to another {result['split']} video, mean (median) error")
        print(format_cells(cells))
    if cells := class_cells(result.get("per_class", {})):
        print(f"\nlowest of {len(result['per_class'])} actions")
        print(format_cells(cells))
    stride = f"stride {result['stride']}; " if "stride" in result else ""
    class_set = f"class set {result['class_set']}; " if result["class_set"] else ""
    scored = counted(result["videos"]["test"], f"{result['split']} video")
    weights = ""
    if name_weights and "checkpoint" in result:
        weights = f"checkpoint {result['checkpoint']}, step {result['step']}; "
    shown = result["actions"]
    if len(shown) > MOST:
        shown = [*shown[:MOST], f"{len(shown) - MOST} more"]
    print(
        f"\n{weights}{result['videos']['train']} training and {scored}; "
        f"actions: {', '.join(shown)}; {class_set}{stride}"
        f"{result['seconds']:.0f} s"
    )
    if result["split"] != "test":
        print(f"below and in the file, test videos are those of the split {result['split']!r}")
    print(result["definitions"]["protocol"])
    if "across views" in result["definitions"]:
        print(f"across views: {result['definitions']['across views']}")
    if "model.backbone_share" in result["row_definitions"].get(TRAINED, ""):
        print(f"{TRAINED}: {result['row_definitions'][TRAINED]}")
    scored_too = FEWER_CANDIDATES.removeprefix("query videos")  # one such video: "query video"
    for line in left_out_lines(result["rows"]):
        print(line if scored_too in line else f"left out: {line}")
    if unseen := result.get("unseen"):
        shown = [f"{name} ({action})" for name, action in [*unseen.items()][:FEW]]
        more = f" and {len(unseen) - FEW} more, all in the file" if len(unseen) > FEW else ""
        print(f"  {', '.join(shown)}{more}")
    if "remark" in result:
        print(result["remark"])
    print(f"written to {file}, with the definition of every column")
    if lost:
        print(f"it replaces an evaluation {lost}")
    if picture := write_few_shot(file, result["rows"]) or write_confusion(file, result):
        print(f"written to {picture}")


def replaced(file: Path, result: Mapping[str, Any]) -> str:
    """What the evaluation in a file has that a new one lacks, as words; empty if nothing."""
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        names = [one["protocol"] for one in (earlier, result)]
        before, now = (_computed(one) for one in (earlier, result))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or no evaluation
        return ""
    if names[0] != names[1]:
        return f"by the protocol {names[0]}"
    more = [name for name in before if name not in now]
    return f"that also had {', '.join(more)}" if more else ""


def _computed(result: Mapping[str, Any]) -> list[str]:
    """The names of what an evaluation.json has."""
    protocol = PROTOCOLS.get(result["protocol"])
    names = [*result.get("metrics", protocol.metrics if protocol else ())]
    names += [f"retrieval at K = {k}" for k in result.get("ks", ())]
    if "classification" in names:
        names += [f"classification at {100 * share:g} %" for share in result["fractions"][:-1]]
    names = [name for name in names if name != "retrieval"]
    return names + ["few-shot classification"] * bool(result.get("few_shot"))


if __name__ == "__main__":
    status = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from training.support.distributed import leave

        leave(status)
    sys.exit(status)
