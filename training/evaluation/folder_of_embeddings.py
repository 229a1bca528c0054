"""Evaluation of a folder of npz files with frame embeddings of any origin."""

from __future__ import annotations

import difflib
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.label_values import SPLITS
from training.evaluation.baselines import TIME_INDEX, TIME_INDEX_DEFINITION, time_index
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.frame_level import described, has_labels
from training.evaluation.scores import evaluate_embeddings
from training.support.command import LeftOut, UserError
from training.support.files import read_npz

if TYPE_CHECKING:
    from training.data.index import VideoRecord

EMBEDDINGS = "embeddings"
EMBEDDINGS_DEFINITION = "The embeddings of the files, scaled to unit length."
_FPS = 25.0  # frames per second where a file states none, as for folders of pictures
_MAX_FRAMES = 10_000_000  # 46 hours at 60 frames per second; a video's labels are 8 bytes a frame
_MAX_PHASES = 10_000  # arrays of the metrics have a place for each phase number
_READ = ("embeddings", "id", "frames")  # arrays that are read with records of the videos, too
_LABELS = ("phases", "action", "split", "view", "fps")


def has_npz(folder: Path) -> bool:
    """Whether a folder or one below it has an npz file."""
    return folder.is_dir() and next(folder.rglob("*.npz"), None) is not None


