"""The index of a folder of videos: the result of checking them once, before training."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.files import (
    INDEX_NAME,
    LABELS_NAME,
    Found,
    by_name,
    find_videos,
    list_files,
    stamp_of,
)
from training.data.footage import Footage, begins_past_the_end, footage_of
from training.data.labels import (
    TO_BE_CHECKED,
    LabelError,
    Labels,
    listed,
    match_names,
    phases_of,
    read_labels,
)
from training.data.names import Names
from training.data.threads import in_threads
from training.support.command import UserError
from training.support.files import replacing

if TYPE_CHECKING:
    from fastseq.video import VideoInfo

_FORMAT = 6


class StaleIndex(UserError):
    """An index is missing or no longer describes its folder; the message names the command."""


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """One video of an index.

    Attributes:
        id: path relative to the folder, with forward slashes.
        path: absolute path.
        frames: number of presented frames; fps: average frame rate.
        width, height: in pixels after rotation.
        action: name of the action, "all" if not given.
        split: "train" or "test".
        view: name of the camera's view, empty if not given.
        phases: int64 (frames,), index into the action's phases, -1 = unlabelled; None = no labels.
        rotation: degrees by which frames are rotated when read; codec: FFmpeg's name for it.
        mirrored: whether frames are then mirrored left to right.
        note: damage of a file that can still be used; empty if none.
        gaps: ranges (first, stop) of frames that are not used, because they are damaged or lie
            outside `trim`. `frames` counts them.
        interlaced: whether a frame has two fields; False in an index, which leaves such files out.
        random_access: False if decoding starts long before the requested frame.
        remarks: other remarks about the file.
        trim: the first and the last usable frame; None = all frames.
        crop: (left, top, width, height) in pixels of the upright frame, the only part that is read;
            None = the whole frame.
        sync: (group, offset) of a video that shows the same event as the others of its group: frame
            k shows the instant (k + offset) / fps seconds of the group. None = no group.
        unchecked: whether the remark in the labels file states that the labels are to be checked.
    """

    id: str
    path: str
    frames: int
    fps: float
    width: int
    height: int
    action: str = "all"
    split: str = "train"
    phases: np.ndarray | None = None
    note: str = ""
    rotation: int = 0
    codec: str = ""
    view: str = ""
    mirrored: bool = False
    gaps: tuple[tuple[int, int], ...] = ()
    interlaced: bool = False
    random_access: bool = True
    remarks: tuple[str, ...] = ()
    trim: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    sync: tuple[str, int] | None = None
    unchecked: bool = False


@dataclass(frozen=True, eq=False)
class Index:
    """The readable videos of `folder`, the unreadable ones, and the phases of each action.

    Attributes:
        bad: {path, reason} of the videos that cannot be read.
        changed_labels: damaged videos whose labels were cut or extended to their frames.
        unused_labels: labelled videos that cannot be read.
        found: the folder's files, if it has just been searched.
    """

    folder: Path
    videos: list[VideoRecord]
    bad: list[dict[str, str]] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    changed_labels: list[str] = field(default_factory=list)
    unused_labels: list[str] = field(default_factory=list)
    found: Found | None = None


def build_index(
    folder: str | os.PathLike,
    *,
    labels: str | os.PathLike | None = None,
    include: Iterable[str] = (),
    pictures: str | None = None,
    fps: float | None = None,
    verify: bool = False,
    time_limit: float = 60.0,
    progress: bool = False,
) -> Index:
    """Probe every video under `folder`, read the labels and write FOLDER/fastseq_index.json.

    Args:
        labels: labels file; default FOLDER/labels.json if there is one.
        include: patterns of files that are checked whatever their extension; see `find_videos`.
        verify: decode every frame.
        time_limit: seconds per file, after which it counts as bad.
        progress: show a bar.
    Raises:
        LabelError: labels do not fit the videos. Nothing is written then.
        NotADirectoryError, PermissionError: `folder` is not a folder, or cannot be written to.
    """
    from fastseq.video import VideoInfo, probe

    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to, but the index must be stored there: link the videos "
            "into a folder that you can write to"
        )
    include = [*include]
    labels_path = _labels_path(folder, labels)
    given = read_labels(labels_path) if labels_path else Labels()
    files = find_videos(folder, include, pictures=pictures, progress=progress)
    names = files.videos
    if labels_path:
        given = match_names(labels_path, given, Names(folder, names, files.ignored))

    def look(name: str) -> VideoInfo | str:
        try:
            rate = given.videos.get(name, {}).get("fps", fps) if name in files.pictures else None
            place = folder / files.place(name)
            info = probe(place, decode=verify, time_limit=time_limit, fps=rate)
            return _interlaced(folder) if info.interlaced else info
        except ImportError:
            raise
        except Exception as error:  # one bad file must not stop the others
            return getattr(error, "reason", None) or f"{type(error).__name__}: {error}"

    stamps = {name: stamp_of(folder / files.place(name)) for name in names}
    found = dict(zip(names, in_threads(look, names, "checking", progress), strict=True))
    for name, info in found.items():
        if isinstance(info, VideoInfo):
            label = given.videos.get(name, {})
            found[name] = begins_past_the_end(label, info, _damaged(info)) or info
    good = {name: info for name, info in found.items() if not isinstance(info, str)}
    damaged = [name for name, info in good.items() if _damaged(info)]
    labelled, changed = phases_of(labels_path, given, good, damaged)
    class_set = next(iter(given.class_sets))
    phases = labelled[class_set]
    footage, cut = _footage(labels_path, given, good)
    changed = [name for name in good if name in {*changed, *cut}]
    entries = []
    for name, info in good.items():
        label = given.videos.get(name, {})
        used = footage[name]
        entries.append(
            {
                "id": name,
                "place": files.place(name),
                "frames": info.frames,
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
                "rotation": info.rotation,
                "codec": info.codec,
                "mirrored": info.mirrored,
                "note": info.note,
                "gaps": used.gaps,
                "trim": used.trim,
                "crop": used.crop,
                "sync": used.sync,
                "random_access": info.random_access,
                "remarks": info.remarks,
                "action": label.get("action", "all"),
                "split": given.split_of(name, class_set),
                "view": label.get("view", ""),
                "phases": _run_lengths(phases.get(name)),
                "unchecked": name in phases and TO_BE_CHECKED in str(label.get("remark", "")),
                "stamp": stamps[name],
            }
        )
    content = {
        "format": _FORMAT,
        "verified": verify,
        "labels": None
        if labels_path is None
        else {
            "path": Path(os.path.relpath(labels_path, folder)).as_posix(),
            "stamp": stamp_of(labels_path),
            "changed": changed,
            "unused": [name for name in given.videos if name not in good],
        },
        "include": include,
        "looked": files.looked,
        "classes": given.classes,
        "videos": entries,
        "bad": [
            {"path": name, "place": files.place(name), "reason": info, "stamp": stamps[name]}
            for name, info in found.items()
            if isinstance(info, str)
        ],
    }
    _write(folder / INDEX_NAME, content)
    return _index(folder, json.loads(json.dumps(content)), files)


def _damaged(info: VideoInfo) -> bool:
    return bool(info.note or info.gaps)


def _footage(
    path: Path | None, labels: Labels, infos: Mapping[str, VideoInfo]
) -> tuple[dict[str, Footage], list[str]]:
    """Footage of each video, and the damaged ones whose trim was cut to their frames."""
    footage, changed, problems = {}, [], []
    for name, info in infos.items():
        try:
            footage[name], cut = footage_of(labels.videos.get(name, {}), info, _damaged(info))
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if cut:
            changed.append(name)
    if problems:
        raise LabelError(listed(path, problems))
    return footage, changed


def _interlaced(folder: Path) -> str:
    return (
        "interlaced (two fields per frame), which training does not read: "
        f"`python -m training.prepare {shlex.quote(str(folder))} --transcode OUT` makes a "
        "progressive copy (FFmpeg's bwdif)"
    )


def load_index(folder: str | os.PathLike) -> Index:
    """Read FOLDER/fastseq_index.json.

    Raises:
        StaleIndex: there is no index, or files were added, removed or changed (size or time of
            modification) since it was written.
        NotADirectoryError: `folder` is not a folder.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; expected one with videos")
    advice = f"run `python -m training.prepare {folder}`"
    path = folder / INDEX_NAME
    if not path.is_file():
        raise StaleIndex(f"{folder} has no index: {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        current = content["format"] == _FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise StaleIndex(f"{path} is damaged ({error}): {advice}") from error
    if not current:
        raise StaleIndex(f"{path} was written by another version of the project: {advice}")
    if content["include"]:
        advice = f"{advice[:-1]} --include {shlex.join(content['include'])}`"
    changes = _changes(folder, content)
    if changes:
        shown = ", ".join(changes[:5]) + (f" and {len(changes) - 5} more" * (len(changes) > 5))
        raise StaleIndex(f"the index of {folder} is out of date ({shown}): {advice}")
    return _index(folder, content)


def _labels_path(folder: Path, labels: str | os.PathLike | None) -> Path | None:
    if labels is not None:
        return Path(labels).resolve()
    return folder / LABELS_NAME if (folder / LABELS_NAME).is_file() else None


def _changes(folder: Path, content: dict[str, Any]) -> list[str]:
    stamps = {entry["id"]: entry["stamp"] for entry in content["videos"]}
    stamps |= {entry["path"]: entry["stamp"] for entry in content["bad"]}
    places = {entry["id"]: entry["place"] for entry in content["videos"]}
    places |= {entry["path"]: entry["place"] for entry in content["bad"]}
    changes = [f"{name} is new" for name in _new(folder, content, set(stamps))]
    labels = content["labels"]
    if labels is not None:
        stamps[labels["path"]] = labels["stamp"]
    elif (folder / LABELS_NAME).is_file():
        changes.append(f"{LABELS_NAME} is new")
    for name, stamp in stamps.items():
        path = folder / places.get(name, name)
        if not path.exists() and "*" not in path.name:
            changes.append(f"{name} is gone")
        elif stamp_of(path) != stamp:
            changes.append(f"{name} has changed")
    return changes


def _new(folder: Path, content: dict[str, Any], known: set[str]) -> list[str]:
    """New files that are videos by their names or may be by their content. No file is opened."""
    include: Sequence[str] = content["include"]
    known |= set(content["looked"])
    names, _ = list_files(folder)
    return [
        name
        for name in names
        if name not in known and by_name(name, include) is not False and (folder / name).is_file()
    ]


def _index(folder: Path, content: dict[str, Any], found: Found | None = None) -> Index:
    records = [
        VideoRecord(
            id=entry["id"],
            path=str(folder / entry["place"]),
            frames=entry["frames"],
            fps=entry["fps"],
            action=entry["action"],
            split=entry["split"],
            phases=_from_run_lengths(entry["phases"]),
            width=entry["width"],
            height=entry["height"],
            note=entry["note"],
            rotation=entry["rotation"],
            codec=entry["codec"],
            view=entry["view"],
            mirrored=entry["mirrored"],
            gaps=tuple((first, stop) for first, stop in entry["gaps"]),
            random_access=entry["random_access"],
            remarks=tuple(entry["remarks"]),
            trim=_tuple(entry["trim"]),
            crop=_tuple(entry["crop"]),
            sync=_tuple(entry["sync"]),
            unchecked=entry["unchecked"],
        )
        for entry in content["videos"]
    ]
    bad = [{"path": entry["path"], "reason": entry["reason"]} for entry in content["bad"]]
    labels = content["labels"] or {"changed": [], "unused": []}
    return Index(
        folder,
        records,
        bad,
        content["classes"],
        changed_labels=labels["changed"],
        unused_labels=labels["unused"],
        found=found,
    )


def _tuple(values: list[Any] | None) -> Any:
    return None if values is None else tuple(values)


def _run_lengths(phases: np.ndarray | None) -> list[list[int]] | None:
    if phases is None:
        return None
    return [[phase, len(list(run))] for phase, run in groupby(phases.tolist())]


def _from_run_lengths(runs: list[list[int]] | None) -> np.ndarray | None:
    if runs is None:
        return None
    values = np.asarray(runs, dtype=np.int64).reshape(-1, 2)
    return np.repeat(values[:, 0], values[:, 1])


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
