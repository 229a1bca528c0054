"""Writes a data set that was read: links or copies of its videos, and labels.json last."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from training.data.files import LABELS_NAME
from training.data.threads import in_threads
from training.data.transcode import _remove_leftovers, _runs, _state
from training.datasets.dataset import Clip, DataSet
from training.datasets.parse import natural
from training.support.command import INCOMPLETE, UserError, make_folder
from training.support.files import replacing

_SHOWN = 10
_FORMAT = 1  # raise by one when copies change: those of earlier calls are then made again
_ENDINGS = ("mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg")
_UNFINISHED = ".pictures"


@dataclass(frozen=True)
class Written:
    """The result of writing a data set.

    Attributes:
        labels: the labels file; None after a dry run.
        entries: name -> entry of the labels file.
        made: number of videos linked, written or copied now; kept: those of an earlier call.
        failed: name -> reason, for clips that could not be linked, written or copied.
        absent: number of annotated videos that are missing.
    """

    labels: Path | None
    entries: dict[str, dict[str, Any]]
    made: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    absent: int = 0

    @property
    def status(self) -> int:
        """The command's exit status: 3 if annotated videos are missing or failed, else 0."""
        return INCOMPLETE if self.failed or self.absent else 0


def check_out(source: Path, out: Path, media: str, replace_labels: bool) -> None:
    """UserError if labels.json must not be written to `out`, before the data set is read."""
    source, out = source.resolve(), out.resolve()
    if media != "none" and source.is_dir() and out.is_relative_to(source):
        raise UserError(
            f"{out} lies in the data set {source}, which stays unchanged; choose another --out, or "
            "--media none to write labels.json alone"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder; choose another --out")
    if (out / LABELS_NAME).exists() and not replace_labels:
        raise UserError(
            f"{out / LABELS_NAME} exists already; --overwrite replaces it, or choose another --out"
        )


def write_data_set(
    data_set: DataSet,
    out: Path,
    media: str = "link",
    dry_run: bool = False,
    progress: bool = False,
    *,
    overwrite: bool = False,
    short_side: int = 256,
) -> Written:
    """Write the videos of a data set and FOLDER/labels.json, which appears last and whole.

    A second call continues after an interruption: links, pictures and copies that are there
    already are kept. Nothing that is there is replaced, except copies whose source has changed.

    Args:
        out: folder for labels.json and the videos.
        media: "link": absolute symbolic links to files and folders of pictures; clips with a cut
            become files, clips with `pictures` become folders of 000001.jpg, 000002.jpg, ...
            "transcode": H.264 files (`fastseq.video.transcode`), NAME.mp4. "none": no videos;
            entries are written for clips whose video is in `out`, whatever its extension.
        dry_run: write nothing.
        progress: show a bar.
        overwrite: replace an existing labels.json.
        short_side: pixels of the shorter side of copies and cuts at most; default 256, as
            `fastseq.video.transcode`.
    Raises:
        UserError: two clips have the same name, `out` has another file of such a name, labels.json
            exists, or no annotated video is there.
    """
    from fastseq.video.transcoding import check_settings

    try:
        check_settings(short_side, 16, 20)
    except ValueError as error:
        raise UserError(f"--short-side: {error}") from error
    out = Path(os.path.abspath(out))
    clips = {_name(clip, media): clip for clip in data_set.clips}
    _check_names(data_set.clips, media)
    target = out / LABELS_NAME
    if target.exists() and not (overwrite or dry_run):
        raise UserError(f"{target} exists already; --overwrite replaces it")
    if not clips:
        raise UserError(_none_there(data_set))
    if media == "none":
        return _labels_alone(data_set, clips, out, dry_run)
    if dry_run:
        entries = {name: _entry(clip, name == clip.name) for name, clip in clips.items()}
        return Written(None, entries, absent=len(data_set.missing))
    make_folder(out)
    _check_collisions(clips, out)
    _remove_unfinished(out)

    maker = _Maker(out, short_side)

    def make(name: str) -> tuple[str, dict[str, Any]]:
        try:
            return maker.make(name, clips[name], media)
        except UserError:
            raise
        except Exception as error:  # one bad video must not stop the others
            return getattr(error, "reason", None) or f"{type(error).__name__}: {error}", {}

    results = dict(zip(clips, in_threads(make, clips, "videos", progress), strict=True))
    failed = {name: how for name, (how, _) in results.items() if how not in ("made", "kept")}
    entries = {name: entry for name, (_, entry) in results.items() if name not in failed}
    if not entries:
        name, reason = next(iter(failed.items()))
        raise UserError(f"none of the {len(clips)} videos could be written; {name}: {reason}")
    _write_labels(target, data_set, entries)
    counts = Counter(how for how, _ in results.values())
    return Written(
        target, entries, counts["made"], counts["kept"], failed, absent=len(data_set.missing)
    )


def _labels_alone(
    data_set: DataSet, clips: Mapping[str, Clip], out: Path, dry_run: bool
) -> Written:
    entries, failed = {}, {}
    for name, clip in clips.items():
        there = _there(out, name)
        if there is None:
            failed[name] = f"no such video in {out}"
        elif there in entries:
            raise UserError(f"{there} in {out} belongs to two annotated videos; {name} is one")
        else:
            entries[there] = _entry(clip, (out / there).is_dir())
    if not entries:
        raise UserError(
            f"none of the {len(clips)} annotated videos is in {out}, such as {next(iter(clips))}; "
            "copy or link the videos there first, or leave out --media none"
        )
    if not dry_run:
        make_folder(out)
        _write_labels(out / LABELS_NAME, data_set, entries)
    return Written(
        None if dry_run else out / LABELS_NAME,
        entries,
        failed=failed,
        absent=len(data_set.missing),
    )


def _there(out: Path, name: str) -> str | None:
    """The name of a clip's video in `out`: its own, or the same with another extension."""
    if (out / name).exists():
        return name
    path = PurePosixPath(name)
    bare = path.with_suffix("") if path.suffix[1:].lower() in _ENDINGS else path
    for candidate in (bare, *(bare.with_name(f"{bare.name}.{ending}") for ending in _ENDINGS)):
        if (out / candidate).exists():
            return candidate.as_posix()
    return None


def _name(clip: Clip, media: str) -> str:
    """The clip's name in the output folder."""
    if media == "transcode" or (clip.cut is not None and media != "none"):
        return clip.name if clip.name.lower().endswith(".mp4") else f"{clip.name}.mp4"
    return clip.name


def _entry(clip: Clip, pictures: bool) -> dict[str, Any]:
    """The clip's entry; with the rate, if its video in the output folder is pictures."""
    return {**clip.entry, "fps": clip.fps} if pictures and clip.fps else dict(clip.entry)


def _check_names(clips: Iterable[Clip], media: str) -> None:
    """UserError if two clips would get one name, or one would lie inside another."""
    taken: dict[str, Clip] = {}
    for clip in clips:
        name = _name(clip, media)
        parts = PurePosixPath(name).parts
        if not name or name != PurePosixPath(name).as_posix() or ".." in parts or name[0] == "/":
            raise UserError(f"{name!r} cannot be the name of a video in the output folder")
        if name in taken:
            raise UserError(
                f"two videos would be {name} in the output folder: {_where(taken[name])} and "
                f"{_where(clip)}"
            )
        taken[name] = clip
    for name in taken:
        for parent in PurePosixPath(name).parents:
            if parent.as_posix() in taken:
                raise UserError(f"{name} would lie inside the folder of pictures {parent}")


def _where(clip: Clip) -> str:
    return str(clip.source if clip.source is not None else clip.name)


def _check_collisions(clips: Mapping[str, Clip], out: Path) -> None:
    """UserError if another file has the name of a link to be made."""
    problems = []
    for name, clip in clips.items():
        if clip.source is None or clip.cut is not None or name != clip.name:
            continue  # files and folders that are made know their own
        target = out / name
        if os.path.lexists(target) and not _same(target, clip.source):
            problems.append(name)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"{out} has other files of the same name: {', '.join(problems[:_SHOWN])}{more}; remove "
            "them, or choose another --out"
        )


