"""Copies a folder of videos to files that decode fast: python -m training.prepare --transcode."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastseq.video import VideoError, VideoInfo, probe, transcode
from fastseq.video._av import require_av
from fastseq.video.pictures import is_pictures
from fastseq.video.transcoding import check_settings
from training.data.files import LABELS_NAME, Found, find_videos, stamp_of
from training.data.footage import check_crop, scaled_crop
from training.data.label_values import in_seconds
from training.data.labels import (
    LabelError,
    Labels,
    in_frames,
    listed,
    match_names,
    read_labels,
    with_entries,
)
from training.data.names import Names
from training.data.threads import in_threads
from training.support.command import UserError
from training.support.files import replacing

# Raise by one when the encoder's options change: files written before are then copied again.
_FORMAT = 1
_MARK = "fastseq_transcode"


@dataclass(frozen=True)
class Settings:
    """Settings of the copies; see `fastseq.video.transcode`."""

    short_side: int = 256
    keyframe_every: int = 16
    crf: int = 20


@dataclass(frozen=True)
class Report:
    """The result of copying; names are relative to the output folder unless stated otherwise.

    Attributes:
        written: copies written now; kept: earlier copies of the same file with the same settings.
        bad: {path, reason} of the videos that were not copied, relative to the input folder.
        strays: videos in the output folder that belong to no video of the input folder.
        unused_labels: labelled videos that were not copied.
        found: the files of the input folder.
        frames, seconds: number of frames written now, and the time it took.
    """

    written: list[str]
    kept: list[str]
    bad: list[dict[str, str]]
    strays: list[str]
    unused_labels: list[str]
    found: Found
    frames: int
    seconds: float


def transcode_folder(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings | None = None,
    *,
    labels: str | os.PathLike | None = None,
    include: Iterable[str] = (),
    pictures: str | None = None,
    fps: float | None = None,
    time_limit: float = 60.0,
    progress: bool = False,
) -> Report:
    """Copy every video under `folder`, and the labels, into `out`.

    `a/b.mp4` keeps its name, `a/b.avi` becomes `a/b.avi.mp4` and the folder of pictures `a/0001`
    becomes `a/0001.mp4`, also in the labels, where crops are scaled to the copies and seconds
    become frames. Copies show the whole picture and all frames. A copy of an earlier call is kept
    if the video has not changed since (size, time of modification) and the settings are the same.
    Damaged videos and their labels are left out.

    Args:
        labels: labels file; default FOLDER/labels.json if there is one.
        include: patterns of files that are checked whatever their extension; see `find_videos`.
        pictures: pattern of the numbered pictures to use; see `find_videos`.
        fps: frames per second of pictures whose labels have no "fps"; default 25.
        time_limit: seconds without progress after which a file is skipped.
        progress: show a bar.
    Raises:
        LabelError: labels do not fit the videos.
        UserError: a setting is out of range, one folder lies inside the other, or two copies would
            have the same name.
        NotADirectoryError: `folder` is not a folder.
    """
    settings = settings or Settings()
    try:
        check_settings(**asdict(settings))
    except ValueError as error:
        raise UserError(str(error)) from error
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if folder.is_relative_to(out) or out.is_relative_to(folder):
        raise UserError(f"{out} and {folder} must be two folders, neither inside the other")
    files = find_videos(folder, include, pictures=pictures, progress=progress)
    names = files.videos
    targets = {name: _target_name(name) for name in names}
    if len(set(targets.values())) < len(names):
        twice = next(n for n, t in targets.items() if n != t and t in targets)
        raise UserError(f"{twice} and {targets[twice]} would get the same name; rename one")
    if labels is None and (folder / LABELS_NAME).is_file():
        labels = folder / LABELS_NAME
    given = Labels()
    if labels is not None:
        names_of = Names(folder, names, files.ignored)
        given = match_names(Path(labels), read_labels(Path(labels)), names_of)
    given = with_entries(folder, given, files.entries)
    sources = {name: folder / files.place(name) for name in names}
    rates = {
        name: given.videos.get(name, {}).get("fps", fps)
        for name in names
        if is_pictures(os.fspath(sources[name]))
    }
    infos = _infos_for_labels(sources, rates, labels or folder, given, time_limit, progress)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)

    marks = {name: _mark(sources[name], settings, rates.get(name)) for name in names}

    def look(name: str) -> str:
        return copy_state(out / targets[name], marks[name])

    states = dict(zip(names, in_threads(look, names, "looking", progress), strict=True))
    todo = [name for name in names if states[name] == "to do"]
    bad = {
        name: f"{out / targets[name]} exists and is not a copy made here; remove it or choose "
        "another folder"
        for name in names
        if states[name] == "foreign"
    }
    written = {}
    bar = _Bar({name: _bytes_of(sources[name]) for name in todo}, progress)

    def copy(name: str) -> int | str:
        try:
            (out / targets[name]).parent.mkdir(parents=True, exist_ok=True)
            return transcode(
                sources[name],
                out / targets[name],
                **asdict(settings),
                fps=rates.get(name),
                time_limit=time_limit,
                comment=marks[name],
                on_frame=lambda done, frames: bar.advance(name, done / frames),
            ).frames
        except Exception as error:  # one bad file must not stop the others
            return getattr(error, "reason", None) or f"{type(error).__name__}: {error}"

    with contextlib.closing(_on_all_cores(copy, todo, bar)) as results:
        for name, result in results:
            if isinstance(result, int):
                written[name] = result
            else:
                bad[name] = result
                (out / targets[name]).unlink(missing_ok=True)  # a copy of an earlier version
    if labels is not None or given.videos:
        _copy_labels(given, out, targets, bad, infos)
    strays = set(find_videos(out).videos) - set(targets.values())
    return Report(
        written=[targets[name] for name in names if name in written],
        kept=[targets[name] for name in names if states[name] == "done"],
        bad=[{"path": name, "reason": bad[name]} for name in names if name in bad],
        strays=sorted(strays),
        unused_labels=[*(name for name in given.videos if name in bad), *given.gone],
        found=files,
        frames=sum(written.values()),
        seconds=bar.seconds,
    )


def _target_name(name: str) -> str:
    return name if name.lower().endswith(".mp4") else f"{name}.mp4"


def _mark(source: Path, settings: Settings, fps: float | None) -> str:
    """The mark stored in a copy: its source and its settings."""
    rate = {} if fps is None else {"fps": fps}
    return json.dumps({_MARK: _FORMAT, **asdict(settings), **rate, "source": stamp_of(source)})


def _bytes_of(source: Path) -> int:
    """The size of a file, of the part that a locator names, or of the files in a folder."""
    if source.is_file():
        return source.stat().st_size
    if (part := re.fullmatch(r".*#\d+\+(\d+)", source.name)) is not None:
        return int(part[1])
    inside = source if source.is_dir() else source.parent
    with os.scandir(inside) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


def copy_state(target: Path, mark: str) -> str:
    """ "to do", "done", or "foreign" for a video that is not a copy."""
    av = require_av()
    if not target.exists():
        return "to do"
    try:
        with av.open(str(target)) as container:
            found = container.metadata.get("comment", "")
    except av.error.FFmpegError:
        return "to do"  # nothing that could be lost
    if found == mark:
        return "done"
    return "to do" if found.startswith(f'{{"{_MARK}"') else "foreign"


def remove_leftovers(out: Path) -> None:
    """Remove half-written copies of a process that was killed."""
    for path in out.rglob(".*.part"):
        number = re.fullmatch(r"\..+\.(\d+)\.part", path.name)
        if number and not process_runs(int(number[1])):
            path.unlink(missing_ok=True)


def process_runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def _infos_for_labels(
    sources: Mapping[str, Path],
    rates: Mapping[str, float | None],
    path: str | os.PathLike,
    labels: Labels,
    time_limit: float,
    progress: bool,
) -> dict[str, VideoInfo]:
    """The videos whose labels change in a copy: crop, and times in seconds; checks both."""
    names = [name for name, entry in labels.videos.items() if "crop" in entry or in_seconds(entry)]

    def look(name: str) -> VideoInfo | None:
        try:
            return probe(sources[name], time_limit=time_limit, fps=rates.get(name))
        except VideoError:
            return None  # the video will not be copied, and the reason is reported then

    found = in_threads(look, names, "looking at sizes", progress and bool(names))
    infos, problems = {}, []
    for name, info in zip(names, found, strict=True):
        if info is None:
            continue
        infos[name] = info
        entry = labels.videos[name]
        try:
            in_frames(entry, info)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        try:
            if "crop" in entry:
                check_crop(entry["crop"], info.width, info.height)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise LabelError(listed(Path(path), problems))
    return infos


def _copy_labels(
    labels: Labels,
    out: Path,
    targets: dict[str, str],
    bad: dict[str, str],
    infos: dict[str, VideoInfo],
) -> None:
    """Write the labels of the copied videos under their new names. Frame numbers stay the same.

    Crops are in pixels of the copies. Seconds become frames, because the frames of a copy are
    evenly spaced.
    """
    videos = {}
    for name, entry in labels.videos.items():
        if name in bad:
            continue
        if name in infos:
            info = infos[name]
            entry = in_frames(entry, info)
            if "crop" in entry:
                copy = probe(out / targets[name])
                size = (info.width, info.height)
                entry["crop"] = scaled_crop(entry["crop"], size, (copy.width, copy.height))
        videos[targets[name]] = {key: entry[key] for key in entry if key != "fps"}
    content = {key: value for key, value in labels.content.items() if key != "unit"}
    data = _encoded({**content, "videos": videos})
    target = out / LABELS_NAME
    if target.is_file() and target.read_bytes() == data:
        return
    with replacing(target) as partial:
        partial.write_bytes(data)


def _encoded(content: dict[str, Any]) -> bytes:
    try:
        return f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return f"{json.dumps(content, indent=1)}\n".encode()


class _Bar:
    """Progress in input bytes, which predicts the remaining time better than counting files."""

    def __init__(self, sizes: dict[str, int], shown: bool):
        from tqdm import tqdm

        self.sizes = sizes
        self.left = dict(sizes)
        self.frames = 0
        self.stopped = False
        self.start = time.monotonic()
        self.lock = threading.Lock()
        self.bar = tqdm(
            desc="transcoding",
            total=sum(sizes.values()),
            unit="B",
            unit_scale=True,
            disable=not (shown and sizes),
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def advance(self, name: str, share: float) -> None:
        """Count one more frame of a file; `share` of the file is now done."""
        if self.stopped:
            raise InterruptedError("stopped")
        with self.lock:
            self.frames += 1
            self.bar.set_postfix_str(f"{self.frames / self.seconds:.0f} frames/s", refresh=False)
            self._move(name, int(self.sizes[name] * (1 - share)))

    def finish(self, name: str) -> None:
        with self.lock:
            self._move(name, 0)

    def _move(self, name: str, left: int) -> None:
        self.bar.update(self.left[name] - left)
        self.left[name] = left


def _on_all_cores(
    function: Callable[[str], int | str], names: list[str], bar: _Bar
) -> Iterator[tuple[str, int | str]]:
    """Yield (name, function(name)) as they finish; decoding and encoding release the Python lock.

    When the caller is interrupted, the bar stops the work within one frame.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max_workers=cores or 1)
    try:
        futures = {pool.submit(function, name): name for name in names}
        for future in as_completed(futures):
            bar.finish(futures[future])
            yield futures[future], future.result()
    finally:
        bar.stopped = True
        pool.shutdown(cancel_futures=True)
        bar.bar.close()
