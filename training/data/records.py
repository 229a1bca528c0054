"""The videos of an index: columns of numbers and texts, from which records are made on access."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from training.data.packing import Ragged, as_text, pairs, unpacked_phases, unpacked_times


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """One video of an index. Two records are equal if their ids and paths are.

    Attributes:
        id: path relative to the folder, with forward slashes; "FOLDERNAME/..." if the index has
            several folders.
        path: absolute path of the file or of the folder of pictures; for a video in a shard its
            place in the tar file, see `fastseq.video.source`.
        frames: number of presented frames; fps: average frame rate.
        width, height: in pixels after rotation.
        action: name of the action, "all" if not given.
        split: "train", "val" or "test".
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
        times: float64 (frames,), seconds from the first frame to each frame, accurate to 1 ns; None
            if every time differs from k / fps by at most 1 % of a frame or 1 ms.
        source: number of the video's folder among those of the index.
        shard: number of the video's tar file in the index; -1 = the video is no part of one.
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
    times: np.ndarray | None = None
    source: int = 0
    shard: int = -1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VideoRecord):
            return NotImplemented
        return (self.id, self.path) == (other.id, other.path)

    def __hash__(self) -> int:
        return hash((self.id, self.path))


class Columns:
    """The videos of one folder by column, as its index file stores them.

    Args:
        arrays: numbers "frames", "fps", "width", "height", "rotation", "sound" (usable frames),
            "shard"; codes into `names` "action", "split", "view", "codec".
        names: texts of the codes by column.
        texts: "id", "place" (locator below the folder, where it is not the id), "facts" and "used"
            (JSON of what only some files and labels have), "times", "phases".
        prefix, source, shards: put before each id and group; number of the folder; added to each
            shard.
    """

    def __init__(
        self,
        folder: Path,
        arrays: Mapping[str, np.ndarray],
        names: Mapping[str, Sequence[str]],
        texts: Mapping[str, Ragged],
        *,
        prefix: str = "",
        source: int = 0,
        shards: int = 0,
    ):
        self.folder, self.root = folder, os.path.join(folder, "")
        self.arrays, self.names, self.texts = arrays, names, texts
        self.prefix, self.source, self.shards = prefix, source, shards

    def __len__(self) -> int:
        return len(self.arrays["frames"])

    def placed(self, prefix: str, source: int, shards: int) -> Columns:
        """The same videos as those of folder number `source` among several."""
        return Columns(
            self.folder,
            self.arrays,
            self.names,
            self.texts,
            prefix=prefix,
            source=source,
            shards=shards,
        )

    def column(self, name: str) -> np.ndarray:
        """All values of one column; texts as an object array of str."""
        if name in self.names:
            return np.array(self.names[name], dtype=object)[self.arrays[name]]
        if name in ("id", "path"):
            texts = self.texts["id"].all(len(self))
            if name == "path":
                places = self.texts["place"].all(len(self))
                texts = [place or id_ for place, id_ in zip(places, texts, strict=True)]
            before = self.prefix if name == "id" else self.root
            values = np.empty(len(self), dtype=object)
            values[:] = [before + as_text(text) for text in texts]
            return values
        if name == "source":
            return np.full(len(self), self.source)
        if name == "shard":
            shard = self.arrays["shard"].astype(np.int64)
            return np.where(shard < 0, -1, shard + self.shards)
        if name == "labelled":
            return self.texts["phases"].has(len(self))
        if name == "special":
            return self.texts["facts"].has(len(self)) | self.texts["used"].has(len(self))
        if name not in self.arrays:
            known = ", ".join(sorted({*self.arrays, "id", "path", "source", "labelled", "special"}))
            raise KeyError(f"videos have no column {name!r}; known: {known}")
        values = self.arrays[name]
        return values.astype(np.int64) if values.dtype.kind == "i" else values

    def equal(self, name: str, wanted: Sequence[str]) -> np.ndarray:
        """bool (videos,): whether the text of a column is one of those wanted."""
        codes = [code for code, text in enumerate(self.names[name]) if text in wanted]
        return np.isin(self.arrays[name], codes)

    def record(self, row: int) -> VideoRecord:
        arrays, names = self.arrays, self.names
        frames, fps = int(arrays["frames"][row]), float(arrays["fps"][row])
        facts, used = _loaded(self.texts["facts"].at(row)), _loaded(self.texts["used"].at(row))
        phases = unpacked_phases(self.texts["phases"].at(row))
        shard = int(arrays["shard"][row])
        return VideoRecord(
            id=self._id(row),
            path=self._path(row),
            frames=frames,
            fps=fps,
            width=int(arrays["width"][row]),
            height=int(arrays["height"][row]),
            action=names["action"][arrays["action"][row]],
            split=names["split"][arrays["split"][row]],
            phases=phases,
            note=facts.get("note", ""),
            rotation=int(arrays["rotation"][row]),
            codec=names["codec"][arrays["codec"][row]],
            view=names["view"][arrays["view"][row]],
            mirrored=facts.get("mirrored", False),
            gaps=pairs(used.get("gaps", facts.get("gaps", ()))),
            random_access=facts.get("random_access", True),
            remarks=tuple(facts.get("remarks", ())),
            trim=_tuple(used.get("trim")),
            crop=_tuple(used.get("crop")),
            sync=(self.prefix + used["sync"][0], used["sync"][1]) if "sync" in used else None,
            unchecked=phases is not None and used.get("unchecked", False),
            times=unpacked_times(self.texts["times"].at(row)),
            source=self.source,
            shard=shard if shard < 0 else shard + self.shards,
        )

    def _id(self, row: int) -> str:
        return self.prefix + as_text(self.texts["id"].at(row))

    def _path(self, row: int) -> str:
        return self.root + as_text(self.texts["place"].at(row) or self.texts["id"].at(row))


