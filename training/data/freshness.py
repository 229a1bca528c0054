"""Whether an index still describes its folder: files that are new, changed or gone.

No file is opened and no text of a whole folder tree is kept: 200,000 files take about a second.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.data.files import (
    CARRIED_NAME,
    INDEX_NAME,
    LABELS_NAME,
    PICTURES,
    by_name,
    ending_of,
    stamp_of,
)
from training.data.store import Stamp, Store

Known = tuple[Sequence[str], np.ndarray]  # names of files in one folder, their stamps (files, 2)

UNSTAMPED = (-1, -1)  # of a file that was found to be no video
_OWN = {INDEX_NAME, LABELS_NAME, CARRIED_NAME}
_FEWEST = 3  # numbered pictures of one prefix that may be a video
_NUMBERED = re.compile(r"(.*?)\d+")


def by_folder(stamps: Mapping[str, Stamp]) -> dict[str, dict[str, Stamp]]:
    """Stamps of files by folder and name. Folders above have an entry too."""
    folders: dict[str, dict[str, Stamp]] = {"": {}}
    for path, stamp in stamps.items():
        folder, _, name = path.rpartition("/")
        above = folder
        while above not in folders:
            folders[above] = {}
            above = above.rpartition("/")[0]
        folders[folder][name] = stamp
    return folders


def changes(folder: Path, store: Store) -> list[str]:
    """What is new, gone or changed, such as "a.mp4 is new"."""
    labels = store.about["labels"]
    if labels is None:
        other = [f"{LABELS_NAME} is new"] * (folder / LABELS_NAME).is_file()
    else:
        other = _labels_change(folder, labels["path"], tuple(labels["stamp"]))
    folders = {*store.folders()}
    found = _search(folder, folders, store.files, store.about["include"])
    passed_over = {*store.about["picture_folders"]}
    new = found.new + [name for name in found.pictures if name not in passed_over]
    for path in sorted(folders - found.folders):
        names, stamps = store.files(path) or ((), np.empty((0, 2)))
        for name, stamp in zip(names, stamps.tolist(), strict=True):
            if tuple(stamp) != UNSTAMPED:
                found.changed.append(f"{path}/{name} is gone")
    return [f"{name} is new" for name in new] + other + found.changed


def picture_folders(folder: Path, files: Mapping[str, Mapping[str, Stamp]]) -> list[str]:
    """Folders that look like a video stored as pictures but are none.

    Args:
        files: the checked files by folder and name.
    """

    def known(path: str) -> Known | None:
        inside = files.get(path)
        if inside is None:
            return None
        return [*inside], np.array([*inside.values()], np.int64).reshape(-1, 2)

    return _search(folder, files, known, ()).pictures


def _labels_change(folder: Path, path: str, stamp: Stamp) -> list[str]:
    if not (folder / path).is_file():
        return [f"{path} is gone"]
    return [f"{path} has changed"] * (tuple(stamp_of(folder / path)) != stamp)


@dataclass
class _Found:
    """Paths relative to the searched folder.

    Attributes:
        new: unknown files that are videos by their names or may be by their content.
        changed: messages about the known files.
        pictures: unknown folders with numbered pictures and no video.
        folders: every folder that was searched.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)


def _search(
    folder: Path,
    folders: Container[str],
    known: Callable[[str], Known | None],
    include: Sequence[str],
) -> _Found:
    """Compare a folder with its known files, folder by folder as `find_videos` does.

    Args:
        folders: the known folders; a folder of pictures is searched only if it is one of them.
        known: function of a folder that returns its known files.
    """
    found, seen, waiting = _Found(), set(), [""]
    while waiting:
        path = waiting.pop()
        where = folder / path
        try:
            status = os.stat(where)
            if (status.st_dev, status.st_ino) in seen:  # a link back to a parent
                continue
            seen.add((status.st_dev, status.st_ino))
            found.folders.add(path)
            inside = _Folder(path, known(path), include)
            with os.scandir(where) as entries:
                inside.read(entries)
        except OSError:  # no longer readable: what is known in it counts as gone
            found.folders.discard(path)
            continue
        inside.report(found)
        below = {name: inside.below(name) for name in inside.folders}
        waiting += sorted(
            (path for name, path in below.items() if name not in inside.places or path in folders),
            reverse=True,
        )
    return found


class _Folder:
    """One folder while its entries are read."""

    def __init__(self, path: str, known: Known | None, include: Sequence[str]):
        self.path, self.include = path, include
        self.names, self.stamps = known if known else ((), np.empty((0, 2), np.int64))
        self.places = {name: place for place, name in enumerate(self.names)}
        self.seen, self.sizes, self.times = array("q"), array("q"), array("q")
        self.folders: list[str] = []
        self.known_pictures: set[int] = set()  # places of folders that are videos
        self.new: list[str] = []
        self.numbered: Counter[str] = Counter()  # pictures by the prefix before their number

    def below(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def read(self, entries: Iterable[os.DirEntry[str]]) -> None:
        place_of = self.places.get
        seen, sizes, times = self.seen.append, self.sizes.append, self.times.append
        for entry in entries:
            place = place_of(entry.name)
            if place is None:
                self._add_unknown(entry)
                continue
            try:
                status = entry.stat()
            except OSError:  # a link whose file is gone
                continue
            seen(place)
            sizes(status.st_size)
            times(status.st_mtime_ns)
            if stat.S_ISDIR(status.st_mode):
                self.known_pictures.add(place)
                self.folders.append(entry.name)

    def _add_unknown(self, entry: os.DirEntry[str]) -> None:
        name = entry.name
        if name in _OWN or name.startswith("."):
            return
        if _is(entry.is_dir):
            self.folders.append(name)
            return
        ending = ending_of(name)
        if ending in PICTURES:
            if numbered := _NUMBERED.fullmatch(name[: -len(ending)]):
                self.numbered[numbered[1]] += 1
            return
        video = by_name(self.below(name), self.include)
        if (video is not False or ending == ".tar") and _is(entry.is_file):
            self.new.append(self.below(name))

    def report(self, found: _Found) -> None:
        found.new += sorted(self.new)
        seen = np.array(self.seen, np.int64)
        stamped = self.stamps[:, 0] != UNSTAMPED[0]
        missing = stamped.copy()
        missing[seen] = False
        expected = self.stamps[seen]
        differs = np.array(self.times, np.int64) != expected[:, 1]
        # Entries of a folder are not counted: its time of modification changes with them.
        folders = np.isin(seen, [*self.known_pictures])
        differs |= (np.array(self.sizes, np.int64) != expected[:, 0]) & ~folders
        differing = {*seen[differs & stamped[seen]].tolist()}
        for place in sorted(differing | {*np.flatnonzero(missing).tolist()}):
            what = "has changed" if place in differing else "is gone"
            found.changed.append(f"{self.below(self.names[place])} {what}")
        files = stamped.sum() - len(self.known_pictures)
        if not (files or self.new) and max(self.numbered.values(), default=0) >= _FEWEST:
            found.pictures.append(self.path)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False
