"""The annotated segments of untrimmed videos, and the JSON files in which others read them.

``anet_anno.json`` has the layout of mmaction2's ActivityNetDataset and of the BMN repository:

    {"v_ID": {"duration_second": 211.5, "duration_frame": 6337, "feature_frame": 6337, "fps": 30.0,
              "rfps": 30.0, "subset": "training",
              "annotations": [{"segment": [30.0, 205.2], "label": "Rock climbing"}]}}

Times are in seconds. ``feature_frame`` is the number of frames that the features cover: all of
them. "subset" is what the BMN repository reads; mmaction2 ignores it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from training.support.command import UserError
from training.support.files import file_name, write_json, write_text

if TYPE_CHECKING:
    from training.data.index import VideoRecord

FILE_NAME = "anet_anno.json"
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
_FORMS = {
    "duration_second": "a number of seconds above 0",
    "duration_frame": "a number of frames above 0, or absent",
    "feature_frame": "a number of frames above 0, or absent",
    "subset": '"training", "validation" or "testing"',
    "annotations": 'a list of {"segment": [start, end], "label": name} in seconds',
}


@dataclass(frozen=True, eq=False)
class Annotated:
    """An untrimmed video and its segments.

    Attributes:
        name: "v_ID", as the files of the features are named.
        seconds, frames: length of the video.
        split: "train", "val" or "test".
        segments: float64 (n, 2), start and end in seconds, by start.
        labels: class of each segment.
    """

    name: str
    seconds: float
    frames: int
    split: str
    segments: np.ndarray
    labels: tuple[str, ...]

    @property
    def shares(self) -> np.ndarray:
        """float64 (n, 2): the segments as shares of the video's length, clipped to [0, 1]."""
        return np.clip(self.segments / self.seconds, 0.0, 1.0)


def video_names(ids: Iterable[str]) -> dict[str, str]:
    """The id of each video -> "v_ID", its name in files of features and annotations.

    ID is the name of the video's file without folders and ending, so it is ActivityNet's for
    v1-3/train_val/v_ID.mp4. A "v_" in front is kept, otherwise it is added: mmaction2 and the BMN
    repository remove it again. Videos that would have one name are named by their whole paths
    instead, with %2F between folders: v_a%2Fx and v_b%2Fx.

    Raises:
        UserError: two videos differ in their endings alone.
    """
    paths = {one: PurePosixPath(one).with_suffix("") for one in ids}
    short = {one: _prefixed(file_name(path.name)) for one, path in paths.items()}
    count = Counter(short.values())
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for one, path in paths.items():
        shared = count[short[one]] > 1
        name = _prefixed(file_name(path.as_posix())) if shared else short[one]
        if name in owners:
            raise UserError(f"{owners[name]} and {one} would both be written as {name}; rename one")
        names[one], owners[name] = name, one
    return names


def _prefixed(name: str) -> str:
    return name if name.startswith("v_") else f"v_{name}"


def annotate(record: VideoRecord, classes: Mapping[str, Sequence[str]], name: str) -> Annotated:
    """The segments of a video by the phases of its frames.

    A segment is a run of frames of one phase: from the time of its first frame to the time of the
    frame after its last one. So two segments of one phase without a frame between them are one.
    The label is the name of the phase, and "ACTION: PHASE" if the folder has several actions.

    Args:
        classes: the names of the phases of each action.
        name: of `video_names`.
    """
    from training.evaluation.videos import seconds_of

    end = float(seconds_of(record, record.frames))
    segments, labels = np.zeros((0, 2)), []
    if record.phases is not None and record.frames:
        phases = np.asarray(record.phases)
        edges = np.flatnonzero(np.diff(phases)) + 1
        first, stop = np.append(0, edges), np.append(edges, len(phases))
        kept = phases[first] >= 0
        segments = np.stack([seconds_of(record, x) for x in (first[kept], stop[kept])], axis=1)
        prefix = f"{record.action}: " if len(classes) > 1 else ""
        labels = [prefix + classes[record.action][phase] for phase in phases[first[kept]]]
    return Annotated(name, end, record.frames, record.split, segments, tuple(labels))


