"""The videos to evaluate: the index of a folder, and the videos of one split."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.support.command import UserError

if TYPE_CHECKING:
    from training.data.index import Index, VideoRecord


def open_index(cfg: Any, folder: str | Path | None) -> Index:
    """The index of ``folder``, or of the folder that the run was trained on."""
    from training.data.index import load_index

    return load_index(folder or cfg.data.folder)


def split_videos(index: Index, split: str) -> list[VideoRecord]:
    """The videos of one split; UserError if there are none."""
    records = [record for record in index.videos if record.split == split]
    if not records:
        if not index.videos:
            raise UserError(
                f"{index.folder} has no video that can be read; "
                f"`python -m training.prepare {index.folder}` says why"
            )
        splits = ", ".join(sorted({record.split for record in index.videos}))
        raise UserError(
            f"{index.folder} has no videos in the split {split!r}, only in {splits}; write "
            f'"split": "{split}" for some of them in {Path(index.folder) / "labels.json"} and run '
            f"`python -m training.prepare {index.folder}`"
        )
    return records


def known_doubts(run: str | Path, test: Sequence[VideoRecord]) -> dict[str, list[str]]:
    """What puts figures on the test videos in doubt, for RUN/evaluation.json; warns on stderr.

    Returns:
        ``trained_on``: ids of the test videos that the run was trained on; the key is absent if the
        run does not tell. ``unchecked``: ids of those whose labels are to be checked.
    """
    from training.runs.videos import trained_on

    found = {"trained_on": trained_on(run, test)}
    if found["trained_on"]:
        print(
            f"warning: {len(found['trained_on'])} of {len(test)} test videos were trained on: "
            f"{', '.join(found['trained_on'])}; figures on them say nothing about new videos: "
            "train again without them",
            file=sys.stderr,
        )
    found["unchecked"] = [record.id for record in test if record.unchecked]
    if found["unchecked"]:
        print(
            f"warning: {len(found['unchecked'])} of {len(test)} test videos have labels to be "
            f"checked: {', '.join(found['unchecked'])}",
            file=sys.stderr,
        )
    return {key: ids for key, ids in found.items() if ids is not None}


def usable_range(record: VideoRecord) -> tuple[int, int]:
    """First and last frame of the video's trim, or of the whole video without a trim."""
    return getattr(record, "trim", None) or (0, record.frames - 1)


def require_some(kept: Sequence[VideoRecord], split: str, folder: Path) -> None:
    """UserError if no video of a split could be read; each was named before."""
    if not kept:
        raise UserError(
            f"none of the videos in the split {split!r} of {folder} can be read: "
            f"`python -m training.prepare {folder} --verify` says why"
        )
