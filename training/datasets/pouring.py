"""Pouring: the tfrecords of TCC, or the videos and pickles of CARL's released code."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.parse import natural, split_of, wrong_layout
from training.support.command import UserError

if TYPE_CHECKING:
    from training.datasets.tfrecord import Record

LAYOUT = """
SOURCE/pouring_train-0-of-2.tfrecord ...      SequenceExamples with the frames as JPEG files
SOURCE/pouring_val-0-of-1.tfrecord
or, from CARL's released copy:
SOURCE/train.pkl, val.pkl
SOURCE/videos/*.mp4
"""
_PHASES = 5  # datasets/dataset_splits.py of CARL_code and of TCC
_ACTION = "pouring"
_FEATURES = "context: name, len; lists: video, frame_labels"


def read(source: Path, args: Namespace) -> DataSet:
    """TCC's tfrecords if there are any, else CARL's pickles."""
    records = [Path(name) for name in natural(str(path) for path in source.glob("*.tfrecord*"))]
    if records:
        return _read_records(source, records, args)
    if (source / "train.pkl").is_file() or (source / "val.pkl").is_file():
        return _read_pickles(source)
    raise wrong_layout(source, "no *.tfrecord, train.pkl or val.pkl", LAYOUT)


def _split(path: Path) -> str:
    """The split in a file's name; TCC, LAV and CARL evaluate on val, which becomes "test"."""
    words = path.name.split(".")[0].replace("-", "_").split("_")
    splits = {split for word in words if (split := split_of(word))}
    if len(splits) != 1:
        raise UserError(
            f"{path}: expected one split in the file's name, such as pouring_train-0-of-2.tfrecord"
        )
    (split,) = splits
    return "test" if split == "val" else split


def _read_records(source: Path, paths: list[Path], args: Namespace) -> DataSet:
    from tqdm import tqdm

    from training.datasets.tfrecord import records

    data_set, names, top = DataSet(), [], _PHASES
    splits = {path: _split(path) for path in paths}
    total = sum(path.stat().st_size for path in paths)
    places: dict[str, Record] = {}
    with tqdm(desc="reading", total=total, unit="B", unit_scale=True) as bar:
        for path in paths:
            for record in records(path):
                name, labels, texts = _labels(record)
                if name in places:
                    other = places[name]
                    raise UserError(
                        f"{path}: record {record.number} is {name!r}, as record {other.number} of "
                        f"{other.path.name}; one of the files is there twice"
                    )
                places[name] = record
                names = names or texts
                top = max([top, *(label + 1 for label in labels)])
                entry: dict[str, Any] = {"action": _ACTION, "split": splits[path]}
                if labels:
                    entry["phases"] = labels
                else:
                    data_set.remark("no frame_labels", name)
                data_set.clips.append(
                    Clip(name, None, entry, pictures=_Pictures(record), fps=args.fps)
                )
                bar.update(record.size)
    if len(names) != top:
        names = [f"phase {number}" for number in range(top)]
    data_set.classes = {_ACTION: names}
    if missing := _missing_shards(paths):
        data_set.missing |= missing
    return data_set


def _labels(record: Record) -> tuple[str, list[int], list[str]]:
    """(name, phase of each frame, names of the phases or []) of a record."""
    example = record.example()
    where = f"{record.path}: record {record.number}"
    if "video" not in example.lists or "name" not in example.context:
        has = ", ".join([*example.context, *example.lists]) or "nothing"
        raise UserError(f"{where} has {has}; expected {_FEATURES}")
    name = bytes(example.context["name"][0]).decode()
    frames = len(example.lists["video"])
    labels = [int(step[0]) for step in example.lists.get("frame_labels", [])]
    length = example.context.get("len", [frames])[0]
    if length != frames or (labels and len(labels) != frames):
        raise UserError(
            f"{where} ({name}) has {frames} frames, {len(labels)} frame_labels and len {length}; "
            "expected three equal numbers"
        )
    if not frames or min(labels, default=0) < -1:
        problem = f"has the frame label {min(labels)}" if frames else "has no frames"
        raise UserError(f"{where} ({name}) {problem}")
    texts = example.context.get("framelabels_string", [])
    return name, labels, bytes(texts[0]).decode().split(",") if texts else []


class _Pictures:
    """Reads the JPEG files of one record when they are needed."""

    def __init__(self, record: Record):
        self.record = record

    def __call__(self) -> list[bytes]:
        return [bytes(step[0]) for step in self.record.example().lists["video"]]


def _missing_shards(paths: list[Path]) -> dict[str, str]:
    """The files of "NAME-0-of-2.tfrecord" that are not there."""
    missing = {}
    there = {path.name for path in paths}
    for path in paths:
        found = re.fullmatch(r"(.+-)(\d+)(-of-)(\d+)(\.tfrecord.*)", path.name)
        for number in range(int(found[4])) if found else []:
            name = f"{found[1]}{number:0{len(found[2])}}{found[3]}{found[4]}{found[5]}"
            if name not in there:
                missing[name] = f"no such file in {path.parent}"
    return missing


def _read_pickles(source: Path) -> DataSet:
    from training.carl_code.labels import convert_labels

    files = {"train": source / "train.pkl", "test": source / "val.pkl"}
    given = {split: [path] for split, path in files.items() if path.is_file()}
    content = convert_labels(given, source)
    if [*content["classes"]] != ["all"]:
        raise UserError(
            f"{source}: the pickles are not Pouring's, they have the actions "
            f"{', '.join(content['classes'])}; python -m training.carl_code labels converts them"
        )
    data_set = DataSet(classes={_ACTION: content["classes"]["all"]})
    for path in files.values():
        if not path.is_file():
            data_set.missing[path.name] = f"no such file in {source}"
    for name, entry in content["videos"].items():
        if (source / name).is_file():
            entry = {**entry, "action": _ACTION}
            data_set.clips.append(Clip(name, source / name, entry))
        else:
            data_set.missing[name] = f"no such file in {source}"
    return data_set


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--fps",
        type=float,
        default=25.0,
        help="frames per second of the tfrecords, which state none (default: 25, as in CARL's "
        "copies)",
    )


READER = Reader(
    name="pouring",
    summary="Pouring: TCC's tfrecords (TensorFlow is not needed), or CARL's pickles",
    layout=LAYOUT,
    read=read,
    add_arguments=_arguments,
)