def evaluate_folder(
    folder: str | Path,
    *,
    folder_of_videos: str | Path | None = None,
    split: str | None = None,
    class_set: str | None = None,
    left_out: LeftOut | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The content of FOLDER/evaluation.json: the time index and the embeddings as rows.

    Args:
        folder: folder of npz files, see `read_folder`.
        folder_of_videos: prepared folder whose records have the labels, actions and splits of the
            videos (default: the files have them).
        split: the scored videos (default "test"); classifiers are fitted to the split "train".
        class_set: class set of ``folder_of_videos``.
        left_out: receives the number of files that were left out when ``folder_of_videos`` was
            prepared.
        options: see `evaluate_embeddings`.
    """
    start = time.perf_counter()
    folder, scored = Path(folder), split or "test"
    classes: Mapping[str, Sequence[str]] = {}
    without: dict[str, str] = {}
    if folder_of_videos is None:
        if class_set is not None:
            raise UserError("--class-set names phases of a prepared folder: add --folder")
        videos = read_folder(folder)
    else:
        from training.data.index import load_index
        from training.support.command import counted

        index = load_index(folder_of_videos, class_set=class_set)
        classes, class_set = index.classes, index.class_set
        videos = read_folder(folder, {record.id: record for record in index.videos})
        if left_out is not None:
            left_out.in_index = len(index.bad)
        without = _without_file(index.videos, videos, ("train", scored))
        if without:
            have, are = ("has", "is") if len(without) == 1 else ("have", "are")
            names = f"{', '.join([*without][:8])}{', ...' * (len(without) > 8)}"
            print(
                f"warning: {counted(len(without), 'video')} of {folder_of_videos} {have} no file "
                f"in {folder} and {are} left out: {names}",
                file=sys.stderr,
            )
    parts = [[one for one in videos if one.record.split == name] for name in ("train", scored)]
    for name, part in zip(("train", scored), parts, strict=True):
        _check_split(folder, name, part, videos, folder_of_videos)
    train, test = parts

    def row(train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> dict[str, Any]:
        return evaluate_embeddings(train, test, classes, **options)

    clock = {one.record.id: one for one in time_index([one.record for one in videos])}
    rows = {
        TIME_INDEX: row(*([clock[one.record.id] for one in part] for part in parts)),
        EMBEDDINGS: row(train, test),
    }
    records = [one.record for one in test]
    return {
        "run": str(folder),
        "folder": str(folder_of_videos or folder),
        "class_set": class_set or "",
        "run_class_set": class_set or "",
        "split": scored,
        "videos": {"train": len(train), "test": len(test)},
        "actions": sorted({record.action for record in records}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": without,
        "rows": rows,
        **described(records, options),
        "row_definitions": {
            TIME_INDEX: TIME_INDEX_DEFINITION,
            EMBEDDINGS: EMBEDDINGS_DEFINITION,
        },
    }


def _without_file(
    records: Sequence[VideoRecord], videos: Sequence[EmbeddedVideo], splits: Sequence[str]
) -> dict[str, str]:
    """Id -> reason of the records of these splits that no file belongs to."""
    there = {video.record.id for video in videos}
    return {
        record.id: "it has no npz file"
        for record in records
        if record.split in splits and record.id not in there
    }


def read_folder(
    folder: str | Path, records: Mapping[str, VideoRecord] | None = None
) -> list[EmbeddedVideo]:
    """The videos of a folder's npz files, also in folders below it, sorted by path.

    A file has one array that is required, and others with defaults:

    - ``embeddings``: float (n, E), one row per frame, scaled here to unit length.
    - ``phases``: int (n,), the frames' phases below 10,000, -1 = unlabelled (default: no labels).
    - ``frames``: int (n,), the frames' numbers in the video, ascending and below 10,000,000
      (default: 0 to n - 1).
    - ``id``, ``action``, ``view``: strings (defaults: the file's path without ending, "all", "").
    - ``split``: "train", "val" or "test" (default "train").
    - ``fps``: frames per second (default 25).

    Arrays of other names are ignored, unless the name is nearly one of these. A warning on stderr
    names the rows of embeddings that are all zeros.

    Args:
        records: id -> record of the video; then all but ``embeddings`` and ``id`` are the records'.

    Raises:
        UserError: the folder has no such file, or a file has other content.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*.npz") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder} has no npz file; `python -m training.extract` writes such files")
    videos = [_read(path, folder, records) for path in paths]
    sizes = {one.embeddings.shape[1]: path for one, path in zip(videos, paths, strict=True)}
    if len(sizes) > 1:
        (a, first), (b, second) = [*sizes.items()][:2]
        raise UserError(
            f"{first} has {a} numbers per embedding and {second} has {b}; all need the same number"
        )
    twice = [name for name, count in Counter(v.record.id for v in videos).items() if count > 1]
    if twice:
        raise UserError(f"two files of {folder} have the id {twice[0]!r}; each video needs one")
    _warn_of_zeros(paths, videos)
    return videos


def _warn_of_zeros(paths: Sequence[Path], videos: Sequence[EmbeddedVideo]) -> None:
    """One line on stderr about the rows of embeddings that have no direction."""
    rows = [
        f"row {row} of {path}"
        for path, video in zip(paths, videos, strict=True)
        for row in np.flatnonzero(~video.embeddings.any(axis=1))
    ]
    if rows:
        print(
            "warning: embeddings that are all zeros have no direction, so their cosine similarity "
            f"to every embedding is 0: {', '.join(rows[:8])}"
            f"{f' and {len(rows) - 8} more' * (len(rows) > 8)}",
            file=sys.stderr,
        )


def _check_names(found: Mapping[str, np.ndarray], known: Sequence[str], path: Path) -> None:
    """UserError if an array that would be ignored has nearly the name of one that is missing."""
    missing = [name for name in known if name not in found]
    for name in found:
        near = difflib.get_close_matches(name.strip().lower(), missing, 1, 0.85)
        if name not in known and near:
            raise UserError(
                f"{path}: unknown array {name!r}; did you mean {near[0]!r}? Rename the array, so "
                "that it is read, or give it a name that is less similar"
            )


def _read(path: Path, folder: Path, records: Mapping[str, VideoRecord] | None) -> EmbeddedVideo:
    try:
        found = read_npz(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no npz file of arrays without objects ({error})") from error
    _check_names(found, _READ if records is not None else (*_READ, *_LABELS), path)
    if "embeddings" not in found:
        raise UserError(f"{path} has no array 'embeddings', only {', '.join(found) or 'nothing'}")
    x = found["embeddings"]
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: embeddings must be numbers (frames, dimensions), got {x.dtype} {x.shape}"
        )
    if not np.isfinite(x).all():
        raise UserError(f"{path}: embeddings contain NaN or infinity")
    length = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    unit = (x / np.maximum(length, 1e-12)).astype(np.float32)
    name = _text(found, "id", path.relative_to(folder).as_posix().removesuffix(".npz"), path)
    if records is None:
        return EmbeddedVideo(_record(path, name, found, len(x)), unit)
    record = records.get(name)
    if record is None:
        raise UserError(
            f"{path}: the prepared folder has no video {name!r}; name the file as the video, or "
            "write its id into the array 'id'"
        )
    video = EmbeddedVideo(record, unit)
    if len(video.frames) != len(x):
        raise UserError(
            f"{path} has {len(x)} embeddings, and {name} has {len(video.frames)} usable frames; "
            "one per frame is needed"
        )
    frames = _integers(found, "frames", len(x), path)
    if frames is not None and not np.array_equal(frames, video.frames):
        raise UserError(
            f"{path} has embeddings of other frames than the usable ones of {name}, whose trim or "
            "gaps have changed since: embed it again"
        )
    return video


def _record(path: Path, name: str, found: Mapping[str, np.ndarray], count: int) -> VideoRecord:
    from fastseq.video.gaps import gaps_of
    from training.data.index import VideoRecord

    frames = _integers(found, "frames", count, path)
    frames = np.arange(count) if frames is None else frames
    if frames[0] < 0 or (np.diff(frames) <= 0).any():
        raise UserError(f"{path}: frames must be ascending numbers from 0, got {frames[:5]}...")
    if frames[-1] >= _MAX_FRAMES:
        raise UserError(
            f"{path}: frames must be numbers of frames below {_MAX_FRAMES:,}, got {frames[-1]}; "
            "number the frames of the video from 0"
        )
    phases = _integers(found, "phases", count, path)
    total = int(frames[-1]) + 1
    if phases is not None:
        if phases.min() < -1:
            raise UserError(f"{path}: phases must be -1 or more, got {phases.min()}")
        if phases.max() >= _MAX_PHASES:
            raise UserError(
                f"{path}: phases must be numbers below {_MAX_PHASES:,}, got {phases.max()}; number "
                "the phases from 0"
            )
        phases, given = np.full(total, -1, dtype=np.int64), phases
        phases[frames] = given
    fps = found.get("fps", np.array(_FPS))
    if fps.size != 1 or fps.dtype.kind not in "fiu" or not 0 < fps.item() < np.inf:
        got = f"the string {fps.item()!r}" if fps.size == 1 and fps.dtype.kind == "U" else f"{fps}"
        raise UserError(f"{path}: fps must be one positive number, got {got}")
    split = _text(found, "split", "train", path)
    if split not in SPLITS:
        raise UserError(f"{path}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    present = set(frames.tolist())
    return VideoRecord(
        id=name,
        path=str(path),
        frames=total,
        fps=float(fps.item()),
        width=0,
        height=0,
        action=_text(found, "action", "all", path),
        split=split,
        view=_text(found, "view", "", path),
        phases=phases,
        gaps=gaps_of(frame for frame in range(total) if frame not in present),
    )


def _integers(
    found: Mapping[str, np.ndarray], key: str, count: int, path: Path
) -> np.ndarray | None:
    values = found.get(key)
    if values is None:
        return None
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {key} must be {count} integers, one for each embedding, got {values.dtype} "
            f"{values.shape}"
        )
    return values.astype(np.int64)


def _text(found: Mapping[str, np.ndarray], key: str, default: str, path: Path) -> str:
    value = found.get(key, np.array(default))
    if value.size != 1 or value.dtype.kind != "U":
        raise UserError(f"{path}: {key} must be one string, got {value.dtype} {value.shape}")
    return str(value.item())


def _check_split(
    folder: Path,
    split: str,
    part: Sequence[EmbeddedVideo],
    videos: Sequence[EmbeddedVideo],
    prepared: str | Path | None,
) -> None:
    """UserError unless the videos of a split have labels."""
    where = f"labels.json of {prepared}" if prepared else "the array 'split' of the files"
    if not part:
        splits = ", ".join(sorted({video.record.split for video in videos}))
        raise UserError(
            f"{folder} has no video in the split {split!r}, only in {splits}: write 'train' for "
            f"the videos that classifiers are fitted to and 'test' for the scored ones into {where}"
        )
    if not has_labels([video.record for video in part]):
        where = (
            f"label the videos of {prepared}"
            if prepared
            else ("add the array 'phases' to the files, or name a prepared folder with --folder")
        )
        raise UserError(f"no video of {folder} in the split {split!r} has phases: {where}")
