"""The videos that a run was trained on, in RUN/training_videos.json.

The file maps the id of each video to its path and its number of frames: ``{"videos": {id: {"path":
..., "frames": ...}}}``, with "name", its id within its folder, if the run has several folders. A
resumed run adds the videos that are new in the folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastseq.video.columns import column
from training.data.files import by_name
from training.support.command import UserError
from training.support.files import write_text

TRAINING_VIDEOS = "training_videos.json"


def write_training_videos(
    run_dir: Path, videos: Sequence[Any], *, resumed: bool, folders: int = 1
) -> None:
    """Write the file; a resumed run keeps the videos that are already in it.

    ``folders``: the number of the run's folders; ids of several begin with their folder's name.
    """
    known = (_read(run_dir) or {}) if resumed else {}
    names, paths, frames = (column(videos, name).tolist() for name in ("id", "path", "frames"))
    for name, path, count in zip(names, _real_paths(paths), frames, strict=True):
        known[name] = {"path": path, "frames": count}
        if folders > 1:
            known[name]["name"] = name.partition("/")[2]
    # One line for each video; json's own indentation takes seconds for 100,000 videos.
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in known.items())
    write_text(run_dir / TRAINING_VIDEOS, '{"videos": {\n' + ",\n".join(lines) + "\n}}\n")


def trained_on(run_dir: str | Path, videos: Iterable[Any]) -> list[str] | None:
    """Ids of those of ``videos`` that the run was trained on; None for a run without the file.

    A video is one of training if it is the same file. In a folder that was moved, copied,
    transcoded or packed into shards it is one if its id within the folder and its number of frames
    are the same. Ids are compared without the extension and, if only one of the two videos lies in
    a tar file, without its name: `prepare --transcode` and `--shards` change these.
    """
    known = _read(Path(run_dir))
    if known is None:
        return None
    paths = {one["path"] for one in known.values()}
    names, unpacked = set(), set()
    for id_, one in known.items():
        for name in {id_, one.get("name", id_)}:
            whole, inside = _names(name)
            names.add((whole, one["frames"]))
            unpacked.add((inside, one["frames"]))

    def is_copy(video: Any) -> bool:
        whole, inside = _names(video.id)
        others = unpacked if whole == inside else names
        return (whole, video.frames) in names or (inside, video.frames) in others

    videos = [*videos]
    return [
        video.id
        for video, path in zip(videos, _real_paths(one.path for one in videos), strict=True)
        if path in paths or is_copy(video)
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


def _names(video_id: str) -> tuple[str, str]:
    """An id as copies keep it, and without the name of a tar file."""
    while by_name(video_id) is True:
        video_id = os.path.splitext(video_id)[0]
    tar, _, inside = video_id.rpartition(".tar/")
    inside = inside.replace(".", "_")  # as the keys of shards
    return f"{tar}.tar/{inside}" if tar else inside, inside


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
