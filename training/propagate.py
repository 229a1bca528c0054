"""Carry events marked in a few clips over to the others: `python -m training.propagate FOLDER`.

1. Look at the numbered frames of a first clip: FOLDER --sheet-only CLIP.
2. Write its boundaries into FOLDER/labels.json and run `python -m training.prepare FOLDER`.
3. Carry them over: FOLDER --from CLIP. DTW aligns each unlabelled clip of the action with the
   marked ones. It compares the features of a pre-trained backbone minus each video's mean, or the
   embeddings of a run. With several marked clips, the median of their proposals is used.
4. Look at the sheet, correct FOLDER/labels.propagated.json, and copy it to FOLDER/labels.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.evaluation.stored import add_checkpoint, add_no_store
from training.support.command import EXIT_STATUS, LeftOut, UserError, make_folder, run_command

if TYPE_CHECKING:
    from training.data.index import Index, VideoRecord
    from training.evaluation.embed import EmbeddedVideo
    from training.evaluation.encoders import Encoder
    from training.evaluation.propagation import Carried, LabelsFile
    from training.evaluation.sheets import Row

RECIPE = "recipes/carl_small.yaml"
POOL = "model.pool=mean"  # aligns better than the recipe's grid
MOST_FRAMES = 120  # per clip that --sheet-only shows without --every


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.propagate",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="prepared folder of videos")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help=f"values that replace those of {RECIPE}, whose backbone is used with {POOL}",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--from",
        dest="sources",
        action="append",
        metavar="CLIP",
        help="a clip whose events are marked: its name in FOLDER, or its path (may be repeated)",
    )
    what.add_argument(
        "--sheet-only", metavar="CLIP", help="show the frames of one clip with their numbers"
    )
    parser.add_argument("--run", type=Path, help="run directory whose trained network is used")
    parser.add_argument(
        "--action",
        help="action of the clips that have none in labels.json, if it contains several actions",
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="clips may begin and end at different moments of the action",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="labels file (default: FOLDER/labels.json)"
    )
    parser.add_argument(
        "--out", type=Path, help="labels file to write (default: FOLDER/labels.propagated.json)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace --out; labels.json is never replaced"
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        default=Path("sheet.png"),
        metavar="FILE",
        help="PNG with the carried events, to check them (default: %(default)s); several pages "
        "become sheet_1.png, ...",
    )
    parser.add_argument(
        "--every", type=int, metavar="N", help="with --sheet-only: show every Nth frame"
    )
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_intermixed_args(argv)
    if args.sheet.suffix.lower() != ".png":
        parser.error(f"--sheet must name a PNG file, got {args.sheet}")
    if args.every is not None and (args.every < 1 or args.sources):
        parser.error(f"--every must be at least 1 and goes with --sheet-only, got {args.every}")
    if args.run is None and (args.checkpoint or args.no_store):
        parser.error("--checkpoint and --no-store need --run")
    if args.run is not None and args.overrides:
        parser.error(
            f"{args.overrides[0]}: recipe values do not apply to the network of --run; leave them "
            "out"
        )
    return run_command(lambda: _show(args) if args.sheet_only else _carry(args))


def _show(args: argparse.Namespace) -> None:
    from training.data.index import load_index
    from training.evaluation.propagation import find_clip
    from training.evaluation.sheets import frame_row, write_sheet

    index = load_index(args.folder, class_set=_class_set(args))
    record = find_clip(index, args.sheet_only)
    make_folder(args.sheet.parent)
    every = args.every or -(-record.frames // MOST_FRAMES)
    for file in write_sheet([frame_row(record, every)], args.sheet):
        print(f"written: {file}")
    print(_how_to_mark(index, record.id))


def _class_set(args: argparse.Namespace) -> str | None:
    """`data.class_set` of the overrides or of the run."""
    from training.recipe.load import load_config

    if args.run is None:
        return load_config(RECIPE, args.overrides).data.class_set
    path = args.run / "config.yaml"  # without one, loading the encoder says what is missing
    return load_config(path).data.class_set if path.is_file() else None


def _how_to_mark(index: Index, name: str) -> str:
    classes = index.classes or {"swing": ["address", "backswing", "downswing", "finish"]}
    action = next(iter(classes))
    places = ", ".join(f"<first frame of {phase}>" for phase in classes[action][1:])
    folder = shlex.quote(str(index.folder))
    top, part = f'"classes": {json.dumps(classes)}', f'"boundaries": [{places}]'
    page = f", or set them in `python -m training.view {folder}`"
    if class_set := index.class_set:
        named = json.dumps(class_set)
        top, part = f'"class_sets": {{{named}: ...}}', f'"labels": {{{named}: {{{part}}}}}'
        page = ""  # it does not edit class sets
    return (
        "write the first frame of every phase, except the first phase, into "
        f"{index.folder / 'labels.json'}:\n"
        f"  {{{top},\n"
        f'   "videos": {{{json.dumps(name)}: {{"action": {json.dumps(action)}, {part}}}}}}}\n'
        f"with frame numbers for <...>{page};\n"
        f"then `python -m training.prepare {folder}` and "
        f"`python -m training.propagate {folder} --from {shlex.quote(name)}`"
    )


def _carry(args: argparse.Namespace) -> LeftOut:
    from training.data.index import load_index
    from training.evaluation.propagation import (
        LabelsFile,
        combine,
        doubt_unlike,
        propose_all,
        steps_back,
    )

    index = load_index(args.folder, class_set=_class_set(args))
    labels_path = args.labels or index.folder / "labels.json"
    out = args.out or index.folder / "labels.propagated.json"
    _check_out(out, labels_path, args.overwrite)
    make_folder(out.parent)
    make_folder(args.sheet.parent)
    marked = _marked(index, args.sources, args.action)
    labels = LabelsFile.read(labels_path, index)
    others = _others(index, labels, marked, args.action)
    left_out = LeftOut(len(index.bad))
    videos = _embed(args, index, [*marked.records, *others], left_out)
    sources = [videos[record.id] for record in left_out.kept(marked.records)]
    if not sources:
        raise UserError("none of the clips of --from can be read")
    others = left_out.kept(others)
    proposals = [
        propose_all(
            source,
            marked.events[source.record.id],
            [videos[record.id] for record in others],
            opened=args.open,
        )
        for source in sources
    ]
    carried = {
        record.id: combine(record, marked.names, [p for all_ in proposals for p in all_[record.id]])
        for record in others
    }
    doubt_unlike(carried)
    new = [record for record in others if record.phases is None]
    print(f"{marked.action}: carried over from {', '.join(v.record.id for v in sources)}")
    labelled = [record for record in others if record.phases is not None]
    in_order = [record for record in labelled if not steps_back(record)]
    if len(in_order) < len(labelled):
        count = len(labelled) - len(in_order)
        print(f"not compared, because their phases go backwards: {count} clips")
    _print_errors(in_order, carried, marked)
    if not new:
        print("every other clip that can be read has labels: nothing was written")
        return left_out
    new.sort(key=lambda record: carried[record.id].urgency)
    _print_carried(new, carried, marked)
    found = {record.id: carried[record.id] for record in new}
    labels.write(out, found, marked.action, [video.record.id for video in sources])
    shown = [video.record for video in sources]
    for file in _write_sheet(args.sheet, shown, new, carried, marked):
        print(f"written: {file}")
    print(f"written: {out}: look at the sheet, correct this file, and copy it to")
    print(f"{labels_path}; then `python -m training.prepare {index.folder}`")
    return left_out


def _check_out(out: Path, labels: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if out.name == "labels.json" or out.resolve() == labels.resolve():
        raise UserError(
            f"{out} holds labels, which are never replaced: write to another --out, check that "
            "file, and copy it yourself"
        )
    if not overwrite:
        raise UserError(
            f"{out} exists and may contain corrections by hand: choose another --out, or "
            "--overwrite to replace it"
        )


@dataclass(frozen=True)
class Marked:
    """The clips that events are carried over from: names of the events, frames by clip."""

    action: str
    records: Sequence[VideoRecord]
    names: Sequence[str]
    events: Mapping[str, Sequence[int | None]]


def _marked(index: Index, wanted: Sequence[str], action: str | None) -> Marked:
    from training.evaluation.propagation import events_of, find_clip

    found = [find_clip(index, name) for name in wanted]
    records = list({record.id: record for record in found}.values())
    for record in records:
        if record.phases is None:
            raise UserError(
                f"{record.id} has no events to carry over; {_how_to_mark(index, record.id)}"
            )
    actions = sorted({record.action for record in records})
    if len(actions) > 1:
        raise UserError(f"the clips of --from show {', '.join(actions)}; name clips of one action")
    if action not in (None, actions[0]):
        raise UserError(
            f"--action is {action}, but {records[0].id} shows {actions[0]}; use the same action"
        )
    names = index.classes[actions[0]][1:]
    events = {record.id: events_of(record, len(names)) for record in records}
    for name, frames in events.items():
        if all(frame is None for frame in frames):
            raise UserError(
                f"{name}: no phase of {actions[0]} begins after its first labelled frame, so there "
                "is no event to carry over"
            )
    return Marked(actions[0], records, names, events)


def _others(
    index: Index, labels: LabelsFile, marked: Marked, action: str | None
) -> list[VideoRecord]:
    """The other clips of the action, and those without an action if it can only be this one."""
    known = {record.action for record in index.videos if labels.has_action(record)}
    others, unknown = [], 0
    for record in index.videos:
        if record in marked.records:
            continue
        if record.action == marked.action:
            others.append(record)
        elif not labels.has_action(record):
            if action is not None or known == {marked.action}:
                others.append(record)
            else:
                unknown += 1
    if unknown:
        print(
            f"{unknown} clips without an action in {labels.path} are skipped; --action "
            f"{marked.action} includes them"
        )
    if not others:
        raise UserError(
            f"{index.folder} has no other clip of the action {marked.action!r} to carry events to"
        )
    return others


def _embed(
    args: argparse.Namespace, index: Index, records: Sequence[VideoRecord], left_out: LeftOut
) -> dict[str, EmbeddedVideo]:
    from training.evaluation.embed import embed_records
    from training.evaluation.encoders import BACKBONE_CENTRED, TRAINED
    from training.evaluation.stored import run_embeddings

    if args.run is not None:
        made, _ = run_embeddings(
            args.run,
            records,
            checkpoint=args.checkpoint,
            folder=index.folder,
            left_out=left_out,
            store=not args.no_store,
        )
        videos = made[TRAINED]
    else:
        encoder, cfg = _backbone(index, args.overrides)
        videos = embed_records({BACKBONE_CENTRED: encoder}, records, cfg, left_out)[
            BACKBONE_CENTRED
        ]
    return {video.record.id: video for video in videos}


def _backbone(index: Index, overrides: Sequence[str]) -> tuple[Encoder, Any]:
    """The pre-trained backbone of RECIPE, minus each video's mean."""
    import torch

    from training.evaluation.encoders import BACKBONE_CENTRED, backbone_encoders
    from training.recipe.load import load_config
    from training.runs.model import initial_model

    cfg = load_config(RECIPE, [POOL, *overrides])
    cfg.data.folder = str(index.folder)
    try:
        model = initial_model(cfg).eval()
    except ValueError as error:  # of options that do not fit together
        raise UserError(str(error)) from error
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return backbone_encoders(model, cfg)[BACKBONE_CENTRED], cfg


