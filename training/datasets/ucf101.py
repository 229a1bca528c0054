"""UCF101: class folders and the official lists of the three splits."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from training.datasets.dataset import DataSet, Reader
from training.datasets.layout import add_class_folders, add_split_number, find_file
from training.datasets.parse import media_files, read_lines, several, wrong_layout
from training.support.command import UserError

_LAYOUT = """\
SOURCE/
  UCF-101/CLASS/v_CLASS_g01_c01.avi          UCF101.rar, unpacked; any folder name
  ucfTrainTestlist/classInd.txt              UCF101TrainTestSplits-RecognitionTask.zip;
  ucfTrainTestlist/trainlist01.txt           any folder name
  ucfTrainTestlist/testlist01.txt
"""


def _read(source: Path, args: Namespace) -> DataSet:
    number = args.split_number
    listed: dict[str, str] = {}
    classes = _classes(source)
    for split in ("train", "test"):
        path = find_file(source, f"{split}list{number:02}.txt")
        if path is None:
            raise wrong_layout(source, f"no {split}list{number:02}.txt", _LAYOUT)
        problems = []
        for line, text in read_lines(path):
            video, _, index = text.partition(" ")  # lines of a test list have no number
            action, _, _ = video.rpartition("/")
            if not action:
                problems.append(f"line {line}: {text!r} is not CLASS/VIDEO.avi")
            elif index and classes and classes.get(index.strip()) != action:
                problems.append(
                    f"line {line}: class {index.strip()} is {classes.get(index.strip(), 'not')} in "
                    f"classInd.txt, but the video lies in {action}"
                )
            elif video in listed:
                problems.append(f"line {line}: {video} is listed twice")
            else:
                listed[video] = split
        if problems:
            raise several(path, problems)
    files = media_files(source)
    if not files:
        raise wrong_layout(source, "no videos", _LAYOUT)
    data_set = DataSet()
    add_class_folders(data_set, files, listed, f"not in the lists of split {number}")
    return data_set


def _classes(source: Path) -> dict[str, str]:
    """Number -> class of classInd.txt; empty if the file is not there."""
    path = find_file(source, "classInd.txt")
    if path is None:
        return {}
    classes = {}
    for line, text in read_lines(path):
        number, _, name = text.partition(" ")
        if not number.isdigit() or not name:
            raise UserError(f"{path}: line {line}: {text!r} is not a number and a class")
        classes[number] = name.strip()
    return classes


READER = Reader(
    "ucf101",
    "UCF101: 101 classes of human actions, splits 1 to 3; the class of a video is its action",
    _LAYOUT,
    _read,
    add_split_number,
)
