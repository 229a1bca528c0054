"""What `python -m training.prepare` prints about a folder."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.data.files import LABELS_NAME, PICTURES
from training.data.load import as_words, load_index, made_with
from training.data.names import Names, shard_of
from training.support.command import counted

if TYPE_CHECKING:
    from training.data.files import Found
    from training.data.load import Index
    from training.data.records import VideoRecord
    from training.data.transcode import Report

_SHOWN = 10
_FEW = 3
_COMMAND = "python -m training.prepare"
_UNUSED = "the video is left out"
_FAR = (
    "decoding starts long before the requested frame; `python -m training.prepare {} --transcode "
    "OUT` makes copies that decode fast"
)


class Summary:
    """Texts about a folder, its index and its copies.

    Args:
        everything: list every name instead of the first of each group.
        verify: whether every frame of the files was decoded.
    """

    def __init__(self, *, everything: bool = False, verify: bool = False):
        self.everything, self.verify = everything, verify

    def of_index(self, index: Index) -> str:
        """A summary of an index, in a few lines."""
        videos = index.videos
        frames, fps = videos.column("frames"), videos.column("fps")
        lines = [
            f"{index.folder}: {counted(len(videos), 'video')}, "
            f"{counted(int(frames.sum()), 'frame')}, "
            f"{float((frames / fps).sum()) / 3600:.2f} hours",
            f"  decoded now: {index.checked}, decoded before: {index.kept}"
            if self.verify
            else f"  checked: {index.checked} new or changed, {index.kept} unchanged",
            f"  actions: {_counts(videos.column('action'))}",
            *_labelled(index),
        ]
        special = list(videos.take(np.flatnonzero(videos.column("special"))))
        if partly := _partly_used(special):
            lines.append(f"  {partly}")
        if len(videos):
            middle = int(np.sort(frames)[len(frames) // 2])
            lines.append(f"  frames per video: {frames.min()} to {frames.max()}, median {middle}")
        notes = [(video.note, video.id) for video in special if video.note]
        lines += self._grouped(f"used in part: {counted(len(notes), 'damaged video')}", notes)
        cut = [("labels beyond the damage are ignored", name) for name in index.changed_labels]
        lines += self._grouped(
            f"labels cut to the readable frames: {counted(len(cut), 'damaged video')}", cut
        )
        far = [
            (_FAR.format(index.folder), video.id) for video in special if not video.random_access
        ]
        lines += self._grouped(f"slow to read: {counted(len(far), 'video')}", far)
        remarks = [(remark, video.id) for video in special for remark in video.remarks]
        remarked = len({name for _, name in remarks})
        lines += self._grouped(f"remarks: {counted(remarked, 'video')}", remarks)
        bad = [(entry["reason"], entry["path"]) for entry in index.bad]
        lines += self._grouped(f"left out: {counted(len(bad), 'file')}", bad)
        names = Names(index.folder, (), {})
        unused = [
            (f"{shard_of(name)} is gone" if names.shard_is_gone(name) else _UNUSED, name)
            for name in index.unused_labels
        ]
        lines += self._grouped(f"labels not used: {counted(len(unused), 'video')}", unused)
        return "\n".join(lines)

    def of_copies(self, report: Report) -> str:
        """A summary of what was copied and what was not, in a few lines."""
        speed = f", {report.frames / report.seconds:.0f} frames/s" if report.frames else ""
        lines = [f"copied: {counted(len(report.written), 'video')}, {report.frames} frames{speed}"]
        if report.kept:
            lines.append(f"copied before: {counted(len(report.kept), 'video')}")
        bad = [(entry["reason"], entry["path"]) for entry in report.bad]
        lines += self._grouped(f"not copied: {counted(len(bad), 'video')}", bad)
        unused = [(_UNUSED, name) for name in report.unused_labels]
        lines += self._grouped(f"labels not copied: {counted(len(unused), 'video')}", unused)
        strays = [("no video of this name was copied", name) for name in report.strays]
        lines += self._grouped(f"other videos in the output folder: {len(strays)}", strays)
        return "\n".join(lines)

    def of_source(self, folder: Path, found: Found) -> list[str]:
        """`of_others` below the name of the folder, where another folder is reported too."""
        lines = self.of_others(found)
        return [f"other files of {folder}:", *(f"  {line}" for line in lines)] if lines else []

    def of_others(self, found: Found) -> list[str]:
        """Lines about the files of a folder that are not used as videos."""
        from training.data.pictures import named

        lines = []
        if found.pictures:
            shown = self._named(found.pictures, _FEW, ", ...")
            lines.append(f"pictures used as videos: {len(found.pictures)} ({shown})")
        groups = defaultdict(list)
        reported = _in_sequences(found)
        for name, what in found.ignored.items():
            if name not in reported:
                groups[what].append(name)
        if groups:
            listed = [
                f"{len(names)} {what} ({self._named(names, _FEW, ', ...')})"
                for what, names in sorted(groups.items(), key=lambda item: -len(item[1]))
            ]
            lines.append(f"ignored: {', '.join(listed)}")
            if groups.keys() - {*PICTURES}:  # those are never used
                lines.append("  to use one of these as a video: --include PATTERN")
        if found.unused:
            listed = [f"{count} {ending}" for ending, count in found.unused.items()]
            lines.append(f"members of shards that are not used: {', '.join(listed)}")
        if self.everything:
            lines += [f"pictures not used: {one}" for one in found.sequences]
        else:
            lines += named(found.sequences)
        lines += [f"--include {one}: no file of this name" for one in found.unmatched]
        lines += [f"not looked into: {name}" for name in found.closed]
        return lines

    def _grouped(self, title: str, items: list[tuple[str, str]]) -> list[str]:
        if not items:
            return []
        groups = defaultdict(list)
        for reason, name in items:
            groups[reason].append(name)
        lines = [title]
        for reason, names in sorted(groups.items(), key=lambda item: -len(item[1])):
            more = f" and {len(names) - _SHOWN} more (--all lists them)"
            lines.append(f"  {reason} ({len(names)}): {self._named(names, _SHOWN, more)}")
        return lines

    def _named(self, names: Sequence[str], most: int, more: str) -> str:
        if self.everything or len(names) <= most:
            return ", ".join(names)
        return ", ".join(names[:most]) + more


def no_test_videos(folder: Path, labels: Path | None, val: int = 0) -> str:
    """What a folder without a test split is good for, and how to choose one.

    ``val``: number of val videos, which may be scored instead.
    """
    if val:
        return (
            f"no test videos, but {counted(val, 'val video')}: to score these, train with "
            "data.test_split=val, or add --split val to training.evaluate"
        )
    return (
        "no test videos: training needs none, evaluation does, and the report shows training "
        'videos instead. Choose them before training: write "split": "test" for some videos in '
        f"{labels or folder / LABELS_NAME}, or set it in "
        f"`python -m training.view {shlex.quote(str(folder))}`, and prepare again: "
        f"`{_COMMAND} {shlex.quote(str(folder))}{as_words(made_with(folder))}`"
    )


def forgotten(folder: Path, given: Container[str], words: Sequence[str]) -> list[str]:
    """A line about options of the folder's last index that a call of `prepare` does not repeat.

    Args:
        given: names of the call's options, as `made_with` names them.
        words: all words of the call.
    """
    before = made_with(folder)
    missing = as_words({name: value for name, value in before.items() if name not in given})
    if not missing:
        return []
    return [
        f"the index before had{missing}, the new one does not; to keep this: "
        f"`{_COMMAND} {shlex.join(words)}{missing}`"
    ]


def nothing_usable(bad: Sequence[Mapping[str, str]]) -> str:
    """Why a folder has no usable video, from the paths and reasons of its bad ones."""
    if not bad:
        return "no file has the extension of a video or holds one, or all are broken links"
    interlaced = any(entry["reason"].startswith("interlaced") for entry in bad)
    return "all videos are damaged" + " or interlaced" * interlaced


def _labelled(index: Index) -> list[str]:
    """Splits and the number of videos with phases, for each class set if there are several."""
    if [*index.class_sets] in ([], [""]):
        return [
            f"  splits: {_counts(index.videos.column('split'))}",
            f"  with phase labels: {index.videos.column('labelled').sum()}",
        ]
    lines = []
    for name in index.class_sets:
        videos = load_index(index.folder, class_set=name, check=False).videos
        lines.append(f"  splits of {name}: {_counts(videos.column('split'))}")
        lines.append(f"  with phase labels of {name}: {videos.column('labelled').sum()}")
    return lines


def _in_sequences(found: Found) -> set[str]:
    """The pictures of the sequences that are reported as such."""
    patterns = defaultdict(list)
    for one in found.sequences:  # "img_*.jpg (12)"
        patterns[one.folder] += [text.rpartition(" (")[0] for text in one.sequences]
    return {
        name
        for name in found.ignored
        if any(
            fnmatchcase(name.rpartition("/")[2], pattern)
            for pattern in patterns.get(name.rpartition("/")[0] or ".", ())
        )
    }


def _partly_used(videos: Sequence[VideoRecord]) -> str:
    """How many videos have a trim, a crop or a sync in their labels."""
    groups = {video.sync[0] for video in videos if video.sync}
    synchronised = sum(video.sync is not None for video in videos)
    counts = {
        "trimmed": sum(video.trim is not None for video in videos),
        "cropped": sum(video.crop is not None for video in videos),
        f"synchronised in {len(groups)} group{'s' * (len(groups) != 1)}": synchronised,
    }
    return ", ".join(f"{what}: {count}" for what, count in counts.items() if count)


def _counts(values: Iterable[str]) -> str:
    counted = sorted(Counter(values).items())
    return ", ".join(f"{name} {count}" for name, count in counted) or "none"
