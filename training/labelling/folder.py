"""The videos of a folder, each looked into in the background while the page is already in use."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training.data.files import find_videos
from training.data.label_entries import has_phases, parts_of
from training.data.load import as_words, made_with
from training.data.names import Names
from training.data.pictures import named
from training.labelling.frames import Pictures, chunk_of
from training.labelling.store import LabelStore, Stored
from training.support.command import UserError


class VideoFolder:
    """What the page shows: videos by their place in ``videos``, their pictures and labels.

    Args:
        include: patterns of files to look at whatever their ending, see `find_videos`.
        pictures: pattern of the pictures that make up a video, see `find_videos`.
        fps: frames per second of videos stored as pictures, where the labels file states none.
            ``include``, ``pictures`` and ``fps`` default to those of the folder's index.
        short_side: pixels of a picture's shorter side at most.
    Attributes:
        options: the options of `prepare` that choose these videos, each after a space.
        unused: lines about numbered pictures that are not used.
    Raises:
        NotADirectoryError: ``folder`` is none.
        UserError: no videos, or ``pictures`` matches none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        include: Iterable[str] = (),
        pictures: str | None = None,
        fps: float | None = None,
        short_side: int = 360,
    ):
        self.folder = folder.resolve()
        if not self.folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; expected one with videos")
        known = made_with(self.folder)
        include = [*include] or known.get("include", [])
        self._fps = known.get("fps") if fps is None else fps
        try:
            chosen = known.get("pictures") if pictures is None else pictures
            found = find_videos(self.folder, include, pictures=chosen)
        except UserError as error:
            if pictures is not None or chosen is None:
                raise
            raise UserError(
                f"{error}. The pattern is that of the index: prepare the folder again, or give "
                "another --pictures"
            ) from error
        options = {"pictures": chosen, "fps": self._fps, "include": include}
        self.options = as_words({name: value for name, value in options.items() if value})
        self.unused = named(found.sequences)
        self.videos = found.videos
        self._place = found.place
        if not self.videos:
            raise UserError(
                f"{folder} holds no videos; `python -m training.prepare {shlex.quote(str(folder))}`"
                " lists what it ignores and why"
            )
        self.labels = LabelStore(self.folder, Names(self.folder, self.videos, found.ignored))
        self.pictures = Pictures(short_side)
        self._unsaved: dict[str, tuple[int, list[str]]] = {}  # tab -> its newest report
        self.saved = False  # whether labels.json has been written since the start
        self._infos: dict[int, Any] = {}  # VideoInfo, or why the video is left out
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1)

    @property
    def unsaved(self) -> list[str]:
        """Videos with changes that only a tab of the browser has."""
        with self._lock:
            return [*dict.fromkeys(name for _, names in self._unsaved.values() for name in names)]

    def report_unsaved(self, tab: str, count: int, names: list[str]) -> None:
        """What a tab has not saved; ignored after a report of that tab with a higher count."""
        with self._lock:
            if count > self._unsaved.get(tab, (-1, []))[0]:
                self._unsaved[tab] = (count, names)

    def look_ahead(self) -> None:
        """Look into all videos in a thread beside this one, in their order."""
        self._pool.map(self.info, range(len(self.videos)))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def info(self, number: int) -> Any:
        """`fastseq.video.VideoInfo` of a video, or the reason why training leaves it out."""
        with self._lock:
            if number in self._infos:
                return self._infos[number]
        info = _look(self.folder / self._place(self.videos[number]), lambda: self._rate(number))
        with self._lock:
            return self._infos.setdefault(number, info)

    def _rate(self, number: int) -> float | None:
        """Frames per second of pictures: those in their labels, else of all pictures, if given."""
        entry = self.labels.read().entry(self.videos[number])
        return (entry or {}).get("fps", self._fps)

    def count_labelled(self) -> int:
        """Number of videos whose entries have phases."""
        stored = self.labels.read()
        entries = [stored.entry(name) or {} for name in self.videos]
        return sum(any(map(has_phases, parts_of(entry).values())) for entry in entries)

    def state(self) -> dict[str, Any]:
        """What the page begins with. Raises LabelError for a labels file that does not fit."""
        stored = self.labels.read()
        return {
            "folder": str(self.folder),
            "videos": self.videos,
            "classes": stored.labels.classes,
            "entries": [stored.entry(name) for name in self.videos],
            "version": stored.version,
            "absent": list(stored.absent),
            "read_only": self.labels.read_only(),
        }

    def known(self, first: int) -> dict[str, Any]:
        """Facts of the videos looked into so far, those after the first ``first`` ones."""
        with self._lock:
            numbers = [*self._infos][first:]
        stored = self.labels.read()
        facts = [self._facts(number, stored) for number in numbers]
        return {"facts": facts, "count": first + len(numbers), "of": len(self.videos)}

    def facts(self, number: int) -> dict[str, Any]:
        """What the page needs to know of a video, with what is wrong with its labels."""
        return self._facts(number, self.labels.read())

    def _facts(self, number: int, stored: Stored) -> dict[str, Any]:
        info = self.info(number)
        if isinstance(info, str):
            return {"number": number, "reason": info}
        return {
            "number": number,
            "frames": info.frames,
            "fps": info.fps,
            "width": info.width,
            "height": info.height,
            "note": info.note,
            "chunk": chunk_of(info),
            **stored.shown(self.videos[number], info),
        }

    def chunk(self, number: int, chunk: int) -> Any:
        """The pictures of one chunk of a video, see `Pictures.chunk`."""
        info = self.info(number)
        if isinstance(info, str):
            raise IndexError(f"{self.videos[number]} is left out: {info}")
        return self.pictures.chunk(info, chunk)

    def save(self, version: str, classes: Any, entries: dict[int, Any]) -> str:
        """See `LabelStore.save`; ``entries`` by the videos' numbers."""
        named = {self.videos[number]: entry for number, entry in entries.items()}
        infos = {self.videos[number]: self.info(number) for number in entries}
        sound = {name: info for name, info in infos.items() if not isinstance(info, str)}
        new = self.labels.save(version, classes, named, sound)
        self.saved = True
        return new


def _look(path: Path, rate: Callable[[], float | None]) -> Any:
    from fastseq.video import probe
    from fastseq.video.pictures import is_pictures

    try:
        fps = rate() if is_pictures(str(path)) else None
        info = probe(path, time_limit=60.0, fps=fps)
    except ImportError:
        raise
    except Exception as error:  # whatever one file does, the others are shown
        return getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
    if info.interlaced:
        return (
            "interlaced (two fields a frame): `python -m training.prepare FOLDER --transcode OUT` "
            "makes a progressive copy"
        )
    return info
