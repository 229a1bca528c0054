"""FOLDER/labels.json as the page edits it: read, checked, and replaced whole."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.files import LABELS_NAME
from training.data.footage import footage_of
from training.data.label_entries import FORMS, Classes
from training.data.label_values import in_seconds
from training.data.labels import LabelError, Labels, in_frames, phases_of, read_labels
from training.data.names import Names
from training.evaluation.propagation import write_labels
from training.support.files import replacing

if TYPE_CHECKING:
    from fastseq.video import VideoInfo

_TIMES = (*FORMS, "labels", "trim", "sync", "unlabelled_from")
NO_FILE = ""  # the version of a labels file that does not exist


class Refused(Exception):
    """Labels that were not saved.

    Attributes:
        problems: video's name -> what is wrong with its labels; "" for the rest of the file.
        changed: whether the reason is that the file has changed on disk.
    """

    def __init__(self, problems: Mapping[str, Sequence[str]], *, changed: bool = False):
        super().__init__("; ".join(text for texts in problems.values() for text in texts))
        self.problems = problems
        self.changed = changed


@dataclass(frozen=True)
class Stored:
    """A labels file as it is on disk.

    Attributes:
        labels: its content.
        version: SHA-256 of its bytes.
        keys: video's name -> the name that the file spells.
        absent: what the file says of videos that are not in the folder, with advice.
    """

    labels: Labels = field(default_factory=Labels)
    version: str = NO_FILE
    keys: Mapping[str, str] = field(default_factory=dict)
    absent: Sequence[str] = ()

    def entry(self, video: str) -> dict[str, Any] | None:
        """The labels of a video."""
        return self.labels.videos.get(self.keys[video]) if video in self.keys else None

    def shown(self, video: str, info: VideoInfo) -> dict[str, Any]:
        """``entry``: a video's labels in frames, with the numbers of phases, or None; ``problems``.

        The page locks an entry with ``labels``, and shows those of the first class set. It locks
        an entry in seconds that does not fit the video, which comes without its times.
        """
        entry = self.entry(video)
        if entry is None:
            return {"entry": None, "problems": []}
        problems = misfits(entry, info, self.labels.class_sets)
        try:
            entry = in_frames(entry, info)
        except ValueError:
            entry = {key: value for key, value in entry.items() if key not in _TIMES}
        first_set = next(iter(self.labels.class_sets))
        entry = {**entry, **entry.get("labels", {}).get(first_set, {})}
        if "segments" in entry:
            names = self.labels.classes[entry.get("action", "all")]
            entry["segments"] = [
                [start, stop, names.index(phase) if isinstance(phase, str) else phase]
                for start, stop, phase in entry["segments"]
            ]
        return {"entry": entry, "problems": problems}


class LabelStore:
    """Reads and writes the labels file of a folder; the only file that is ever written.

    The first save copies the file that it replaces to labels.json.bak, or to labels.json.bak.1,
    labels.json.bak.2, ... where that name is taken.

    Args:
        names: the videos of the folder.
    Attributes:
        backup: name of that copy; empty before it is made, and if there was no file.
    """

    def __init__(self, folder: Path, names: Names):
        self.folder = folder
        self.names = names
        self.path = folder / LABELS_NAME
        self.backup = ""
        self._kept = False
        self._with_class_sets = False
        self._lock = threading.Lock()

    def read_only(self) -> str:
        """Why labels cannot be saved; empty if they can."""
        if self.path.is_symlink():
            return (
                f"{self.path} is a link, and nothing outside the folder is written: put a copy of "
                "the file in its place"
            )
        if not os.access(self.folder, os.W_OK):
            return f"{self.folder} cannot be written to"
        if self._with_class_sets:
            return (
                f"{LABELS_NAME} has class sets; the first one is shown here, the file is edited by "
                "hand or by a script"
            )
        return ""

    def read(self) -> Stored:
        """Raises LabelError for a file that is not of the documented form."""
        version = self._version()
        if version == NO_FILE:
            self._with_class_sets = False
            return Stored()
        labels = read_labels(self.path)
        self._with_class_sets = "class_sets" in labels.content
        keys, absent = {}, []
        for name in labels.videos:
            try:
                video = self.names.match(name)
            except ValueError as error:
                absent.append(f"{name}: {error}")
                continue
            if video is None:
                absent.append(f"{name}: no such video in the folder; {self.names.hint(name)}")
            elif video in keys:
                absent.append(f"{name}: the labels of this video are there twice; remove one")
            else:
                keys[video] = name
        return Stored(labels, version, keys, absent)

    def save(
        self,
        version: str,
        classes: Mapping[str, Sequence[str]],
        entries: Mapping[str, Mapping[str, Any] | None],
        infos: Mapping[str, VideoInfo],
    ) -> str:
        """Replace the labels of some videos, and the names of phases; returns the new version.

        Args:
            version: that of the file which the labels were made from.
            entries: video's name -> its labels in frames, None to remove them. All others stay.
            infos: of these videos.
        Raises:
            Refused: nothing was written.
        """
        with self._lock:
            stored = self._unchanged(version)
            if reason := self.read_only():
                raise Refused({"": [reason]})
            videos = dict(stored.labels.content.get("videos", {}))
            unit = {"unit": "frames"} if in_seconds(stored.labels.content) else {}
            for name, entry in entries.items():
                if entry is None:
                    videos.pop(stored.keys.get(name, name), None)
                else:
                    videos[stored.keys.get(name, name)] = unit | entry
            keys = {name: stored.keys.get(name, name) for name in entries}
            content = {"classes": {}, **stored.labels.content}
            content |= {"classes": dict(classes), "videos": videos}
            with replacing(self.path) as partial:
                try:
                    write_labels(partial, content)
                except UnicodeEncodeError as error:
                    names = {name: ["the file's name is not UTF-8; rename it"] for name in entries}
                    raise Refused(names) from error
                self._check(partial, keys, infos)
                self._keep_previous()
            return self._version()

    def _version(self) -> str:
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except FileNotFoundError:
            return NO_FILE

    def _unchanged(self, version: str) -> Stored:
        try:
            stored = self.read()
        except LabelError:
            stored = None
        if stored is None or stored.version != version:
            raise Refused(
                {
                    "": [
                        f"{LABELS_NAME} has changed on disk since this page read it, and was not "
                        "overwritten. Reload the page to see the new labels; what is not saved "
                        "here is lost then"
                    ]
                },
                changed=True,
            )
        return stored

    def _keep_previous(self) -> None:
        if not self._kept and self.path.exists():
            backup = self._new_backup()
            try:
                shutil.copy(self.path, backup)
            except BaseException:
                backup.unlink()
                raise
            self.backup = backup.name
        self._kept = True

    def _new_backup(self) -> Path:
        """An empty file under the first free name."""
        for number in itertools.count():
            path = self.path.with_name(f"{LABELS_NAME}.bak" + f".{number}" * bool(number))
            try:
                path.touch(mode=0o600, exist_ok=False)
            except FileExistsError:
                continue
            return path

    def _check(self, path: Path, keys: Mapping[str, str], infos: Mapping[str, VideoInfo]) -> None:
        """Raise Refused where the file that is to be written, or a changed entry, does not fit."""
        names = {key: name for name, key in keys.items()}
        try:
            labels = read_labels(path)
        except LabelError as error:
            raise Refused(_by_video(error, names)) from error
        problems = {}
        for name, key in keys.items():
            entry = labels.videos.get(key)
            if (
                entry is not None
                and name in infos
                and (found := misfits(entry, infos[name], labels.class_sets))
            ):
                problems[name] = found
        if problems:
            raise Refused(problems)


def misfits(entry: dict[str, Any], info: VideoInfo, class_sets: Mapping[str, Classes]) -> list[str]:
    """Where labels of the right form do not fit the length or size of their video."""
    damaged = bool(info.note or info.gaps)
    problems = []
    try:
        phases_of(None, Labels(dict(class_sets), {"": entry}), {"": info}, [""] if damaged else [])
    except LabelError as error:
        problems += _by_video(error, {"": ""})[""]
    try:
        footage_of(entry, info, damaged)
    except ValueError as error:
        if str(error) not in problems:
            problems.append(str(error))
    return problems


def _by_video(error: LabelError, names: Mapping[str, str]) -> dict[str, list[str]]:
    """The problems that a LabelError lists, by video; "" for those of no video here."""
    problems: dict[str, list[str]] = {}
    lines = str(error).splitlines()[1:] or [str(error)]
    for line in map(str.strip, lines):
        key = next((key for key in names if line.startswith(f"{key}: ")), None)
        text = line if key is None else line.removeprefix(f"{key}: ")
        problems.setdefault("" if key is None else names[key], []).append(text)
    return problems
