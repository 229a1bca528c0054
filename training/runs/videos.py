"""The videos that a run was trained on, in RUN/training_videos.json.

The file maps the id of each video to its path and its number of frames: ``{"videos": {id: {"path":
..., "frames": ...}}}``. A resumed run adds the videos that are new in the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.data.adapter import column
from training.support.command import UserError
from training.support.files import write_text

TRAINING_VIDEOS = "training_videos.json"


def write_training_videos(run_dir: Path, videos: Sequence[Any], *, resumed: bool) -> None:
    """Write the file; a resumed run keeps the videos that are already in it."""
    known = (_read(run_dir) or {}) if resumed else {}
    columns = (column(videos, name).tolist() for name in ("id", "path", "frames"))
    for name, path, frames in zip(*columns, strict=True):
        known[name] = {"path": os.path.realpath(path), "frames": frames}
    write_text(run_dir / TRAINING_VIDEOS, json.dumps({"videos": known}, indent=1) + "\n")


def trained_on(run_dir: str | Path, videos: Iterable[Any]) -> list[str] | None:
    """Ids of those of ``videos`` that the run was trained on; None for a run without the file.

    A video is one of training if it is the same file. In a folder that was moved, copied or
    transcoded it is one if its id (without ".mp4", which `prepare --transcode` appends) and its
    number of frames are the same.
    """
    known = _read(Path(run_dir))
    if known is None:
        return None
    paths = {one["path"] for one in known.values()}
    names = {(_name(name), one["frames"]) for name, one in known.items()}
    return [
        video.id
        for video in videos
        if os.path.realpath(video.path) in paths or (_name(video.id), video.frames) in names
    ]


def _name(video_id: str) -> str:
    return video_id.removesuffix(".mp4")


def _read(run_dir: Path) -> dict[str, dict[str, Any]] | None:
    path = run_dir / TRAINING_VIDEOS
    try:
        return json.loads(path.read_text(encoding="utf-8"))["videos"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it from a copy, or remove it: nothing then "
            "tells which test videos the run was trained on"
        ) from error
