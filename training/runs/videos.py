"""The videos that a run was trained on, in RUN/training_videos.json.

The file maps the id of each video to its path and its number of frames: ``{"videos": {id: {"path":
..., "frames": ...}}}``. A resumed run adds the videos that are new in the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastseq.video.columns import column
from training.support.command import UserError
from training.support.files import write_text

TRAINING_VIDEOS = "training_videos.json"


def write_training_videos(run_dir: Path, videos: Sequence[Any], *, resumed: bool) -> None:
    """Write the file; a resumed run keeps the videos that are already in it."""
    known = (_read(run_dir) or {}) if resumed else {}
    names, paths, frames = (column(videos, name).tolist() for name in ("id", "path", "frames"))
    for name, path, count in zip(names, _real_paths(paths), frames, strict=True):
        known[name] = {"path": path, "frames": count}
    # One line for each video; json's own indentation takes seconds for 100,000 videos.
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in known.items())
    write_text(run_dir / TRAINING_VIDEOS, '{"videos": {\n' + ",\n".join(lines) + "\n}}\n")


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
    videos = [*videos]
    return [
        video.id
        for video, path in zip(videos, _real_paths(one.path for one in videos), strict=True)
        if path in paths or (_name(video.id), video.frames) in names
    ]


def _real_paths(paths: Iterable[str]) -> Iterator[str]:
    """The paths without symbolic links; each folder is looked up once."""
    folders: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real = os.path.join(folders[folder], name)
        yield os.path.realpath(real) if os.path.islink(real) else real


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
