"""Penn Action: folders of frames, .mat annotations, and LAV's key events if there are any."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.datasets.dataset import Clip, DataSet, Reader
from training.datasets.parse import MOST_PHASES, natural, several, split_of, wrong_layout
from training.support.command import UserError

if TYPE_CHECKING:
    import numpy as np

LAYOUT = """
SOURCE/frames/0001/000001.jpg ...
SOURCE/labels/0001.mat ...                    action, train (1 or -1), nframes
SOURCE/labels/train/bowling/0521.npy ...      LAV's key events, optional: one phase a frame;
SOURCE/labels/val/bowling/0525.npy ...        elsewhere with --key-events FOLDER
"""
# Phases of each action: datasets/dataset_splits.py of CARL_code. The release of the labels has no
# names of phases. Remarks name the actions whose labels have another number.
PHASES = {
    "baseball_pitch": 4,
    "baseball_swing": 3,
    "bench_press": 2,
    "bowl": 3,
    "clean_and_jerk": 6,
    "golf_swing": 3,
    "jumping_jacks": 4,
    "pullup": 2,
    "pushup": 2,
    "situp": 2,
    "squat": 4,
    "tennis_forehand": 3,
    "tennis_serve": 4,
}
# Folder names of LAV's labels -> the actions in the .mat files.
_ACTIONS = {
    "bowling": "bowl",
    "pullups": "pullup",
    "pushups": "pushup",
    "situps": "situp",
    "squats": "squat",
}
_PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class KeyEvents:
    """LAV's labels of one video: `labels` has one phase per frame as LAV counted the frames."""

    path: Path
    split: str
    action: str
    labels: np.ndarray


def read(source: Path, args: Namespace) -> DataSet:
    """The official release, with the phases and the splits of LAV's labels if they are there."""
    frames, labels = source / "frames", source / "labels"
    for folder in (frames, labels):
        if not folder.is_dir():
            raise wrong_layout(source, f'no folder "{folder.name}"', LAYOUT)
    mats = {path.stem: path for path in labels.glob("*.mat")}
    if not mats:
        raise wrong_layout(labels, "no .mat file", LAYOUT)
    problems: list[str] = []
    events = _key_events(labels, args.key_events, problems)
    annotations = {}
    for name in natural(mats):
        try:
            annotations[name] = _annotation(mats[name])
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise several(source, problems)
    splits = args.splits or ("lav" if events else "official")
    if splits == "lav" and not events:
        raise UserError(f"--splits lav needs LAV's labels, but none are below {labels}")
    data_set = DataSet()
    pictures = {entry.name: _pictures(entry.path) for entry in os.scandir(frames) if entry.is_dir()}
    there = {one.split for one in events.values()}
    for split, folder in (("train", "train"), ("test", "val")):
        if events and split not in there:
            root = labels if args.key_events is None else args.key_events
            data_set.remark(
                "no key events in this folder; its videos count as unlabelled, and with "
                f'--splits lav no video has the split "{split}"',
                str(root / folder),
            )
    for name in natural(pictures.keys() - mats.keys()):
        data_set.unused[name] = f"no .mat file in {labels}"
    for name in natural(events.keys() - mats.keys() - pictures.keys()):
        data_set.missing[name] = f"key events, but neither frames nor a .mat file in {source}"
    for name, annotation in annotations.items():
        _add(data_set, name, annotation, frames, pictures, events, splits, args)
    _classes(data_set)
    return data_set