def _print_errors(
    records: Sequence[VideoRecord], carried: Mapping[str, Carried], marked: Marked
) -> None:
    """Print the errors of the carried events in clips that have labels."""
    from training.evaluation.propagation import errors_of
    from training.evaluation.tables import format_cells

    found = {name: errors_of(records, carried, k) for k, name in enumerate(marked.names)}
    together = [error for errors in found.values() for error in errors]
    if not together:
        return
    lines = [["", "clips", "mean", "median frames", "mean", "median seconds"]]
    for name, errors in [*found.items(), ("all", together)]:
        values = np.array(errors, dtype=float).reshape(-1, 2).T
        cells = ["-"] * 4
        if values.size:
            (mean, mean_s), (median, median_s) = values.mean(axis=1), np.median(values, axis=1)
            cells = [f"{mean:.1f}", f"{median:.4g}", f"{mean_s:.2f}", f"{median_s:.2f}"]
        lines.append([name, str(values.shape[1]), *cells])
    print(f"error against the labels of {len(records)} other clips, which are not changed:")
    print(format_cells(lines))


def _print_carried(
    records: Sequence[VideoRecord], carried: Mapping[str, Carried], marked: Marked
) -> None:
    """Print a line for each clip, the most doubtful first."""
    from training.evaluation.tables import format_cells

    lines = [["", *marked.names, "similarity"]]
    for record in records:
        found = carried[record.id]
        events = zip(found.boundaries, found.spread, strict=True)
        cells = [f"{place} ({'-' if spread is None else spread})" for place, spread in events]
        lines.append([record.id, *cells, f"{found.similarity:.2f}"])
    print("first frames, in brackets the spread of the proposals; check the upper lines first:")
    print(format_cells(lines))
    for record in records:
        for doubt in carried[record.id].doubts:
            print(f"check {record.id}: {doubt}")


def _write_sheet(
    file: Path,
    sources: Sequence[VideoRecord],
    new: Sequence[VideoRecord],
    carried: Mapping[str, Carried],
    marked: Marked,
) -> list[Path]:
    from tqdm import tqdm

    from training.evaluation.sheets import CARRIED, GIVEN, event_row, write_sheet

    def rows() -> Iterator[Row]:
        for record in tqdm([*sources, *new], unit="clip", desc="sheet"):
            given = record.id in marked.events
            frames = marked.events[record.id] if given else carried[record.id].boundaries
            note = "marked" if given else "; ".join(["carried over", *carried[record.id].doubts])
            events = list(zip(marked.names, frames, strict=True))
            yield event_row(record, events, note=note, colour=GIVEN if given else CARRIED)

    return write_sheet(rows(), file)


if __name__ == "__main__":
    sys.exit(main())