def write_annotations(folder: Path, videos: Sequence[Annotated]) -> list[str]:
    """Write the annotations of videos with segments; returns the names of the files.

    anet_anno.json has all of them, anet_anno_train.json, _val and _test those of a split, as
    mmaction2's process_annotations.py writes them (a file of an earlier call for a split that has
    none now is removed); video_info_new.csv is the table of the BMN
    repository; activity_net.json is in the form of activity_net.v1-3.min.json, the ground truth of
    ActivityNet's evaluation code.
    """
    annotated = [video for video in videos if len(video.segments)]
    whole = {video.name: _entry(video) for video in annotated}
    written: dict[str, dict[str, Any]] = {}
    for split, subset in SUBSETS.items():
        part = {name: entry for name, entry in whole.items() if entry["subset"] == subset}
        if part:
            written[f"anet_anno_{split}.json"] = part
        else:
            (folder / f"anet_anno_{split}.json").unlink(missing_ok=True)
    written["activity_net.json"] = {
        "version": "VERSION 1.3",
        "taxonomy": [],
        "database": {
            name.removeprefix("v_"): {
                "subset": entry["subset"],
                "duration": entry["duration_second"],
                "resolution": "",
                "url": "",
                "annotations": entry["annotations"],
            }
            for name, entry in whole.items()
        },
    }
    for name, content in written.items():
        write_json(folder / name, content)
    rows = ["video,numFrame,seconds,fps,rfps,subset,featureFrame"]
    for name, one in whole.items():
        numbers = (one["duration_frame"], one["duration_second"], one["fps"], one["rfps"])
        cells = [name, *map(str, numbers), one["subset"], str(one["feature_frame"])]
        rows.append(",".join(cells))
    write_text(folder / "video_info_new.csv", "\n".join(rows) + "\n")
    write_json(folder / FILE_NAME, whole)  # last: localise needs it, so the others are complete
    return [FILE_NAME, *written, "video_info_new.csv"]


def _entry(video: Annotated) -> dict[str, Any]:
    fps = round(video.frames / video.seconds, 6)
    return {
        "duration_second": round(video.seconds, 6),
        "duration_frame": video.frames,
        "feature_frame": video.frames,
        "fps": fps,
        "rfps": fps,
        "subset": SUBSETS[video.split],
        "annotations": [
            {"segment": [round(float(t), 6) for t in segment], "label": label}
            for segment, label in zip(video.segments, video.labels, strict=True)
        ],
    }


def read_annotations(path: Path) -> list[Annotated]:
    """Read a file of the layout of anet_anno.json with "subset".

    Raises:
        UserError: the file is not JSON, or an entry has another form; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object of videos, got {type(content).__name__}")
    splits = {subset: split for split, subset in SUBSETS.items()}
    videos = []
    for name, entry in content.items():
        key = _wrong_key(entry)
        if key:
            given = entry.get(key) if isinstance(entry, dict) else entry
            raise UserError(f"{path}: {name}: {key} must be {_FORMS[key]}, got {given!r:.80}")
        given = entry["annotations"]
        order = sorted(range(len(given)), key=lambda i: given[i]["segment"])
        seconds = entry["duration_second"]
        if {"feature_frame", "duration_frame"} <= {*entry}:
            # Features of other projects may stop before the end.
            seconds *= entry["feature_frame"] / entry["duration_frame"]
        videos.append(
            Annotated(
                name,
                float(seconds),
                int(entry.get("duration_frame", 0)),
                splits[entry["subset"]],
                np.array([given[i]["segment"] for i in order], dtype=np.float64).reshape(-1, 2),
                tuple(given[i]["label"] for i in order),
            )
        )
    return videos


def _wrong_key(entry: Any) -> str:
    """The first key of an entry whose value has another form; empty if there is none."""
    if not isinstance(entry, dict):
        return "annotations"
    for key in ("duration_second", "duration_frame", "feature_frame"):
        value = entry.get(key, 1 if key != "duration_second" else None)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            return key
    if entry.get("subset") not in SUBSETS.values():
        return "subset"
    given = entry.get("annotations")
    for one in given if isinstance(given, list) else [None]:
        times = one.get("segment") if isinstance(one, dict) else None
        numbers = isinstance(times, list) and [type(t) in (int, float) for t in times] == [True] * 2
        if not numbers or not times[0] < times[1] or not isinstance(one.get("label"), str):
            return "annotations"
    return ""