def _add(
    data_set: DataSet,
    name: str,
    annotation: tuple[str, str, int | None],
    frames: Path,
    pictures: Mapping[str, list[str]],
    events: Mapping[str, KeyEvents],
    splits: str,
    args: Namespace,
) -> None:
    """Add one annotated video, or the reason why it is left out."""
    action, official, annotated = annotation
    count = len(pictures.get(name, ()))
    if not count and args.media != "none":
        folder = "no such folder" if name not in pictures else "no pictures in this folder"
        data_set.missing[name] = f"{folder} in {frames}"
        return
    found = events.get(name)
    if events and found is None and not args.keep_unlabelled:
        why = "has no key events" if action in PHASES else f"{action} has no key events"
        data_set.unused[name] = f"{why}; --keep-unlabelled keeps such videos"
        return
    numbers = None  # of the pictures, if some of those that the .mat file counts are missing
    if count and annotated is not None and count < annotated:
        numbers = _numbers(pictures[name], annotated)
        if numbers is None:
            data_set.missing[f"{name} ({count} of {annotated})"] = (
                f"pictures are missing in {frames}, and the names of the others are not their "
                "numbers, such as 000001.jpg"
            )
            return
        data_set.remark(
            "pictures are missing; each of the others has the label of its number",
            f"{name} ({count} of {annotated})",
        )
    elif count and annotated not in (count, None):
        data_set.remark(
            "more pictures than frames in the .mat file; all pictures are used",
            f"{name} ({count} pictures, {annotated} frames)",
        )
    entry: dict[str, Any] = {"action": action, "split": official}
    if found is not None:
        if _ACTIONS.get(found.action, found.action) != action:
            data_set.remark(
                "LAV's folder has another action than the .mat file, which decides",
                f"{name} ({found.action} and {action})",
            )
        if splits == "lav":
            entry["split"] = found.split
        phases = found.labels.tolist()
        whole = count if numbers is None else annotated
        if count and len(phases) != whole:
            data_set.remark(
                "labels and frames differ in number; labels were resampled as by CARL's script",
                f"{name} ({len(phases)} labels, {whole} frames)",
            )
            phases = resampled(phases, whole)
        if numbers is not None:
            phases = [phases[number - 1] for number in numbers]
        entry["phases"] = phases
    name = f"frames/{name}"
    data_set.clips.append(Clip(name, frames.parent / name, entry, fps=args.fps))