def _same(target: Path, source: Path) -> bool:
    try:
        return target.samefile(source)
    except OSError:  # a broken link
        return False


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
        entry = _entry(clip, True)
        if clip.pictures is not None:
            return _pictures(target, clip), entry
        if os.path.lexists(target):
            return "kept", entry
        target.symlink_to(clip.source.resolve())
        return "made", entry

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
            }
        )
        state = _state(target, mark)
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
    _remove_leftovers(out)
    for folder in out.rglob(f".*{_UNFINISHED}"):
        number = folder.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        if number.isdigit() and not _runs(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _write_labels(target: Path, data_set: DataSet, entries: Mapping[str, Any]) -> None:
    classes: dict[str, Any] = {"classes": data_set.classes}
    if data_set.class_sets:
        classes = {"class_sets": data_set.class_sets}
    content = {**classes, "videos": {name: entries[name] for name in natural(entries)}}
    with replacing(target) as partial, open(partial, "w", encoding="utf-8") as file:
        # One video a line: short enough to read, and fast for 200,000 videos.
        file.write(_lines(content))


def _lines(content: dict[str, Any]) -> str:
    parts = [
        f" {json.dumps(key)}: {{\n"
        + ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content[key].items()
        )
        + "\n }"
        for key in content
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _none_there(data_set: DataSet) -> str:
    if data_set.missing:
        name, reason = next(iter(data_set.missing.items()))
        return f"none of the {len(data_set.missing)} annotated videos is there; {name}: {reason}"
    if data_set.unused:
        name, reason = next(iter(data_set.unused.items()))
        return f"all {len(data_set.unused)} videos are left out; {name}: {reason}"
    return "the data set has no videos"
