"""AE2's ego-exo benchmark: four data sets in two layouts, with phases of every frame."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.threads import in_threads
from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.layout import ABSENT
from training.datasets.parse import media_files, read_lines, wrong_layout
from training.support.command import UserError

if TYPE_CHECKING:
    import numpy as np

_LAYOUT = """\
SOURCE/                                      AE2_data, or one of its four folders
  break_eggs/label.pickle                    {video's name without extension: phase of each frame}
  break_eggs/{ego,exo}/VIDEO.mp4             break_eggs and tennis_forehand
  break_eggs/{ego,exo}/{train,val,test}.csv  one VIDEO.mp4 a line, no header
  pour_milk/label.pickle
  pour_milk/{train,val,test}/{ego,exo}/VIDEO.mp4
                                             pour_milk and pour_liquid
"""
_LABELS = "label.pickle"
_SPLITS = ("train", "val", "test")
_VIEWS = ("ego", "exo")


def _read(source: Path, args: Namespace) -> DataSet:
    if (source / _LABELS).is_file():
        sets = {source.resolve().name: ("", source)}
    else:
        sets = {
            path.parent.name: (f"{path.parent.name}/", path.parent)
            for path in sorted(source.glob(f"*/{_LABELS}"))
        }
    if not sets:
        raise wrong_layout(source, f"no {_LABELS}", _LAYOUT)
    data_set = DataSet()
    for action, (prefix, folder) in sets.items():
        _add(data_set, source, action, prefix, folder)
    return data_set


def _add(data_set: DataSet, source: Path, action: str, prefix: str, folder: Path) -> None:
    """Add one of the four data sets."""
    labels = _read_labels(folder / _LABELS)
    files = media_files(folder)
    wanted = _by_folders(files) or _by_lists(folder)
    if not wanted:
        problem = f"{folder.name}: no {{ego,exo}}/train.csv, no train/ego"
        raise wrong_layout(source, problem, _LAYOUT)
    there = [name for name in wanted if name in files]
    frames = in_threads(lambda name: _frames(files[name]), there, f"reading {action}", True)
    for name, count in zip(there, frames, strict=True):
        split, view = wanted[name]
        entry: dict[str, Any] = {"action": action, "split": split, "view": view}
        phases = labels.get(Path(name).stem)
        if phases is None:
            data_set.remark(f"not in {_LABELS}: used without labels", prefix + name)
        else:
            entry["phases"] = _fitted(data_set, prefix + name, phases, count)
        data_set.clips.append(Clip(prefix + name, files[name], entry))
    for name in wanted:
        if name not in files:
            data_set.missing[prefix + name] = ABSENT
    stems = {Path(name).stem for name in [*wanted, *files]}
    for stem in labels:
        if stem not in stems:
            data_set.missing[f"{prefix}{stem}"] = f"in {_LABELS}, but no such file"
    for name in files:
        if name not in wanted:
            data_set.unused[prefix + name] = "in no train.csv, val.csv or test.csv"
    top = max((int(values.max()) for values in labels.values() if len(values)), default=0)
    data_set.classes[action] = [f"phase {number}" for number in range(top + 1)]


def _by_folders(files: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """Name -> (split, view) of the videos in SPLIT/VIEW/; empty for the other layout."""
    found = {}
    for name in files:
        split, _, rest = name.partition("/")
        view, inside, _ = rest.partition("/")
        if split in _SPLITS and view in _VIEWS and inside:
            found[name] = (split, view)
    return found


def _by_lists(folder: Path) -> dict[str, tuple[str, str]]:
    """Name -> (split, view) of the videos in VIEW/SPLIT.csv; empty without such files."""
    found: dict[str, tuple[str, str]] = {}
    for view in _VIEWS:
        for split in _SPLITS:
            path = folder / view / f"{split}.csv"
            for line, text in read_lines(path) if path.is_file() else ():
                name = f"{view}/{text}"
                if name in found:
                    raise UserError(f"{path}: line {line}: {text} is also in {found[name][0]}.csv")
                found[name] = (split, view)
    return found


def _read_labels(path: Path) -> dict[str, np.ndarray]:
    """int64 phases of each video; reads data alone, as a pickle could run any program."""
    import numpy as np  # slow, and only needed here

    from training.carl_code.labels import LabelUnpickler

    try:
        with open(path, "rb") as file:
            content = LabelUnpickler(file).load()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{path} is not a pickle of labels, or more than data: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {{name: phase of each frame}}, got {type(content)}")
    labels = {}
    for name, values in content.items():
        array = np.asarray(values)
        if array.ndim != 1 or not (array == np.round(array)).all():
            raise UserError(f"{path}: {name}: expected one whole number a frame")
        labels[str(name)] = array.astype(np.int64)
    return labels


def _frames(path: Path) -> int | None:
    from fastseq.video import VideoError, probe

    try:
        return probe(path).frames
    except VideoError:
        return None  # `training.prepare` names it and its damage


def _fitted(data_set: DataSet, name: str, phases: np.ndarray, frames: int | None) -> list[int]:
    """One phase a frame: labels past the last frame are cut, frames past the last label are -1."""
    if frames is None or frames == len(phases):
        return phases.tolist()
    data_set.remark(
        "labels cut to the number of frames, or frames past the last label unlabelled",
        f"{name} ({len(phases)} labels, {frames} frames)",
    )
    return phases[:frames].tolist() + [-1] * (frames - len(phases))


READER = Reader(
    "ae2",
    "AE2's ego-exo benchmark (Break Eggs, Pour Milk, Pour Liquid, Tennis Forehand)",
    _LAYOUT,
    _read,
)