def resampled(labels: list[int], frames: int) -> list[int]:
    """Labels for another number of frames, as CARL's script resolves the difference.

    With L labels and F < L frames, frame i gets label floor(i L / F). With F > L, that script keeps
    frame floor(j F / L) for label j and drops the others; here all frames stay, and a frame that
    the script drops has the label of the kept frame before it.
    """
    count = len(labels)
    if frames <= count:
        return [labels[i * count // frames] for i in range(frames)]
    return [labels[-(-(i + 1) * count // frames) - 1] for i in range(frames)]


def _numbers(names: Iterable[str], frames: int) -> list[int] | None:
    """The numbers of pictures in order, if each name is a different number from 1 to `frames`."""
    stems = [os.path.splitext(name)[0] for name in names]
    if not all(stem.isdecimal() for stem in stems):
        return None
    numbers = sorted({int(stem) for stem in stems})
    fit = len(numbers) == len(stems) and numbers[0] >= 1 and numbers[-1] <= frames
    return numbers if fit else None


def _annotation(path: Path) -> tuple[str, str, int | None]:
    """(action, official split, number of frames) of a .mat file."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["action", "train", "nframes"])
        action = str(content["action"].reshape(-1)[0])
        train = int(content["train"].reshape(-1)[0])
    except KeyError as error:
        raise UserError(
            f"{path} has no {error.args[0]}; expected an annotation of Penn Action with action, "
            "train and nframes"
        ) from error
    except Exception as error:  # scipy raises many kinds for a damaged file
        if isinstance(error, OSError) and error.strerror:
            raise
        raise UserError(f"{path} is not a readable .mat file: {error}") from error
    if train not in (1, -1):
        raise UserError(f"{path}: train is {train}, expected 1 (training) or -1 (test)")
    nframes = content.get("nframes")
    return (
        action,
        "train" if train == 1 else "test",
        None if nframes is None else int(nframes.max()),
    )


def _key_events(labels: Path, folder: Path | None, problems: list[str]) -> dict[str, KeyEvents]:
    """LAV's labels by video, FOLDER/<split>/<action>/0001.npy; wrong files go to `problems`."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"--key-events {folder}: no such folder")
    root = labels if folder is None else folder
    splits = {entry.name: split_of(entry.name) for entry in os.scandir(root) if entry.is_dir()}
    if folder is not None and not any(splits.values()):
        raise wrong_layout(folder, 'no folder "train" or "val"', LAYOUT)
    if "test" not in splits.values():  # the papers evaluate on the videos of val
        splits = {name: "test" if split == "val" else split for name, split in splits.items()}
    found: dict[str, KeyEvents] = {}
    for name, split in splits.items():
        for path in sorted((root / name).glob("*/*.npy")) if split else []:
            video = path.stem[:4] if path.stem[:4].isdigit() else path.stem
            if video in found:
                problems.append(f"{path} and {found[video].path} label the same video")
                continue
            try:
                found[video] = KeyEvents(path, split, path.parent.name, _phases(path))
            except UserError as error:
                problems.append(str(error))
    if folder is not None and not found and not problems:
        raise wrong_layout(folder, "no .npy file in FOLDER/<split>/<action>", LAYOUT)
    return found


def _phases(path: Path) -> np.ndarray:
    """The phases of a .npy file, whole numbers from 0, or -1 for unlabelled frames."""
    import numpy as np

    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        # numpy's own message advises to load the file unsafely.
        raise UserError(f"{path} is not a readable .npy file of numbers") from error
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iufb":
        raise UserError(
            f"{path}: expected one phase per frame, got {values.dtype} of shape {values.shape}"
        )
    phases = values.astype(np.int64)
    odd = (phases != values) | (phases < -1) | (phases >= MOST_PHASES)
    if odd.any():
        wrong = values[odd][0]
        raise UserError(f"{path}: {wrong} is no phase; expected whole numbers from 0, or -1")
    return phases


def _pictures(folder: str) -> list[str]:
    return [name for name in os.listdir(folder) if name.lower().endswith(_PICTURES)]


def _classes(data_set: DataSet) -> None:
    """Phases by number: the labels name none."""
    counts: dict[str, int] = {}
    for clip in data_set.clips:
        if phases := clip.entry.get("phases"):
            action, top = clip.entry["action"], max(phases)
            counts[action] = max(counts.get(action, 0), top + 1)
            listed = PHASES.get(action)
            if listed is not None and top >= listed:
                data_set.remark(
                    "labels have phases that CARL's code does not list for the action; kept",
                    f"{clip.name.rpartition('/')[2]} ({action}: {top}, expected 0 to {listed - 1})",
                )
    for action, count in sorted(counts.items()):
        if count < PHASES.get(action, 0):
            data_set.remark(
                "CARL's code lists more phases of the action than the labels have; all are named",
                f"{action} ({PHASES[action]} listed, {count} in the labels)",
            )
    data_set.classes = {
        action: [f"phase {number}" for number in range(max(count, PHASES.get(action, 1)))]
        for action, count in sorted(counts.items())
    }


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--key-events",
        type=Path,
        metavar="FOLDER",
        help="LAV's labels, FOLDER/<split>/<action>/0001.npy (default: SOURCE/labels)",
    )
    parser.add_argument(
        "--splits",
        choices=("official", "lav"),
        help="official: train of the .mat files; lav: the folders of LAV's labels, whose val "
        'becomes "test", because the papers evaluate on it (default: lav if its labels are there)',
    )
    parser.add_argument(
        "--keep-unlabelled",
        action="store_true",
        help="with LAV's labels, keep videos without them, such as jump_rope and strum_guitar; "
        "they have the official split",
    )
    parser.add_argument(
        "--fps",
        type=float,
        default=25.0,
        help="frames per second; the release states none (default: 25, as in CARL's copies)",
    )


READER = Reader(
    name="penn_action",
    summary="Penn Action: official frames and .mat files, with or without LAV's key events",
    layout=LAYOUT,
    read=read,
    add_arguments=_arguments,
)
