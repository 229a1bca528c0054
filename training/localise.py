"""Temporal action localisation: `python -m training.localise FEATURES --out OUT`.

Trains BMN on the features of the split "train" and scores its proposals on the test split. FEATURES
is a folder of `training.extract --format bmn` (or gtad), which has the annotated segments too. With
--folder the segments are those of the labels in a prepared folder of videos, and FEATURES may also
be a folder of npz files.

Prints ActivityNet's metrics in percent: AUC and AR@AN of proposals, mAP@tIoU of classified ones.
Beside BMN stand a BMN on random features and uniform windows. Writes OUT/proposals.json and
OUT/results.json (BMN's proposals, and classified ones, in ActivityNet's form), OUT/ar_an.png,
OUT/proposals.png, OUT/bmn.pth (the weights) and OUT/localisation.json (all figures). The last one
is written when the others are complete. Example:
python -m training.localise features --out localised --epochs 30
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.label_values import SPLITS
from training.localisation.annotations import FILE_NAME
from training.localisation.fit import Options
from training.support.command import EXIT_STATUS, LeftOut, UserError, make_folder, run_command

if TYPE_CHECKING:
    from training.data.selection import Selection
    from training.localisation.annotations import Annotated

RESULT = "localisation.json"
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
    for one in fields(Options):
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=type(one.default),
            default=one.default,
            metavar="X" if one.name == "lr" else "N",
            help=f"{HELP[one.name]} (default: %(default)s)",
        )
    parser.add_argument(
        "--no-random-row", action="store_true", help="do not train on random features too"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier result in the same folder"
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

    from training.localisation.annotations import video_names
    from training.localisation.evaluate import (
        ROWS,
        evaluate_rows,
        proposals_json,
        results_json,
        table,
    )
    from training.localisation.formats import FeaturesLeftOut, find_features, read_features
    from training.localisation.pictures import proposal_bars, recall_curves
    from training.support.files import replacing, write_json

    if (args.out / RESULT).exists() and not args.overwrite:
        raise UserError(f"{args.out / RESULT} exists already; --overwrite replaces it")
    options = Options(**{one.name: getattr(args, one.name) for one in fields(Options)})
    index, names = None, None
    if args.folder:
        from training.data.index import load_index

        index = load_index(args.folder)
        names = video_names(record.id for record in index.videos)
    files = find_features(args.features, names)
    left_out = FeaturesLeftOut(len(index.bad) if index else 0)
    videos, place = _annotated(args, index, names)
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
    print(f"{len(test)} videos of the split {split!r}, percent\n\n{table(rows)}\n")

    def save_weights(file: Path) -> None:
        with replacing(file) as partial:
            torch.save({key: value.cpu() for key, value in model.state_dict().items()}, partial)

    write_all(
        args.out,
        {
            "proposals.json": lambda file: write_json(file, proposals_json(best.proposals)),
            "results.json": lambda file: write_json(file, results_json(best.detections)),
            "ar_an.png": lambda file: recall_curves(rows, file),
            "proposals.png": lambda file: proposal_bars(best, test, file),
            "bmn.pth": save_weights,
            RESULT: lambda file: write_json(file, content),
        },
    )
    print(f"written: {args.out}")
    return left_out


def write_all(folder: Path, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Write files in their order. An earlier `RESULT` is removed first, so it marks a whole result.

    Raises:
        UserError: a file cannot be written, for instance on a full disk; the message names it.
    """
    (folder / RESULT).unlink(missing_ok=True)
    for name, write in files.items():
        try:
            write(folder / name)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
            reason = error if isinstance(error, OSError) else f"is the disk full? {error}"
            raise UserError(
                f"{folder / name} cannot be written ({reason}); the result is incomplete without "
                f"{RESULT}, which is the last file"
            ) from error


def _annotated(
    args: argparse.Namespace, index: Selection | None, names: Mapping[str, str] | None
) -> tuple[list[Annotated], Path]:
    """The videos that have segments, and where these are from, for messages."""
    from training.localisation.annotations import annotate, read_annotations

    if index is not None:
        found = [annotate(one, index.classes, names[one.id]) for one in index.videos]
        place = args.folder
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
