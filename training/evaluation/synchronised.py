"""True alignment errors on synchronised videos: aligns windows of two views of one event.

Frame k of a video with ``sync = (group, offset)`` shows the instant (k + offset) / fps seconds of
its group, so the frame of another video of the group that shows the same instant is known.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.folders import labels_file, place, prepare
from training.evaluation.baselines import (
    TIME_INDEX,
    time_index,
)
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.encoders import TRAINED, Encoder, load_compared_encoders, row_definitions
from training.evaluation.metrics import distances, mean_of_defined
from training.evaluation.videos import known_doubts, open_index, seconds_of
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import Index, VideoRecord

NAME = "sync"
WINDOW = 0.7  # as in the measurements of the README


def evaluate_synchronised(
    run: str | Path,
    *,
    folder: str | Path | None = None,
    split: str | None = None,
    class_set: str | None = None,
    checkpoint: str | None = None,
    window: float = WINDOW,
    left_out: LeftOut | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The content of RUN/evaluation.json for ``--protocol sync``.

    Each ordered pair of videos of one group, at least one of them in the scored split, is cut to
    `windows` and scored by `pair_errors`. Phase labels are not needed.

    Args:
        run: run directory of ``python -m training.train``.
        folder: prepared folder of videos with ``sync`` (default: the run's).
        split: the scored videos (default: the run's ``data.test_split``).
        class_set: class set whose splits are used (default: the run's
            ``data.class_set``).
        checkpoint: the trained weights, see `training.runs.model.restore`.
        window: share of the common instants that each window keeps, above 0.5, so that the windows
            overlap, and below 1.
        left_out: receives the videos that cannot be read; no row includes them.

    Returns:
        ``rows`` (name -> metrics, left_out, and under ``pairs`` the same numbers pair by pair), the
        definitions as sentences, and a description of what was evaluated.
    """
    from training.evaluation.embed import features_each

    start = time.perf_counter()
    if not 0.5 < window < 1:
        raise UserError(f"the window is {window:g}; expected a share above 0.5 and below 1")
    left_out = LeftOut() if left_out is None else left_out
    encoders, cfg = load_compared_encoders(run, folder, checkpoint=checkpoint)
    weights = encoders[TRAINED].weights
    index = open_index(cfg, folder, class_set=class_set)
    split = split or cfg.data.test_split
    records = synchronised_videos(index, split)
    left_out.in_index = len(index.bad)
    pairs: dict[str, list[dict[str, Any]]] = {name: [] for name in (TIME_INDEX, *encoders)}
    without: Counter[str] = Counter()
    each = features_each(encoders, records, cfg, left_out, progress=progress)
    for _, group in itertools.groupby(each, key=lambda item: item[0].sync[0]):
        features = dict(group)
        embed = {TIME_INDEX: lambda window: time_index([window])[0]} | {
            name: _embedding(name, encoder, features) for name, encoder in encoders.items()
        }
        for a, b in compared_pairs(features, split):
            cut = windows(a, b, window)
            if not len(cut.true):
                without["pairs of videos without an instant in both windows"] += 1
                continue
            for name, one in embed.items():
                errors = pair_errors(one(cut.a), one(cut.b), cut)
                pairs[name].append({"a": a.id, "b": b.id, "instants": len(cut.true)} | errors)
    if not pairs[TIME_INDEX]:
        raise UserError(
            f"no pair of synchronised videos of {place(index)} could be compared: "
            + "; ".join([*without, *left_out.videos.values()])
        )
    kept = left_out.kept(records)
    test = [record for record in kept if record.split == split]
    rows = {
        name: {
            "metrics": {
                key: mean_of_defined(pair[key] for pair in found)
                for key in found[0]
                if key.startswith("sync_")
            },
            "per_action": {},
            "left_out": without,
            "pairs": found,
        }
        for name, found in pairs.items()
    }
    return {
        "run": str(run),
        "checkpoint": weights.checkpoint,
        "step": weights.step,
        "folder": place(index),
        "class_set": index.class_set,
        "run_class_set": index.run_class_set,
        "split": split,
        "protocol": NAME,
        "window": window,
        "videos": {"train": len(kept) - len(test), "test": len(test)},
        "actions": sorted({record.action for record in kept}),
        "groups": sorted({record.sync[0] for record in kept}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": left_out.videos,
        **known_doubts(run, test),
        "rows": rows,
        "definitions": definitions(window, len(pairs[TIME_INDEX])),
        "row_definitions": row_definitions(rows, cfg.model.backbone_share),
    }


def synchronised_videos(index: Index, test_split: str) -> list[VideoRecord]:
    """The videos of every group that has a pair to compare, group by group."""
    groups: dict[str, list[VideoRecord]] = {}
    for record in index.videos:
        if record.sync is not None:
            groups.setdefault(record.sync[0], []).append(record)
    chosen = [group for group in groups.values() if any(compared_pairs(group, test_split))]
    if not chosen:
        known = ", ".join(f"{name!r} ({len(group)})" for name, group in sorted(groups.items()))
        raise UserError(
            f"--protocol {NAME} needs two or more synchronised videos of one group, at least one "
            f"of them in the split {test_split!r}; {place(index)} has "
            f"{f'the groups {known}' if known else 'none'}. Write "
            '"sync": {"group": "trial 1", "offset": 0} for such videos in '
            f"{labels_file(index)}, frame k then shows the instant (k + offset) / fps of the "
            f"group, and run {prepare(index)}"
        )
    return [record for group in chosen for record in group]


def compared_pairs(
    records: Sequence[VideoRecord] | Mapping[VideoRecord, Any], test_split: str
) -> Iterator[tuple[VideoRecord, VideoRecord]]:
    """Ordered pairs of different videos, at least one of them in the test split."""
    for a, b in itertools.permutations(records, 2):
        if test_split in (a.split, b.split):
            yield a, b


@dataclass(frozen=True)
class Windows:
    """Two videos cut to different parts of the event, and the frames that show the same instant.

    a, b: their records, trimmed to the windows; frames outside a window are gaps. rows: int64 (n,),
    rows of a's window whose instant b's window shows. true: int64 (n,), the frames of b that show
    these instants.
    """

    a: VideoRecord
    b: VideoRecord
    rows: np.ndarray
    true: np.ndarray


def windows(a: VideoRecord, b: VideoRecord, share: float) -> Windows:
    """Of the frames whose instant both show, the first ``share`` of a and the last ``share`` of b.

    Frames in gaps do not count. If frame rates differ, a frame corresponds to the frame of the
    other video that is nearest in time, at most half a frame away.
    """
    frames, nearest = _counterparts(a, b)
    others, _ = _counterparts(b, a)
    first = frames[: round(share * len(frames))]
    last = others[len(others) - round(share * len(others)) :]
    true = nearest[: len(first)]
    both = np.isin(true, last)
    return Windows(_cut(a, first), _cut(b, last), np.flatnonzero(both), true[both])


def _counterparts(a: VideoRecord, b: VideoRecord) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a whose instant b shows, and for each the frame of b nearest in time."""
    from fastseq.video.gaps import frames_of

    frames, others = frames_of(a), frames_of(b)
    if not len(frames) or not len(others):
        return frames[:0], others[:0]
    wanted = np.round((frames + a.sync[1]) / a.fps * b.fps - b.sync[1], 6)  # so that ties stay ties
    nearest = others[np.abs(others - wanted[:, None]).argmin(axis=1)]
    shown = np.abs(nearest - wanted) <= 0.5 + 1e-6  # frame rates are rounded
    return frames[shown], nearest[shown]


def _cut(record: VideoRecord, frames: np.ndarray) -> VideoRecord:
    from fastseq.video.gaps import gaps_of

    trim = (int(frames[0]), int(frames[-1])) if len(frames) else record.trim
    outside = np.setdiff1d(np.arange(record.frames), frames)
    return replace(record, trim=trim, gaps=gaps_of(outside))


def _embedding(
    name: str, encoder: Encoder, features: Mapping[VideoRecord, Mapping[str, Any]]
) -> Callable[[VideoRecord], EmbeddedVideo]:
    """A function from a window's record to its embeddings, which computes each window once.

    The encoder's input is cut first, so positions, context and means depend only on the window.
    """
    import torch

    from fastseq.video.gaps import frames_of
    from training.evaluation.embed import embed_features

    whole = {record.id: (frames_of(record), made[name]) for record, made in features.items()}
    known: dict[tuple[str, Any], EmbeddedVideo] = {}

    def embed(window: VideoRecord) -> EmbeddedVideo:
        key = window.id, window.gaps
        if key not in known:
            frames, made = whole[window.id]
            kept = np.flatnonzero(np.isin(frames, frames_of(window)))
            part = made[:, torch.from_numpy(kept)]
            known[key] = EmbeddedVideo(window, embed_features(encoder, part, name, window.id))
        return known[key]

    return embed


def pair_errors(a: EmbeddedVideo, b: EmbeddedVideo, cut: Windows) -> dict[str, float]:
    """Errors of the frames of b's window that a's frames are matched to, see `definitions`.

    The errors by open DTW are NaN if no frame is on its path.
    """
    from training.evaluation.alignment import OUTSIDE, align, align_open

    nearest = distances(a.embeddings, b.embeddings).argmin(axis=1)
    try:
        opened = align_open(a, b).matched
    except UserError:  # all frames are equally similar
        opened = np.full(len(nearest), OUTSIDE)
    out = {}
    for key, matched in (
        ("sync_error", nearest),
        ("sync_error_dtw", align(a, b).matched),
        ("sync_error_open", opened),
    ):
        match = matched[cut.rows]
        inside = match != OUTSIDE
        found, true = b.frames[match[inside]], cut.true[inside]
        times = seconds_of(b.record, found) - seconds_of(b.record, true)
        out[key] = float(np.abs(found - true).mean()) if len(found) else np.nan
        out[f"{key}_seconds"] = float(np.abs(times).mean()) if len(found) else np.nan
    out["sync_matched_open"] = float(inside.mean())
    return out


def definitions(window: float, pairs: int) -> dict[str, str]:
    """A sentence about the protocol and one about each of its columns."""
    kept = f"{window:.0%}".replace("%", " %")
    out = {
        "protocol": (
            f"Synchronised videos: of every ordered pair of videos of one group with at least one "
            f"test video ({pairs} pairs; the other may be of any split), the first is cut to the "
            f"first {kept} of the frames whose instant both show, the second to the last {kept}, "
            "and both are embedded after that. Without the cut they would begin and end together, "
            "and the time index alone would be correct everywhere."
        ),
        "sync_error": (
            "Error by nearest frame, lower is better: every frame of the first window whose "
            "instant the second window shows is matched to the nearest embedding of the second. "
            "The error is the number of frames of the second video between that frame and the one "
            "that shows the instant: mean over frames, then pairs."
        ),
        "sync_error_dtw": (
            "The same when frames are matched by dynamic time warping from the first to the last "
            "frames of both windows."
        ),
        "sync_error_open": (
            "The same when frames are matched by dynamic time warping that may begin and end "
            "anywhere (`python -m training.align --open`); frames outside its path are not scored."
        ),
        "sync_matched_open": "Share of those frames that are on the path of open time warping.",
    }
    for key in ("sync_error", "sync_error_dtw", "sync_error_open"):
        out[f"{key}_seconds"] = "The same divided by the second video's frame rate."
    return out
