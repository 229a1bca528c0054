"""Texts, labels and times of many videos as few blocks of bytes."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_NANOSECOND = 1e-9
_MILLISECOND = 1e-3


@dataclass(frozen=True)
class Ragged:
    """Byte strings of different lengths, of every row or of the rows that have one.

    Attributes:
        data: uint8, the strings one after the other; offsets: int64 (count + 1,), their bounds.
        rows: int32 (count,), ascending rows with a string; None = row k has string k.
    """

    data: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray | None = None

    @classmethod
    def of(cls, values: Iterable[bytes], rows: Iterable[int] | None = None) -> Ragged:
        values = list(values)
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        return cls(
            np.frombuffer(b"".join(values), np.uint8),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            None if rows is None else np.fromiter(rows, np.int32),
        )

    @classmethod
    def where_any(cls, values: Iterable[bytes]) -> Ragged:
        """Only the rows whose string is not empty."""
        values = list(values)
        rows = [row for row, value in enumerate(values) if value]
        return cls.of([values[row] for row in rows], rows)

    def at(self, row: int) -> bytes:
        """The string of a row; empty if it has none."""
        if self.rows is not None:
            place = bisect_left(self.rows, row)
            if place == len(self.rows) or self.rows[place] != row:
                return b""
            row = place
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def all(self, count: int) -> list[bytes]:
        """The strings of all rows."""
        data, bounds = self.data.tobytes(), self.offsets.tolist()
        found = [data[start:stop] for start, stop in pairwise(bounds)]
        if self.rows is None:
            return found
        whole = [b""] * count
        for row, text in zip(self.rows.tolist(), found, strict=True):
            whole[row] = text
        return whole

    def has(self, count: int) -> np.ndarray:
        """bool (count,): whether a row has a string."""
        found = np.zeros(count, dtype=bool)
        found[slice(None) if self.rows is None else self.rows] = True
        return found


def as_bytes(text: str) -> bytes:
    """A name as the file system stores it; names need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def as_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def packed_phases(phases: np.ndarray | None) -> bytes:
    """Run lengths as pairs (phase, frames), int32; empty without labels."""
    if phases is None:
        return b""
    stops = [*np.flatnonzero(phases[1:] != phases[:-1]) + 1, len(phases)]
    runs = np.empty((len(stops), 2), "<i4")
    runs[:, 0] = phases[[stop - 1 for stop in stops]]
    runs[:, 1] = stops
    runs[1:, 1] -= runs[:-1, 1]
    return runs.tobytes()


def unpacked_phases(packed: bytes) -> np.ndarray | None:
    if not packed:
        return None
    runs = np.frombuffer(packed, "<i4").reshape(-1, 2)
    return np.repeat(runs[:, 0].astype(np.int64), runs[:, 1])


def packed_times(times: np.ndarray | None, fps: float) -> bytes:
    """Compressed differences in ns, int64; empty if all times lie near k / fps.

    Near is within 1 % of a frame, or within 1 ms: Matroska and WebM files have whole ms.

    Args:
        times: float64 (frames,), seconds since the first frame.
    """
    if times is None or not len(times):
        return b""
    even = np.arange(len(times)) / fps
    if np.abs(times - even).max() <= max(0.01 / fps, _MILLISECOND):
        return b""
    steps = np.diff(np.rint(np.asarray(times) / _NANOSECOND).astype("<i8"), prepend=0)
    return zlib.compress(steps.tobytes())


def unpacked_times(packed: bytes) -> np.ndarray | None:
    if not packed:
        return None
    return np.cumsum(np.frombuffer(zlib.decompress(packed), "<i8")) * _NANOSECOND


def pairs(values: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((first, stop) for first, stop in values)
