"""Makes the videos of a data set in the output folder: links, copies, cuts, folders of pictures."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from training.data.threads import in_threads
from training.data.transcode import copy_state, process_runs, remove_leftovers
from training.datasets.dataset import Clip
from training.support.command import UserError

_SHOWN = 10
_FORMAT = 1  # raise by one when copies change: those of earlier calls are then made again
_UNFINISHED = ".pictures"


def make_media(
    clips: Mapping[str, Clip], out: Path, media: str, short_side: int, progress: bool
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Make the video of every clip.

    Args:
        clips: name in the output folder -> clip.
        media: "link" or "transcode".
    Returns:
        name -> ("made", "kept" or the reason why there is no video, entry of the labels file).
    Raises:
        UserError: another file has the name of a video.
    """
    linked = {
        name: clip
        for name, clip in clips.items()
        if media == "link" and clip.cut is None and clip.source is not None
    }
    there = _existing_links(linked, out)
    _remove_unfinished(out)
    maker = _Maker(out, short_side)

    def make(name: str) -> tuple[str, dict[str, Any]]:
        try:
            return maker.make(name, clips[name], media)
        except UserError:
            raise
        except Exception as error:  # one bad video must not stop the others
            return getattr(error, "reason", None) or f"{type(error).__name__}: {error}", {}

    results = _link(linked, there, out, progress)
    files = [name for name in clips if name not in linked]
    made = in_threads(make, files, "videos", progress and bool(files))
    results |= dict(zip(files, made, strict=True))
    return {name: results[name] for name in clips}


def entry_of(clip: Clip, pictures: bool) -> dict[str, Any]:
    """The clip's entry; with the rate, if its video in the output folder is pictures."""
    return {**clip.entry, "fps": clip.fps} if pictures and clip.fps else dict(clip.entry)


def _existing_links(clips: Mapping[str, Clip], out: Path) -> set[str]:
    """The names that are there already; UserError if one is not the clip's own video."""
    there = {name for name in clips if os.path.lexists(f"{out}/{name}")}
    problems = [name for name in clips if name in there and not _same(out / name, clips[name])]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"{out} has other files of the same name: {', '.join(problems[:_SHOWN])}{more}; remove "
            "them, or choose another --out"
        )
    return there


def _same(target: Path, clip: Clip) -> bool:
    try:
        return target.samefile(clip.source)
    except OSError:  # a broken link
        return False


