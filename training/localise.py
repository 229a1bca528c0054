"""Temporal action localisation: `python -m training.localise FEATURES --out OUT`.

Trains BMN on the features of the split "train" and scores its proposals on the test split. FEATURES
is a folder of `training.extract --format bmn` (or gtad), which has the annotated segments too. With
--folder the segments are those of the labels in a prepared folder of videos, and FEATURES may also
be a folder of npz files.

Prints ActivityNet's metrics in percent: AUC and AR@AN of proposals, mAP@tIoU of classified ones.
Beside BMN stand a BMN on random features and uniform windows. Writes OUT/localisation.json (all
figures), OUT/results.json (classified proposals in ActivityNet's form), OUT/ar_an.png,
OUT/proposals.png and OUT/bmn.pth (the weights). Example:
python -m training.localise features --out localised --epochs 30
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.label_values import SPLITS
from training.localisation.annotations import FILE_NAME
from training.localisation.fit import Options
from training.support.command import EXIT_STATUS, LeftOut, UserError, make_folder, run_command

if TYPE_CHECKING:
    from training.localisation.annotations import Annotated

HELP = {
    "epochs": "passes over the training videos; a few hundred steps are needed, so small sets of "
    "videos need more",
    "batch_size": "videos in a step",
    "lr": "learning rate of Adam, a tenth of it in the last 2/9 of the epochs",
    "channels": "width of BMN; the paper's 128 is slow on a CPU",
    "samples": "points at which a proposal's features are read",
    "seed": "of the weights and of the order of the videos",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.localise", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("features", type=Path, help="folder of features")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--folder", type=Path, help=f"prepared folder of videos (default: FEATURES/{FILE_NAME})"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="the videos to score (default: test, or val if no test video has segments)",
    )
    for field in fields(Options):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            metavar="X" if field.name == "lr" else "N",
            help=f"{HELP[field.name]} (default: %(default)s)",
        )
    parser.add_argument(
        "--no-random-row", action="store_true", help="do not train on random features too"
    )
    args = parser.parse_args(argv)
    for name in ("epochs", "batch_size", "channels", "samples"):
        if getattr(args, name) < 1:
            option, given = f"--{name.replace('_', '-')}", getattr(args, name)
            parser.error(f"{option} must be at least 1, got {given}")
    if not 0 < args.lr < float("inf"):
        parser.error(f"--lr must be above 0, got {args.lr}")
    if args.seed < 0:
        parser.error(f"--seed must be at least 0, got {args.seed}")

    return run_command(lambda: _run(args), needs="localisation")


def _run(args: argparse.Namespace) -> LeftOut:
    import torch

    from training.localisation.evaluate import ROWS, evaluate_rows, results_json, table
    from training.localisation.formats import find_features, read_features
    from training.localisation.pictures import proposal_bars, recall_curves
    from training.support.files import replacing, write_json

    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
    left_out = LeftOut()
    files = find_features(args.features)
    videos, place = _annotated(args, left_out)
    split = args.split or next((s for s in ("test", "val") if _some(videos, s)), "test")
    wanted = [video for video in videos if video.split in ("train", split)]
    for one in dict.fromkeys(("train", split)):
        if not _some(wanted, one):
            raise UserError(
                f"no video in the split {one!r} of {place} has segments; localisation trains on "
                f'"train" and scores "test" or "val": set the splits and segments in labels.json'
            )
    make_folder(args.out)
    features = read_features(files, wanted, left_out)
    read = [video for video in wanted if video.name in features]
    train = [video for video in read if video.split == "train"]
    test = [video for video in read if video.split == split]
    for name, kept in (("train", train), (split, test)):
        if not kept:
            raise UserError(
                f"{args.features} has no readable features of the annotated videos in the split "
                f"{name!r} of {place}; names of files are those of the videos, such as "
                f"{wanted[0].name}"
            )
    rows, model = evaluate_rows(features, train, test, options, random_row=not args.no_random_row)
    steps, size = features[train[0].name].shape
    content = {
        "features": {"folder": str(args.features), "steps": steps, "size": size},
        "split": split,
        "videos": {"train": len(train), split: len(test), "left_out": left_out.videos},
        "segments": {
            "train": sum(len(video.segments) for video in train),
            split: sum(len(video.segments) for video in test),
        },
        "options": asdict(options),
        "rows": {
            name: {
                "about": ROWS[name],
                "metrics": row.metrics,
                "AR": row.recall.average.tolist(),
                "recall": row.recall.recall.tolist(),
                "losses": row.losses,
            }
            for name, row in rows.items()
        },
    }
    best = rows["BMN"]
    write_json(args.out / "localisation.json", content)
    write_json(args.out / "results.json", results_json(best.detections))
    recall_curves(rows, args.out / "ar_an.png")
    proposal_bars(best, test, args.out / "proposals.png")
    with replacing(args.out / "bmn.pth") as partial:
        torch.save({key: value.cpu() for key, value in model.state_dict().items()}, partial)
    print(f"{len(test)} videos of the split {split!r}, percent\n\n{table(rows)}\n")
    print(f"written: {args.out}")
    return left_out


def _annotated(args: argparse.Namespace, left_out: LeftOut) -> tuple[list[Annotated], Path]:
    """The videos that have segments, and where these are from, for messages."""
    from training.localisation.annotations import annotate, names_of, read_annotations

    if args.folder:
        from training.data.index import load_index

        index = load_index(args.folder)
        left_out.in_index = len(index.bad)
        names_of(index.videos)
        found, place = [annotate(record, index.classes) for record in index.videos], args.folder
    else:
        places = [args.features / FILE_NAME, args.features.parent / FILE_NAME]
        place = next((path for path in places if path.is_file()), None)
        if place is None:
            raise UserError(
                f"{args.features} has no {FILE_NAME}; extract with --format bmn, or name the "
                "prepared folder of the videos with --folder"
            )
        found = read_annotations(place)
    return [video for video in found if len(video.segments)], place


def _some(videos: Sequence[Annotated], split: str) -> bool:
    return any(video.split == split for video in videos)


if __name__ == "__main__":
    sys.exit(main())
