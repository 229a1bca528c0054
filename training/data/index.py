"""The index of a folder of videos: what was checked once, so that training need not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from training.data.labels import Labels, check_names, phases_of, read_labels

INDEX_NAME = "fastseq_index.json"
LABELS_NAME = "labels.json"
_FORMAT = 2
_SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg")
_SUFFIXES += (".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")


class StaleIndex(ValueError):
    """An index that is missing or no longer describes its folder; the message says what to run."""


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """One video of an index.

    Attributes:
        id: path relative to the folder, with forward slashes.
        path: absolute path.
        frames: presented frames; fps: their average rate.
        width, height: in pixels after rotation.
        action: name of the action, "all" if not given.
        split: "train" or "test".
        view: name of the camera's view, empty if not given.
        phases: int64 (frames,), index into the action's phases, -1 = unlabelled; None = no labels.
        rotation: degrees that reading applies; codec: FFmpeg's name of it.
        note: what is wrong with the file although it can be used; empty if nothing.
        gaps: ranges (first, stop) of frames that are damaged and are not read.
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
    gaps: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Index:
    """The videos of `folder` that can be read, those that cannot ({path, reason}), the phases."""

    folder: Path
    videos: list[VideoRecord]
    bad: list[dict[str, str]] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)


def find_videos(folder: Path) -> tuple[list[str], int, list[str]]:
    """(relative paths of the video files by their names' endings, number of other files, folders
    that cannot be looked into with the reason), sorted.

    Hidden files and folders are left out, links are followed.
    """
    videos, others, closed, seen = [], 0, [], set()

    def refused(error: OSError) -> None:
        closed.append(f"{os.path.relpath(error.filename, folder)}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to a parent
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root, name)
            if name.startswith(".") or name in (INDEX_NAME, LABELS_NAME):
                continue
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                videos.append(path.relative_to(folder).as_posix())
            else:
                others += 1
    return sorted(videos), others, sorted(closed)


def build_index(
    folder: str | os.PathLike,
    *,
    labels: str | os.PathLike | None = None,
    verify: bool = False,
    time_limit: float = 60.0,
    progress: bool = False,
) -> Index:
    """Probe every video under `folder`, read the labels and write FOLDER/fastseq_index.json.

    Args:
        labels: labels file; default FOLDER/labels.json if there is one.
        verify: decode every frame.
        time_limit: seconds per file, after which it counts as bad.
        progress: show a bar.
    Raises:
        LabelError: labels that do not fit. Nothing is written then.
        NotADirectoryError, PermissionError: `folder` is none, or cannot be written to.
    """
    from fastseq.video import VideoInfo, probe

    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to, and the index belongs there: link the videos into a "
            "folder of your own"
        )
    names, *_ = find_videos(folder)
    labels_path = _labels_path(folder, labels)
    given = read_labels(labels_path) if labels_path else Labels({}, {})
    if labels_path:
        check_names(labels_path, given, set(names))

    def look(name: str) -> VideoInfo | str:
        try:
            return probe(folder / name, decode=verify, time_limit=time_limit)
        except ImportError:
            raise
        except Exception as error:  # whatever one file does, the others still count
            return getattr(error, "reason", None) or f"{type(error).__name__}: {error}"

    stamps = {name: _stamp(folder / name) for name in names}
    found = dict(zip(names, in_threads(look, names, "checking", progress), strict=True))
    good = {name: info for name, info in found.items() if not isinstance(info, str)}
    frames = {name: info.frames for name, info in good.items()}
    phases = phases_of(labels_path, given, frames) if labels_path else {}
    entries = []
    for name, info in good.items():
        label = given.videos.get(name, {})
        entries.append(
            {
                "id": name,
                "frames": info.frames,
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
                "rotation": info.rotation,
                "codec": info.codec,
                "note": info.note,
                "action": label.get("action", "all"),
                "split": label.get("split", "train"),
                "view": label.get("view", ""),
                "phases": _run_lengths(phases.get(name)),
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
            "stamp": _stamp(labels_path),
        },
        "classes": given.classes,
        "videos": entries,
        "bad": [
            {"path": name, "reason": info, "stamp": stamps[name]}
            for name, info in found.items()
            if isinstance(info, str)
        ],
    }
    _write(folder / INDEX_NAME, content)
    return _index(folder, content)


def load_index(folder: str | os.PathLike) -> Index:
    """Read FOLDER/fastseq_index.json.

    Raises:
        StaleIndex: there is none, or files were added, removed or changed (size or time of
            modification) since it was written.
        NotADirectoryError: `folder` is none.
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
    changes = _changes(folder, content)
    if changes:
        shown = ", ".join(changes[:5]) + (f" and {len(changes) - 5} more" * (len(changes) > 5))
        raise StaleIndex(f"the index of {folder} is out of date ({shown}): {advice}")
    return _index(folder, content)


def in_threads(
    function: Callable[[Any], Any], items: Iterable[Any], what: str, progress: bool
) -> list[Any]:
    """[function(item) for item in items] on all cores: decoding releases the interpreter's lock."""
    from tqdm import tqdm

    items = list(items)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max_workers=cores or 1)
    try:
        results = pool.map(function, items)
        return list(tqdm(results, what, len(items), unit="video", disable=not progress))
    except KeyboardInterrupt:
        print("\nstopping after the videos under way", file=sys.stderr)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _labels_path(folder: Path, labels: str | os.PathLike | None) -> Path | None:
    if labels is not None:
        return Path(labels).resolve()
    return folder / LABELS_NAME if (folder / LABELS_NAME).is_file() else None


def _stamp(path: Path) -> list[int]:
    """What tells that a file was changed: its size and time of modification."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _changes(folder: Path, content: dict[str, Any]) -> list[str]:
    stamps = {entry["id"]: entry["stamp"] for entry in content["videos"]}
    stamps |= {entry["path"]: entry["stamp"] for entry in content["bad"]}
    names, *_ = find_videos(folder)
    changes = [f"{name} is new" for name in names if name not in stamps]
    labels = content["labels"]
    if labels is not None:
        stamps[labels["path"]] = labels["stamp"]
    elif (folder / LABELS_NAME).is_file():
        changes.append(f"{LABELS_NAME} is new")
    for name, stamp in stamps.items():
        path = folder / name
        if not path.is_file():
            changes.append(f"{name} is gone")
        elif _stamp(path) != stamp:
            changes.append(f"{name} has changed")
    return changes


def _index(folder: Path, content: dict[str, Any]) -> Index:
    records = [
        VideoRecord(
            id=entry["id"],
            path=str(folder / entry["id"]),
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
        )
        for entry in content["videos"]
    ]
    bad = [{"path": entry["path"], "reason": entry["reason"]} for entry in content["bad"]]
    return Index(folder, records, bad, content["classes"])


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
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