def _link(
    clips: Mapping[str, Clip], there: set[str], out: Path, progress: bool
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Absolute symbolic links. A loop is faster than threads for these."""
    from tqdm import tqdm

    results, folders = {}, set()
    bar = tqdm(clips.items(), "links", unit="video", disable=not (progress and clips))
    for name, clip in bar:
        if name not in there:
            target = f"{out}/{name}"
            folder = os.path.dirname(target)
            if folder not in folders:
                os.makedirs(folder, exist_ok=True)
                folders.add(folder)
            os.symlink(os.path.abspath(clip.source), target)
        results[name] = "kept" if name in there else "made", entry_of(clip, True)
    return results


class _Maker:
    """Makes the video of a clip in the output folder."""

    def __init__(self, out: Path, short_side: int):
        self.out = out
        self.short_side = short_side
        self.info = functools.lru_cache(maxsize=64)(_probe)

    def make(self, name: str, clip: Clip, media: str) -> tuple[str, dict[str, Any]]:
        """("made" or "kept", entry); raises an error with the reason otherwise."""
        target = self.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if clip.cut is not None or media == "transcode":
            if clip.pictures is not None:
                with _unfinished(target) as folder:
                    pictures = clip.pictures()
                    _write_pictures(folder, pictures)
                    made = replace(clip, source=folder, pictures=None)
                    return self._transcode(target, made, [clip.name, len(pictures)])
            return self._transcode(target, clip, _stamp(clip.source))
        return _pictures(target, clip), entry_of(clip, True)

    def _transcode(self, target: Path, clip: Clip, stamp: list[Any]) -> tuple[str, dict[str, Any]]:
        """A file that decodes fast, with frame numbers in its entry."""
        from fastseq.video import VideoError, transcode
        from training.data.labels import in_frames

        info = self.info(clip.source, clip.fps)
        frames, times, options = None, info.times, {}
        if clip.cut is not None:
            first, stop = (int(k) for k in times.searchsorted(clip.cut))
            if first >= stop:
                raise VideoError(
                    clip.source,
                    f"no frame from {clip.cut[0]:g} to {clip.cut[1]:g} s; the video has "
                    f"{info.frames} frames in {times[-1]:g} s",
                )
            frames, times = (first, stop), times[first:stop] - clip.cut[0]
        entry = in_frames(clip.entry, SimpleNamespace(frames=len(times), fps=info.fps, times=times))
        if clip.cut is not None and _end(entry) > len(times):
            raise VideoError(
                clip.source,
                f"it ends after {info.times[-1]:g} s, before the labels from {clip.cut[0]:g} to "
                f"{clip.cut[1]:g} s do",
            )
        mark = json.dumps(
            {
                "fastseq_transcode": _FORMAT,
                "short_side": self.short_side,
                "source": stamp,
                "frames": frames,
                "fps": clip.fps,
            }
        )
        state = copy_state(target, mark)
        if state == "done":
            return "kept", entry
        if state == "foreign":
            raise UserError(f"{target} exists and is not a copy made here; remove it")
        if frames is not None:
            options["frames"] = frames
        if clip.fps is not None:
            options["fps"] = clip.fps
        transcode(clip.source, target, short_side=self.short_side, comment=mark, **options)
        return "made", entry


def _end(entry: Mapping[str, Any]) -> int:
    """The largest end of an entry's segments, in frames."""
    parts = [entry, *entry.get("labels", {}).values()]
    return max((stop for part in parts for _, stop, _ in part.get("segments", ())), default=0)


def _probe(source: Path, fps: float | None) -> Any:
    from fastseq.video import probe

    return probe(source) if fps is None else probe(source, fps=fps)


def _stamp(source: Path) -> list[Any]:
    """Changes when a file, or the list of a folder's pictures, changes."""
    status = source.stat()
    size = sum(1 for _ in os.scandir(source)) if source.is_dir() else status.st_size
    return [source.name, size, status.st_mtime_ns]


def _pictures(target: Path, clip: Clip) -> str:
    """Write a folder of pictures whole or not at all; keep one with the same pictures."""
    pictures = clip.pictures()
    if target.exists():
        names = {f"{k:06}{_ending(data)}": len(data) for k, data in enumerate(pictures, 1)}
        found = {entry.name: entry.stat().st_size for entry in os.scandir(target)}
        if found != names:
            raise UserError(f"{target} exists and has other pictures; remove it")
        return "kept"
    with _unfinished(target) as folder:
        _write_pictures(folder, pictures)
        folder.rename(target)
    return "made"


def _write_pictures(folder: Path, pictures: list[bytes]) -> None:
    folder.mkdir()
    for number, data in enumerate(pictures, 1):
        (folder / f"{number:06}{_ending(data)}").write_bytes(data)


def _ending(data: bytes) -> str:
    return ".png" if data.startswith(b"\x89PNG") else ".jpg"


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A path beside `target` for a folder that does not outlive the block under this name."""
    folder = target.with_name(f".{target.name}.{os.getpid()}{_UNFINISHED}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unfinished(out: Path) -> None:
    """Remove what a process that was killed left half-written."""
    remove_leftovers(out)
    for folder in out.rglob(f".*{_UNFINISHED}"):
        number = folder.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        if number.isdigit() and not process_runs(int(number)):
            shutil.rmtree(folder, ignore_errors=True)
