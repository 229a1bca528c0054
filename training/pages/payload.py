"""What the player of a page embeds: pictures, embeddings, alignments and events of some videos."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.evaluation.alignment import OUTSIDE, Alignment, align, stretched
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.events import events_of
from training.evaluation.metrics import labelled_video
from training.evaluation.plots import largest_directions, principal_components
from training.evaluation.videos import seconds_of
from training.pages.thumbnails import thumbnails

MOST_ROWS = 600  # a video
MOST_STEPS = 1200  # points a path
# Of all videos, before base64, which adds a third: 15 MB of a page, so that a report of 8 videos
# stays below 20 MB.
PICTURE_BYTES = 9_000_000
EMBEDDING_BYTES = 2_500_000
_SCALE = 32767  # of int16


def payload(
    videos: Sequence[EmbeddedVideo],
    classes: Mapping[str, Sequence[str]],
    *,
    start: tuple[int, int],
    alignments: Mapping[tuple[int, int], Alignment] | None = None,
    picture_bytes: int = PICTURE_BYTES,
    progress: bool = True,
) -> dict[str, Any]:
    """Everything that `training.pages.player.player` needs, as values that JSON can hold.

    Alignments and events are computed with all embedded frames. Of a video with more than MOST_ROWS
    only so many rows are kept, evenly spaced, and every row where an event lies or to which an
    alignment carries one; what the alignments match otherwise is the nearest kept row.

    Args:
        videos: those shown; pairs are all ordered pairs of different videos of one action.
        classes: action -> names of its phases.
        start: the pair shown first, indices into ``videos``.
        alignments: by pair of indices, in place of `align`'s.
        picture_bytes: size limit of all pictures together, before base64.
        progress: show bars.

    Returns:
        ``start``, ``classes``, ``videos`` and ``pairs``:

        - a video has ``id``, ``action``, ``total`` (frames in the file), and for its n kept rows
          ``frames`` (their numbers in the file), ``times`` (in seconds), ``phases`` (-1 =
          unlabelled, None = no labels), ``pictures`` (WebP files one after the other in base64,
          with n + 1 ``offsets``), ``embeddings`` (base64 of int16 (n, width), little-endian: 32767
          times unit-length embeddings) and ``points`` (n, 2): the first two principal components
          over all videos, each scaled to [-1, 1].
        - a pair, under "a,b", has for each row of a the row of b ``matched`` by the alignment (-1:
          a's frame lies outside of it) and the ``even`` one at the same share of the length; the
          ``path`` in rows; the mean cosine ``similarity`` along it and along the ``straight`` line;
          and ``events``, see `_events`.
    """
    from tqdm import tqdm

    events = [_event_rows(video) for video in videos]
    pairs = [
        (a, b)
        for a, b in itertools.permutations(range(len(videos)), 2)
        if videos[a].record.action == videos[b].record.action
    ]
    found = {}
    for a, b in tqdm(pairs, unit="pair", desc="aligning", disable=not progress):
        found[a, b] = (alignments or {}).get((a, b)) or align(videos[a], videos[b])
    shown = [{*rows.values()} for rows in events]
    for (a, b), alignment in found.items():
        shown[b].update(alignment.matched[[*events[a].values()]].tolist())
    kept = [
        _kept(len(video.embeddings), sorted(rows - {OUTSIDE}))
        for video, rows in zip(videos, shown, strict=True)
    ]
    pictures = thumbnails(videos, kept, most_bytes=picture_bytes, progress=progress)
    embeddings = [video.embeddings[rows] for video, rows in zip(videos, kept, strict=True)]
    short = _shortened(embeddings, EMBEDDING_BYTES)
    points = _points(embeddings)
    actions = dict.fromkeys(video.record.action for video in videos)
    return {
        "start": [*start],
        "classes": {action: [*classes[action]] for action in actions if action in classes},
        "videos": [
            {
                "id": video.record.id,
                "action": video.record.action,
                "total": video.record.frames,
                "frames": video.frames[kept[k]].tolist(),
                "times": seconds_of(video.record, video.frames[kept[k]]).round(4).tolist(),
                "phases": None if video.phases is None else video.phases[kept[k]].tolist(),
                "pictures": pictures[k],
                "embeddings": _as_int16(short[k]),
                "points": points[k],
            }
            for k, video in enumerate(videos)
        ],
        "pairs": {
            f"{a},{b}": _pair(
                (videos[a], videos[b]), (kept[a], kept[b]), (events[a], events[b]), alignment
            )
            for (a, b), alignment in found.items()
        },
    }


def _event_rows(video: EmbeddedVideo) -> dict[int, int]:
    """Phase -> row where it begins, for the events that an evaluation counts; see `events_of`."""
    labelled = labelled_video(video)
    if labelled is None or labelled.position is None:
        return {}
    rows = np.searchsorted(video.frames, labelled.frames)
    return {phase: int(rows[row]) for phase, row in events_of(labelled).items()}


def _kept(count: int, events: Sequence[int]) -> np.ndarray:
    """All ``count`` rows, or about MOST_ROWS of them: the events' and evenly spaced ones."""
    if count <= MOST_ROWS:
        return np.arange(count)
    even = np.linspace(0, count - 1, max(2, MOST_ROWS - len(events))).round().astype(np.int64)
    return np.unique(np.concatenate([even, np.asarray(events, dtype=np.int64)]))


def _nearest(kept: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each row the place in ``kept`` of the nearest kept row; OUTSIDE stays."""
    after = np.searchsorted(kept, rows).clip(max=len(kept) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.where(np.abs(kept[before] - rows) < np.abs(kept[after] - rows), before, after)
    return np.where(rows == OUTSIDE, OUTSIDE, nearer)


def _pair(
    videos: tuple[EmbeddedVideo, EmbeddedVideo],
    kept: tuple[np.ndarray, np.ndarray],
    events: tuple[dict[int, int], dict[int, int]],
    alignment: Alignment,
) -> dict[str, Any]:
    even = stretched(*videos)
    path = np.stack([_nearest(kept[0], alignment.i), _nearest(kept[1], alignment.j)], axis=1)
    path = path[np.flatnonzero(np.any(np.diff(path, axis=0, prepend=-1) != 0, axis=1))]
    if len(path) > MOST_STEPS:
        path = path[np.linspace(0, len(path) - 1, MOST_STEPS).round().astype(int)]
    return {
        "matched": _nearest(kept[1], alignment.matched[kept[0]]).tolist(),
        "even": _nearest(kept[1], even[kept[0]]).tolist(),
        "path": path.tolist(),
        "similarity": round(alignment.similarity, 6),
        "straight": round(alignment.straight, 6),
        "events": _events(videos, kept[0], events, alignment, even),
    }


def _events(
    videos: tuple[EmbeddedVideo, EmbeddedVideo],
    kept: np.ndarray,
    events: tuple[dict[int, int], dict[int, int]],
    alignment: Alignment,
    even: np.ndarray,
) -> list[dict[str, Any]]:
    """The events that both videos have, in the order of the first one.

    ``row``: where it lies in the first, among the kept rows. In frames of the second: ``carried``
    to it by the alignment, ``true`` by its labels, ``error`` = carried - true, and ``even_error``
    the same without alignment; ``seconds`` and ``even_seconds``: the same differences of
    presentation times. Outside an open alignment ``carried``, ``error`` and ``seconds`` are None.
    """
    b, out = videos[1], []

    def apart(frame: int, true: int) -> float:
        times = seconds_of(b.record, [frame, true])
        return round(float(times[0] - times[1]), 4)

    for phase, row in sorted(events[0].items(), key=lambda item: item[1]):
        if phase not in events[1]:
            continue
        true = int(b.frames[events[1][phase]])
        matched = int(alignment.matched[row])
        carried = None if matched == OUTSIDE else int(b.frames[matched])
        error = None if carried is None else carried - true
        unaligned = int(b.frames[even[row]])
        out.append(
            {
                "phase": phase,
                "row": int(np.searchsorted(kept, row)),
                "carried": carried,
                "true": true,
                "error": error,
                "even_error": unaligned - true,
                "seconds": None if carried is None else apart(carried, true),
                "even_seconds": apart(unaligned, true),
            }
        )
    return out


def _shortened(embeddings: Sequence[np.ndarray], most_bytes: int) -> list[np.ndarray]:
    """Embeddings of unit length that fit ``most_bytes`` as int16.

    Wider ones are projected on the directions in which all of them together are largest, no mean
    taken off: as many as there are rows, which keeps all cosines, or as fit. On 760 frames of four
    golf clips 256 of 1,920 numbers change a cosine by at most 0.013.
    """
    stacked = np.concatenate(embeddings).astype(np.float64)
    most = min(len(stacked), max(2, most_bytes // (2 * len(stacked))))
    if stacked.shape[1] > most:
        stacked = stacked @ largest_directions(stacked, most)
        stacked /= np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
    return _split(stacked, embeddings)


def _as_int16(embeddings: np.ndarray) -> dict[str, Any]:
    values = np.clip(np.round(embeddings * _SCALE), -_SCALE, _SCALE).astype("<i2")
    return {
        "width": values.shape[1],
        "data": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def _points(embeddings: Sequence[np.ndarray]) -> list[list[list[float]]]:
    projected = principal_components(np.concatenate(embeddings), 2)
    middle = (projected.max(axis=0) + projected.min(axis=0)) / 2
    half = (projected.max(axis=0) - projected.min(axis=0)) / 2
    scaled = (projected - middle) / np.maximum(half, 1e-12)
    return [part.round(4).tolist() for part in _split(scaled, embeddings)]


def _split(stacked: np.ndarray, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    return np.split(stacked, np.cumsum([len(part) for part in parts])[:-1])
