"""IKEA ASM: assemblies of furniture seen by three cameras, with atomic actions per frame."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.layout import find_file, label_names
from training.datasets.parse import media_files, read_database, read_lines, wrong_layout
from training.datasets.segments import Length, lengths_of, usable_segments
from training.support.command import UserError

_LAYOUT = """\
SOURCE/
  FURNITURE/SCAN/dev3/images/scan_video.avi  or pictures 000000.jpg, 000001.jpg, ... in images/
  indexing_files/train_cross_env.txt         FURNITURE/SCAN a line; any folder
  indexing_files/test_cross_env.txt
  annotations/action_annotations/gt_segments.json
                                             any folder
"""
_KALLAX = "Kallax_Shelf_Drawer"
_FURNITURE = (_KALLAX, "Lack_Coffee_Table", "Lack_Side_Table", "Lack_TV_Bench")
_DEVICES = ("dev1", "dev2", "dev3")
_NA = "NA"
_FPS = 24.0  # of the pictures: the paper's 3,046,977 frames in 35.27 hours


def _read(source: Path, args: Namespace) -> DataSet:
    path = find_file(source, "gt_segments.json")
    if path is None:
        raise wrong_layout(source, "no gt_segments.json", _LAYOUT)
    database = read_database(path, _problem)
    splits = _splits(source)
    furniture = set(_FURNITURE if "all" in args.furniture else args.furniture)
    data_set = DataSet()
    labels: dict[str, set[str]] = {}
    segments: dict[str, list[tuple[int, int, str]]] = {}
    for scan, one in database.items():
        action = scan.partition("/")[0]
        if action not in furniture:
            continue
        if scan not in splits:
            data_set.unused[scan] = "in neither train_cross_env.txt nor test_cross_env.txt"
            continue
        named = [s for s in one["annotation"] if s["label"] != _NA or args.na == "phase"]
        labels.setdefault(action, set()).update(each["label"] for each in named)
        # The owner's export writes the last frame of a segment, not the one after it.
        segments[scan] = [(s["segment"][0], s["segment"][1] + 1, s["label"]) for s in named]
    for scan in splits:
        if scan.partition("/")[0] in furniture and scan not in database:
            data_set.missing[scan] = f"not in {path.name}"
    if not segments and not data_set.missing:
        raise wrong_layout(source, f"no scan of {', '.join(sorted(furniture))}", _LAYOUT)
    places = {f"{scan}/{device}": scan for scan in segments for device in args.device}
    media = {place: _media(source / place / "images") for place in places}
    lengths = lengths_of({p: f for p, f in media.items() if f and f.is_file()}, "reading lengths")
    for place, scan in places.items():
        file, view = media[place], place.rpartition("/")[2]
        if file is None:
            data_set.missing[f"{place}/images"] = "no scan_video.avi and no pictures"
            continue
        entry: dict[str, Any] = {
            "action": scan.partition("/")[0],
            "split": splits[scan],
            "view": view,
        }
        pictures = file.is_dir()
        length = Length(len(list(file.glob("*.jpg"))), _FPS) if pictures else lengths.get(place)
        entry["segments"] = usable_segments(data_set, place, segments[scan], length, seconds=False)
        name = place if pictures else f"{place}{file.suffix}"
        data_set.clips.append(Clip(name, file, entry, fps=_FPS if pictures else None))
    data_set.classes = {a: label_names(labels[a]) for a in sorted(labels) if labels[a]}
    return data_set


def _media(folder: Path) -> Path | None:
    """The video in a folder, or the folder itself if it has pictures."""
    if not folder.is_dir():
        return None
    videos = media_files(folder)
    if videos:
        return next(iter(videos.values()))
    return folder if any(folder.glob("*.jpg")) else None


def _splits(source: Path) -> dict[str, str]:
    """Scan -> split of the two indexing files."""
    splits: dict[str, str] = {}
    for split in ("train", "test"):
        path = find_file(source, f"{split}_cross_env.txt")
        if path is None:
            raise wrong_layout(source, f"no {split}_cross_env.txt", _LAYOUT)
        for line, scan in read_lines(path):
            if splits.setdefault(scan, split) != split:
                raise UserError(f"{path}: line {line}: {scan} is also in train_cross_env.txt")
    return splits


def _problem(one: Any) -> str:
    """What is wrong with the annotation of a scan; an empty string if nothing is."""
    segments = one.get("annotation") if isinstance(one, dict) else None
    if not isinstance(segments, list):
        return 'expected a list "annotation"'
    for each in segments:
        frames = each.get("segment") if isinstance(each, dict) else None
        if not isinstance(frames, list) or [type(frame) for frame in frames] != [int, int]:
            return 'expected "segment": [first frame, last frame] in each annotation'
        if not isinstance(each.get("label"), str):
            return 'expected a "label" in each annotation'
    return ""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--furniture",
        nargs="+",
        choices=(*_FURNITURE, "all"),
        default=[_KALLAX],
        metavar="NAME",
        help=f"one or more of {', '.join(_FURNITURE)}, or all (default: {_KALLAX}, as in LAV)",
    )
    parser.add_argument(
        "--device",
        nargs="+",
        choices=_DEVICES,
        default=["dev3"],
        help="cameras; several are views of one assembly (default: dev3, as in the owner's code)",
    )
    parser.add_argument(
        "--na",
        choices=("unlabelled", "phase"),
        default="unlabelled",
        help='frames with the label "NA": unlabelled (default; the owner\'s code calls them '
        "unlabelled frames) or a phase",
    )


READER = Reader(
    "ikea_asm",
    "IKEA ASM: furniture assembly, 33 atomic actions; by default LAV's Kallax drawers",
    _LAYOUT,
    _read,
    _add_arguments,
)
