"""The results of checking files, and the journal that keeps those of an unfinished check."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data.load import read_columns
from training.data.packing import pairs, unpacked_times
from training.data.store import FORMAT, DamagedIndex, Store

_COMMON = {"note": "", "mirrored": False, "gaps": (), "random_access": True, "remarks": ()}
_NUMBERS = ("frames", "fps", "width", "height", "rotation")


@dataclass(frozen=True, slots=True)
class Probe:
    """What the check of one file found, before labels.

    Attributes:
        reason: why the file cannot be read; empty if it can. The other facts are then defaults.
        packed_times: see `packed_times`. The others: see `fastseq.video.VideoInfo`.
    """

    reason: str = ""
    frames: int = 0
    fps: float = 25.0
    width: int = 0
    height: int = 0
    rotation: int = 0
    codec: str = ""
    note: str = ""
    mirrored: bool = False
    gaps: tuple[tuple[int, int], ...] = ()
    interlaced: bool = False
    random_access: bool = True
    remarks: tuple[str, ...] = ()
    packed_times: bytes = b""

    @property
    def times(self) -> np.ndarray:
        """float64 (frames,): seconds from the first frame to each frame."""
        times = unpacked_times(self.packed_times)
        return np.arange(self.frames) / self.fps if times is None else times

    @property
    def damaged(self) -> bool:
        return bool(self.note or self.gaps)

    def facts(self) -> dict[str, Any]:
        """What most files lack, for JSON."""
        rare = {
            "note": self.note,
            "mirrored": self.mirrored,
            "gaps": self.gaps,
            "random_access": self.random_access,
            "remarks": self.remarks,
        }
        return {name: value for name, value in rare.items() if value != _COMMON[name]}

    def to_json(self) -> dict[str, Any]:
        if self.reason:
            return {"reason": self.reason}
        common = {name: getattr(self, name) for name in (*_NUMBERS, "codec", "interlaced")}
        made = common | self.facts()
        if self.packed_times:
            made["times"] = base64.b64encode(self.packed_times).decode()
        return made

    @classmethod
    def from_json(cls, made: Mapping[str, Any], times: bytes = b"") -> Probe:
        made = dict(made)
        times = times or base64.b64decode(made.pop("times", ""))
        made["gaps"] = pairs(made.get("gaps", ()))
        made["remarks"] = tuple(made.get("remarks", ()))
        return cls(**made, packed_times=times)


@dataclass(frozen=True, slots=True)
class Checked:
    """A probe and what it depends on.

    Attributes:
        stamp: size and time of modification of the file, see `training.data.freshness.stamp_of`.
        verified: whether every frame was decoded.
        fps: the given frame rate of pictures; None for files, which state theirs.
        time_limit: seconds after which a file counts as bad.
        reader: version of FFmpeg's Python package.
    """

    probe: Probe
    stamp: tuple[int, int]
    verified: bool
    fps: float | None
    time_limit: float
    reader: str

    def answers(self, question: Checked) -> bool:
        """Whether a check as `question` describes it would find the same.

        A file that could not be read may be readable within another time limit.
        """
        return (
            self.stamp == question.stamp
            and self.verified >= question.verified
            and self.fps == question.fps
            and self.reader == question.reader
            and (not self.probe.reason or self.time_limit == question.time_limit)
        )

    def to_json(self) -> list[Any]:
        settings = [self.verified, self.fps, self.time_limit, self.reader]
        return [*self.stamp, *settings, self.probe.to_json()]

    @classmethod
    def from_json(cls, made: list[Any]) -> Checked:
        size, changed, *settings, probe = made
        return cls(Probe.from_json(probe), (size, changed), *settings)


class Journal:
    """The results of an unfinished check: a file to which one line of JSON per video is added.

    A killed process loses the results of the last `_SECONDS`. Several processes may add to one
    file; a line that is not whole is ignored when the file is read.
    """

    _SECONDS = 2.0

    def __init__(self, path: Path):
        self.path = path
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._written = time.monotonic()

    def read(self) -> dict[str, Checked]:
        found = {}
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        name, made = json.loads(line)
                        found[name] = Checked.from_json(made)
                    except (ValueError, TypeError):  # cut off when a process was killed
                        continue
        except FileNotFoundError:
            pass
        return found

    def add(self, name: str, checked: Checked) -> None:
        line = json.dumps([name, checked.to_json()])
        with self._lock:
            self._lines.append(line)
            if time.monotonic() - self._written > self._SECONDS:
                self._flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            # The first line break ends a line that was cut off. One write in append mode keeps the
            # lines of two processes apart on a local disk.
            data = ("\n" + "\n".join(self._lines) + "\n").encode()
            self._lines.clear()
            with open(self.path, "ab", buffering=0) as file:
                file.write(data)
        self._written = time.monotonic()


def reader_version() -> str:
    """Version of the package that reads videos; empty without it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"PyAV {version('av')}"
    except PackageNotFoundError:
        return ""


def earlier_checks(path: Path) -> dict[str, Checked]:
    """The checks in an index file; none if there is no usable one."""
    try:
        with Store(path) as store:
            if store.about.get("format") != FORMAT:
                return {}
            return {**_good(path.parent, store), **_bad(store)}
    except (DamagedIndex, KeyError, TypeError, ValueError):
        return {}


def _bad(store: Store) -> dict[str, Checked]:
    return {path: Checked.from_json(json.loads(made)) for path, _, made in store.bad()}


def _good(folder: Path, store: Store) -> dict[str, Checked]:
    class_set = next(iter(store.about["class_sets"]))
    columns = read_columns(folder, store, class_set)
    arrays, texts = columns.arrays, columns.texts
    settings, _ = store.columns(("verified", "given_fps", "size", "changed"))
    stamps = zip(settings["size"].tolist(), settings["changed"].tolist(), strict=True)
    reader, found = store.about["reader"], {}
    numbers = {name: arrays[name].tolist() for name in _NUMBERS}
    codecs, times = columns.column("codec"), texts["times"].all(len(columns))
    rare = texts["facts"].all(len(columns))
    for row, (name, stamp) in enumerate(zip(columns.column("id"), stamps, strict=True)):
        probe = Probe.from_json(
            {key: values[row] for key, values in numbers.items()}
            | {"codec": codecs[row]}
            | (json.loads(rare[row]) if rare[row] else {}),
            times[row],
        )
        fps = float(settings["given_fps"][row])
        found[name] = Checked(
            probe,
            stamp,
            bool(settings["verified"][row]),
            None if math.isnan(fps) else fps,
            0.0,  # only matters for files that could not be read
            reader,
        )
    return found
