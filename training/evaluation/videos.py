"""The videos to evaluate, and what puts figures on them in doubt."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.support.command import UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.data.selection import Selection


def open_index(
    cfg: Any,
    folder: str | Path | None = None,
    *,
    class_set: str | None = None,
    check: bool = True,
) -> Selection:
    """The videos of a run that its filters leave, see `training.data.selection.open_index`."""
    from training.data import selection  # only now, so that --help need not wait for torch

    return selection.open_index(cfg, folder, class_set=class_set, check=check)


def split_videos(index: Selection, split: str) -> list[VideoRecord]:
    """The videos of one split; UserError if there are none."""
    from training.data.selection import videos_of_split

    return [*videos_of_split(index, split)]


def known_doubts(run: str | Path, test: Sequence[VideoRecord]) -> dict[str, list[str]]:
    """What puts figures on the scored videos in doubt, for RUN/evaluation.json; warns on stderr.

    Returns:
        ``trained_on``: ids of the scored videos that the run was trained on; the key is absent if
        the run does not tell. ``unchecked``: ids of those whose labels are to be checked.
    """
    from training.runs.videos import trained_on

    found = {"trained_on": trained_on(run, test)}
    split = test[0].split if test else "test"
    if found["trained_on"]:
        print(
            f"warning: {len(found['trained_on'])} of {len(test)} {split} videos were trained on: "
            f"{', '.join(found['trained_on'])}; figures on them say nothing about new videos: "
            "train again without them",
            file=sys.stderr,
        )
    found["unchecked"] = [record.id for record in test if record.unchecked]
    if found["unchecked"]:
        print(
            f"warning: {len(found['unchecked'])} of {len(test)} {split} videos have labels to "
            f"be checked: {', '.join(found['unchecked'])}",
            file=sys.stderr,
        )
    return {key: ids for key, ids in found.items() if ids is not None}


def unseen_labels(cfg: Any, fractions: Sequence[float]) -> dict[str, str]:
    """Whether classifiers see labels that the training did not, as for `known_doubts`.

    Args:
        cfg: the run's configuration.
        fractions: shares of the training videos whose phases classifiers are fitted to.

    Returns:
        ``label_share``: a sentence; empty for other runs.
    """
    options = cfg.loss.classification
    if not options.weight:
        return {}
    if options.label_videos is not None:
        some = f"the first {options.label_videos} labelled videos of each action"
        advice = "--few-shot draws numbers of videos"
    elif options.label_share < fractions[-1]:
        some = f"a share {options.label_share:g} of the labelled videos of each action"
        advice = f"--fractions {options.label_share:g} uses the same share"
    else:
        return {}
    text = (
        f"the run was trained on the labels of {some}, and the classifiers of this evaluation are "
        f"fitted to a share {fractions[-1]:g} of the training videos; {advice}"
    )
    print(f"warning: {text}", file=sys.stderr)
    return {"label_share": text}


def videos_digest(index: Selection, splits: Sequence[str]) -> str:
    """A digest of what a table depends on, apart from the weights.

    It covers the id, split, action, view, usable frames, synchronisation and phases of every video
    in the splits.
    """
    digest = hashlib.sha256()
    for one in sorted(index.videos, key=lambda record: record.id):
        if one.split in splits:
            facts = (one.id, one.split, one.action, one.view, one.frames, one.gaps, one.sync)
            digest.update(repr(facts).encode())
            digest.update(b"" if one.phases is None else one.phases.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def usable_range(record: VideoRecord) -> tuple[int, int]:
    """First and last frame of the video's trim, or of the whole video without a trim."""
    return getattr(record, "trim", None) or (0, record.frames - 1)


def seconds_of(record: VideoRecord, frames: Any) -> np.ndarray:
    """Presentation times of frames in seconds from the first frame, float64 of the frames' shape.

    frames: frame numbers in the video, from 0; the number of frames stands for the video's end.
    """
    from fastseq.video.items import times_of  # loads torch: after --help

    frames = np.asarray(frames)
    shown = np.minimum(frames, record.frames - 1)
    return times_of(record, shown) + (frames - shown) / record.fps


def require_some(kept: Sequence[VideoRecord], split: str, folder: str | Path) -> None:
    """UserError if no video of a split could be read; each was named before.

    ``folder``: where the videos are, for the message; `training.data.folders.place`.
    """
    if not kept:
        raise UserError(
            f"none of the videos in the split {split!r} of {folder} can be read: "
            "`python -m training.prepare FOLDER --verify` says why"
        )
