"""Several indexes as one, and columns of their videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.index import Index, VideoRecord, load_index


def column(videos: Any, name: str) -> np.ndarray:
    """An attribute of all videos."""
    if hasattr(videos, "column"):
        return videos.column(name)
    default = {"source": 0, "shard": -1}.get(name)
    values = [getattr(video, name, default) for video in videos]
    return np.array(values, dtype=object if default is None else np.int64)


def where(videos: Any, attribute: str, names: Sequence[str]) -> Any:
    """The videos whose attribute is one of the names."""
    if hasattr(videos, "where"):
        return videos.where(**{attribute: names})
    return [video for video in videos if getattr(video, attribute) in names]


def load_indexes(
    folders: Sequence[Path], *, class_set: str | None = None, check: bool = True
) -> Index:
    """The videos of all folders as one index."""
    indexes = [load_index(folder) for folder in folders]
    if len(indexes) == 1:
        return indexes[0]
    made = Index(indexes[0].folder, [], [], {})
    for source, index in enumerate(indexes):
        made.videos.extend(_moved(video, index, source) for video in index.videos)
        made.bad.extend(index.bad)
        made.classes.update(index.classes)
    return made


def _moved(video: VideoRecord, index: Index, source: int) -> VideoRecord:
    name = index.folder.name
    sync = video.sync and (f"{name}/{video.sync[0]}", video.sync[1])
    moved = dataclasses.replace(video, id=f"{name}/{video.id}", sync=sync)
    object.__setattr__(moved, "source", source)
    return moved
