"""Kinetics-400, -600 and -700: CVDF's folders with csv files, or class folders."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.layout import ABSENT, SECOND, find_file, stem_of
from training.datasets.parse import (
    Row,
    media_files,
    number_of,
    read_table,
    several,
    split_of,
    wrong_layout,
)

_LAYOUT = """\
SOURCE/                                      k400, k600 or k700-2020
  train/ID_START_END.mp4                     CVDF's archives, unpacked; also val/ and test/;
  train/CLASS/ID_START_END.mp4               or class folders, as the crawler makes them; also
                                             videos_train/
  annotations/train.csv                      or SOURCE/train.csv: label, youtube_id, time_start,
                                             time_end, split; class folders need no csv
  replacement/replacement_for_corrupted_k400/ID_START_END.mp4
                                             CVDF's second copies of damaged videos, if there
"""
_REPLACEMENT = "replacement"
_ID = 11  # characters of a YouTube id
_PREFIXES = ("", "kinetics_", "kinetics400_", "kinetics600_", "kinetics700_")
_OPTIONAL = ("label", "split", "is_cc")


@dataclass
class _Files:
    """The videos of a split by the stem of their file, and by their YouTube id."""

    stems: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> bool:
        """Whether the stem of the file is new."""
        stem = stem_of(name)
        if stem in self.stems:
            return False
        self.stems[stem] = self.ids[stem[:_ID]] = name
        return True

    def of(self, stem: str) -> str | None:
        # Some copies leave out the times, or round them in another way.
        return self.stems.get(stem) or self.ids.get(stem[:_ID])


def _read(source: Path, args: Namespace) -> DataSet:
    data_set = DataSet()
    paths = media_files(source)
    files: dict[str, _Files] = {}
    for name in paths:
        top = name.partition("/")[0] if "/" in name else ""
        split = _REPLACEMENT if top == _REPLACEMENT else split_of(top.removeprefix("videos_"))
        if split is not None and not files.setdefault(split, _Files()).add(name):
            data_set.unused[name] = SECOND
    second = files.pop(_REPLACEMENT, _Files())
    if not files:
        raise wrong_layout(source, "no videos in train/, val/ or test/", _LAYOUT)
    labelled: dict[str, dict[str, str]] = {}  # split -> name -> label
    for split in ("train", "val", "test"):
        table = _table(source, split)
        if table is not None and split in files:
            labelled[split] = _from_table(data_set, table, split, files[split], second)
        elif table is not None:
            text = "no videos of this split: its annotations are not read"
            data_set.remark(text, f"{split} ({table})")
    known = {label for found in labelled.values() for label in found.values()}
    for split in files.keys() - labelled.keys():
        labelled[split] = _from_folders(source, split, files[split], second, known)
    for split in files:
        _add(data_set, paths, split, labelled[split])
    return data_set


def _from_table(
    data_set: DataSet, table: Path, split: str, files: _Files, second: _Files
) -> dict[str, str]:
    """Name -> label of the videos of a split with a csv file, in its order."""
    found: dict[str, str] = {}
    listed = set()
    for stem, label in _rows(table):
        listed.add(stem[:_ID])
        name = second.of(stem) or files.of(stem)
        if name is None:
            data_set.missing[f"{split}/{stem}.mp4"] = ABSENT
        elif not label:
            data_set.unused[name] = "no label in the csv file"
        elif name in found:
            data_set.remark("annotated twice: the first annotation is used", name)
        else:
            found[name] = label
    for stem, name in files.stems.items():
        if stem[:_ID] not in listed:
            data_set.unused[name] = f"not in {table.name}"
    return found


def _from_folders(
    source: Path, split: str, files: _Files, second: _Files, known: set[str]
) -> dict[str, str]:
    """Name -> label of the videos of a split without a csv file, which lie in class folders."""
    found = {}
    for stem, name in files.stems.items():
        if name.count("/") < 2:
            problem = f"no {split}.csv, and {name} does not lie in a class folder"
            raise wrong_layout(source, problem, _LAYOUT)
        label = name.split("/")[-2]
        spaced = label.replace("_", " ")  # mmaction2's script replaces the blanks
        found[second.of(stem) or name] = spaced if spaced in known else label
    return found


def _add(data_set: DataSet, paths: dict[str, Path], split: str, labelled: dict[str, str]) -> None:
    for name, label in labelled.items():
        if paths[name].stat().st_size == 0:
            data_set.missing[name] = "empty file (0 bytes): download it again"
            continue
        if name.startswith(f"{_REPLACEMENT}/"):
            data_set.remark("CVDF's second copy is used", name)
        data_set.clips.append(Clip(name, paths[name], {"action": label, "split": split}))


def _table(source: Path, split: str) -> Path | None:
    words = ("val", "validate", "validation") if split == "val" else (split,)
    names = [f"{prefix}{word}.csv" for word in words for prefix in _PREFIXES]
    return find_file(source, *names, depth=1)  # deeper folders have 200,000 files


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """(ID_START_END, label) of each row; the label is empty where the file has none."""
    problems = []
    for row in read_table(path, ("youtube_id", "time_start", "time_end"), _OPTIONAL):
        try:
            times = [int(number_of(row[key])) for key in ("time_start", "time_end")]
        except ValueError:
            problems.append(_not_numbers(row))
            continue
        yield f"{row['youtube_id']}_{times[0]:06}_{times[1]:06}", row["label"]
    if problems:
        raise several(path, problems)


def _not_numbers(row: Row) -> str:
    return (
        f"line {row.line}: time_start {row['time_start']!r} and time_end {row['time_end']!r} must "
        "be numbers of seconds"
    )


READER = Reader(
    "kinetics",
    "Kinetics-400, -600 or -700: the class of a video is its action",
    _LAYOUT,
    _read,
)
