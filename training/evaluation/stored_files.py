"""The files of RUN/embeddings: the embeddings of each video by one row of one checkpoint."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.evaluation.encoders import BACKBONE
from training.support.files import file_name, read_npz, replacing, write_json

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.evaluation.encoders import Encoder

_FORMAT = 1  # raise it when the same video and weights yield other embeddings
_WHAT = (
    "Embeddings of videos, one npz each. Missing ones are computed again, so this folder may be "
    "removed."
)


class StoredFiles:
    """The files of one row of one checkpoint."""

    def __init__(self, folder: Path, row: str, encoder: Encoder) -> None:
        from training.data.features import digest

        self.row, self.weights = row, encoder.weights
        self.key = "features" if row == BACKBONE else "embeddings"
        self.about = {"format": _FORMAT, "row": row, **encoder.weights.about}
        self.folder = folder / f"{file_name(row).replace(' ', '_')}-{digest(self.about)}"

    def path(self, record: VideoRecord) -> Path | None:
        """None for a video outside the folder whose id is a path."""
        own = Path(record.id)
        inside = not own.is_absolute() and ".." not in own.parts
        return self.folder / f"{record.id}.npz" if inside else None

    def has(self, record: VideoRecord) -> bool:
        """Whether the embeddings of the video as it is now are stored."""
        return self._found(record, ()) is not None

    def read(self, record: VideoRecord) -> np.ndarray | None:
        """The stored embeddings of the video as it is now, or its features; None without."""
        found = self._found(record, (self.key,))
        return None if found is None else found[self.key]

    def _found(self, record: VideoRecord, keys: Sequence[str]) -> dict[str, np.ndarray] | None:
        path, stamp = self.path(record), stamp_now(record)
        if path is None or stamp is None:
            return None
        try:
            found = read_npz(path, ("stamp", *keys))
            return found if found["stamp"].item() == stamp else None
        except (OSError, ValueError):
            return None

    def write(self, record: VideoRecord, content: np.ndarray, stamp: str | None) -> None:
        """``stamp``: `stamp_now` before the video was decoded, which may have changed since."""
        from fastseq.video.gaps import frames_of

        path = self.path(record)
        if path is None or stamp is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.exists():
            of = {"checkpoint": self.weights.checkpoint, "step": self.weights.step}
            write_json(about, {"what": _WHAT, **of, **self.about})
        with replacing(path) as partial, open(partial, "wb") as file:
            arrays = {self.key: content, "frames": frames_of(record)}
            np.savez(file, **arrays, id=record.id, stamp=stamp)

    def remove_others(self) -> None:
        """Remove this row's embeddings by checkpoints that are gone and by other settings."""
        checkpoints = self.folder.parents[1] / "checkpoints"
        prefix = self.folder.name.rpartition("-")[0]
        for other in self.folder.parent.glob(f"{prefix}-*"):
            if other == self.folder or other.name.rpartition("-")[0] != prefix:
                continue
            with suppress(OSError, ValueError):
                name = json.loads((other / "about.json").read_text())["checkpoint"]
                exists = name and (checkpoints / f"{name}.pt").is_file()
                if name == self.weights.checkpoint or not exists:
                    shutil.rmtree(other)


def stamp_now(record: VideoRecord) -> str | None:
    """`training.data.features.video_stamp`; None if the video no longer exists."""
    from training.data.features import video_stamp

    with suppress(OSError):
        return video_stamp(record)
    return None


def balanced(records: Sequence[VideoRecord], parts: int) -> list[list[VideoRecord]]:
    """The videos in ``parts`` lists with about equal numbers of frames, the longest video first."""
    out: list[list[VideoRecord]] = [[] for _ in range(parts)]
    frames: dict[int, int] = defaultdict(int)
    for record in sorted(records, key=lambda record: -record.frames):
        least = min(range(parts), key=lambda part: frames[part])
        out[least].append(record)
        frames[least] += record.frames
    return out