class Videos(Sequence[VideoRecord]):
    """The videos of an index, or some of them; a sequence whose records are made on access.

    Subsets share the columns of the whole. A pickle contains arrays, no records.
    """

    def __init__(self, parts: Sequence[Columns], rows: np.ndarray | None = None):
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Videos: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | Videos:
        if isinstance(index, slice):
            return Videos(self.parts, self._rows[index])
        return self._record(int(self._rows[operator.index(index)]))

    def __iter__(self) -> Iterator[VideoRecord]:
        return (self._record(row) for row in self._rows.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} videos>"

    def column(self, name: str) -> np.ndarray:
        """One attribute of all videos, without making records.

        Args:
            name: "frames", "fps", "width", "height", "rotation", "sound" (number of usable frames),
                "source", "shard"; "id", "path", "action", "split", "view", "codec" (object arrays
                of str); "labelled" (bool: has phases), "special" (bool: has damage, remarks, or
                anything else that most videos lack).
        """
        values = [part.column(name) for part in self.parts]
        return np.concatenate(values)[self._rows] if values else np.empty(0)

    def take(self, positions: Any) -> Videos:
        """The videos at these positions (integers, or one bool per video), in this order."""
        positions = np.asarray(positions)
        return Videos(self.parts, self._rows[positions if positions.size else slice(0)])

    def where(
        self,
        split: str | Sequence[str] | None = None,
        action: str | Sequence[str] | None = None,
        view: str | Sequence[str] | None = None,
    ) -> Videos:
        """The videos of these splits, actions and views; None = all of them."""
        kept = np.ones(int(self._starts[-1]), dtype=bool)
        for name, wanted in (("split", split), ("action", action), ("view", view)):
            if wanted is not None:
                wanted = [wanted] if isinstance(wanted, str) else [*wanted]
                kept &= np.concatenate([part.equal(name, wanted) for part in self.parts])
        return Videos(self.parts, self._rows[kept[self._rows]])

    def _record(self, row: int) -> VideoRecord:
        part = int(self._starts.searchsorted(row, side="right")) - 1
        return self.parts[part].record(row - int(self._starts[part]))


def _loaded(packed: bytes) -> dict[str, Any]:
    return json.loads(packed) if packed else {}


def _tuple(values: Sequence[Any] | None) -> Any:
    return None if values is None else tuple(values)
