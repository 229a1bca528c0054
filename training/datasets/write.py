"""Writes a data set that was read: links or copies of its videos, and labels.json last."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.files import LABELS_NAME
from training.data.label_values import listed_names
from training.datasets.dataset import Clip, DataSet
from training.datasets.media import entry_of, make_media
from training.datasets.parse import natural
from training.support.command import INCOMPLETE, UserError, make_folder
from training.support.files import replacing

_SHOWN = 10
_ENDINGS = ("mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg")


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
    out: Path | None,
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
        out: folder for labels.json and the videos; None is possible for a dry run unless `media`
            is "none".
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
    clips = {_name(clip, media): clip for clip in data_set.clips}
    _check_names(data_set.clips, media)
    if not clips:
        raise UserError(_none_there(data_set))
    if dry_run and media != "none":
        entries = {name: entry_of(clip, name == clip.name) for name, clip in clips.items()}
        return Written(None, entries, absent=len(data_set.missing))
    out = Path(os.path.abspath(out))
    target = out / LABELS_NAME
    if target.exists() and not (overwrite or dry_run):
        raise UserError(f"{target} exists already; --overwrite replaces it")
    if media == "none":
        return _labels_alone(data_set, clips, out, dry_run)
    make_folder(out)
    results = make_media(clips, out, media, short_side, progress)
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
            entries[there] = entry_of(clip, (out / there).is_dir())
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


def _check_names(clips: Iterable[Clip], media: str) -> None:
    """UserError if two clips would get one name, or one would lie inside another."""
    taken: dict[str, Clip] = {}
    for clip in clips:
        name = _name(clip, media)
        if not name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise UserError(f"{name!r} cannot be the name of a video in the output folder")
        if name in taken:
            raise UserError(
                f"two videos would be {name} in the output folder: {_where(taken[name])} and "
                f"{_where(clip)}"
            )
        taken[name] = clip
    for name in taken:
        parent = name
        while parent := parent.rpartition("/")[0]:
            if parent in taken:
                raise UserError(f"{name} would lie inside the folder of pictures {parent}")


def _where(clip: Clip) -> str:
    return str(clip.source if clip.source is not None else clip.name)


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
        reasons: dict[str, list[str]] = {}
        for name, reason in data_set.missing.items():
            reasons.setdefault(reason, []).append(name)
        return f"none of the {len(data_set.missing)} annotated videos is there; " + "; ".join(
            f"{reason}: {listed_names(names)}" for reason, names in [*reasons.items()][:_SHOWN]
        )
    if data_set.unused:
        name, reason = next(iter(data_set.unused.items()))
        return f"all {len(data_set.unused)} videos are left out; {name}: {reason}"
    return "the data set has no videos"
