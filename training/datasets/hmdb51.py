"""HMDB51: class folders and one file for each class and split."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from training.datasets.dataset import DataSet, Reader
from training.datasets.layout import add_class_folders, add_split_number, find
from training.datasets.parse import media_files, read_lines, several, wrong_layout
from training.support.command import UserError

_LAYOUT = """\
SOURCE/
  videos/CLASS/VIDEO.avi                     hmdb51_org.rar and the .rar of each class in it,
                                             unpacked; any folder name
  testTrainMulti_7030_splits/CLASS_test_split1.txt
                                             test_train_splits.rar, unpacked; any folder name
"""
_SPLITS = {"1": "train", "2": "test"}


def _read(source: Path, args: Namespace) -> DataSet:
    ending = f"_test_split{args.split_number}.txt"
    lists = find(source, f"*{ending}")
    files = media_files(source)
    if not lists or not files:
        packed = find(source, "*.rar")
        if packed:
            names = ", ".join(path.name for path in packed[:3])
            raise UserError(
                f"{source}: .rar archives ({names}{', ...' * (len(packed) > 3)}) are not read; "
                "unpack each class into a folder of its name: "
                "for f in *.rar; do unrar x $f videos/; done"
            )
        problem = "no videos" if lists else f"no CLASS{ending}"
        raise wrong_layout(source, problem, _LAYOUT)
    data_set = DataSet()
    listed, neither = {}, set()
    for path in lists:
        action = path.name.removesuffix(ending)
        problems = []
        for line, text in read_lines(path):
            video, _, mark = text.rpartition(" ")
            name = f"{action}/{video.strip()}"
            if mark in _SPLITS:
                listed[name] = _SPLITS[mark]
            elif mark == "0":
                neither.add(name)
            else:
                problems.append(f"line {line}: {text!r} is not VIDEO.avi and 0, 1 or 2")
        if problems:
            raise several(path, problems)
    add_class_folders(data_set, files, listed, "not in the files of the split")
    for name, path in files.items():
        if f"{path.parent.name}/{path.name}" in neither:
            data_set.unused[name] = f"neither train nor test in split {args.split_number} (mark 0)"
    return data_set


READER = Reader(
    "hmdb51",
    "HMDB51: 51 classes of human actions, splits 1 to 3; the class of a video is its action",
    _LAYOUT,
    _read,
    add_split_number,
)
