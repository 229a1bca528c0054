"""Retrieval sheets to look at: query frames, and their nearest ones beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.evaluation.embed import EmbeddedVideo
from training.evaluation.videos import seconds_of

if TYPE_CHECKING:
    from training.evaluation.pictures import Tile

SCOPES = {
    "others": "the nearest frame of each other video of the query's action",
    "all": "the nearest frames of all other videos, several from one video if they are apart",
    "videos": "the nearest training videos of whole test videos, with R@K (VCLR)",
}
GAP = 0.5  # seconds between two frames that count as two moments
FRAME_NEIGHBOURS = 5  # CARL Fig. 7 and LAV Fig. 6


def choose_queries(
    videos: Sequence[EmbeddedVideo], count: int, scope: str = "others"
) -> list[tuple[int, int]]:
    """``count`` queries (video, row), spread over actions, phases and videos; always the same.

    With labels, queries are the middle frames of phases, phase by phase, each from another video if
    possible. Without labels they are the middles of equal parts of videos that are spread evenly. A
    video that is alone in its action has no query in the scope "others".
    """
    actions = [video.record.action for video in videos]
    usable = [v for v, a in enumerate(actions) if scope != "others" or actions.count(a) > 1]
    if len(videos) < 2:
        return []
    by_phase: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for number in usable:
        phases = videos[number].phases
        for phase in [] if phases is None else np.unique(phases[phases >= 0]):
            frames = np.flatnonzero(phases == phase)
            key = (actions[number], int(phase))
            by_phase.setdefault(key, []).append((number, int(frames[len(frames) // 2])))
    if by_phase:
        keys = sorted(by_phase)
        chosen = [keys[k] for k in spread(len(keys), min(count, len(keys)))]
        return [by_phase[key][turn % len(by_phase[key])] for turn, key in enumerate(chosen)]
    turns = min(count, len(usable))
    return [
        (usable[k], int((turn + 0.5) / turns * len(videos[usable[k]].embeddings)))
        for turn, k in enumerate(spread(len(usable), turns))
    ]


def spread(length: int, count: int) -> list[int]:
    """``count`` places of a list of this length, evenly spaced, the first and the last included."""
    return np.linspace(0, length - 1, count).round().astype(int).tolist() if count else []


def nearest_frames(
    videos: Sequence[EmbeddedVideo], query: tuple[int, int], count: int
) -> list[tuple[int, int, float]]:
    """The most similar frame of each other video of the action: (video, row, similarity).

    One frame per video, because neighbours in time look alike; the ``count`` best, best first.
    """
    number, frame = query
    x = videos[number].embeddings[frame]
    found = []
    for other, video in enumerate(videos):
        if other != number and video.record.action == videos[number].record.action:
            similarity = video.embeddings @ x
            best = int(similarity.argmax())
            found.append((other, best, float(similarity[best])))
    return sorted(found, key=lambda item: -item[2])[:count]


def nearest_moments(
    videos: Sequence[EmbeddedVideo], query: tuple[int, int], count: int, gap: float = GAP
) -> list[tuple[int, int, float]]:
    """The ``count`` most similar frames of all other videos: (video, row, similarity).

    One frame per moment: once a frame is chosen, frames of its video less than ``gap`` seconds
    before or after it are no longer candidates. As in CARL Fig. 7 the query's own video has no
    candidates, and other actions have.
    """
    number, frame = query
    x = videos[number].embeddings[frame]
    found = []
    for other, video in enumerate(videos):
        if other == number:
            continue
        similarity = video.embeddings @ x
        times = seconds_of(video.record, video.frames)
        free = np.ones(len(similarity), dtype=bool)
        for _ in range(count):
            if not free.any():
                break
            best = int(np.where(free, similarity, -np.inf).argmax())
            found.append((other, best, float(similarity[best])))
            free &= np.abs(times - times[best]) >= gap
            free[best] = False
    return sorted(found, key=lambda item: -item[2])[:count]


def retrieval_sheet(
    videos: Sequence[EmbeddedVideo],
    phase_names: Mapping[str, Sequence[str]],
    file: Path,
    *,
    queries: int = 6,
    neighbours: int | None = None,
    scope: str = "others",
    gap: float = GAP,
) -> int:
    """Write the contact sheet; returns the number of queries shown, 0 if there is no pair.

    Args:
        scope: "others" or "all", see SCOPES.
        neighbours: most similar frames of each query, default 5.
        gap: see `nearest_moments`, in seconds.
    """
    from training.evaluation.pictures import contact_sheet

    chosen = choose_queries(videos, queries, scope)
    count = FRAME_NEIGHBOURS if neighbours is None else neighbours
    rows = [
        frame_tiles(videos, phase_names, query, found_by_scope(videos, query, count, scope, gap))
        for query in chosen
    ]
    if rows:
        contact_sheet(rows, file)
    return len(rows)


def found_by_scope(
    videos: Sequence[EmbeddedVideo], query: tuple[int, int], count: int, scope: str, gap: float
) -> list[tuple[int, int, float]]:
    """`nearest_frames` or `nearest_moments`, by the scope."""
    if scope == "all":
        return nearest_moments(videos, query, count, gap)
    return nearest_frames(videos, query, count)


def frame_tiles(
    videos: Sequence[EmbeddedVideo],
    phase_names: Mapping[str, Sequence[str]],
    query: tuple[int, int],
    found: Sequence[tuple[int, int, float]],
) -> list[Tile]:
    """The tiles of a query frame and of the frames ``found`` for it.

    The border is green for the same phase of the same action, red for another one, grey without
    labels.
    """
    from training.evaluation.pictures import NEUTRAL, OTHER, SAME, Tile

    several = len({video.record.action for video in videos}) > 1
    asked = videos[query[0]].record

    def tile(number: int, row: int, similarity: float | None = None) -> Tile:
        record, frame = videos[number].record, int(videos[number].frames[row])
        phase = None if record.phases is None else int(record.phases[frame])
        name = _phase_name(phase_names, record.action, phase)
        name = f"{record.action}: {name}" if several else name
        border = NEUTRAL
        if similarity is not None and _known(phase) and _known(query_phase):
            same = phase == query_phase and record.action == asked.action
            border, name = (SAME, f"✓ {name}") if same else (OTHER, f"✗ {name}")
        score = "" if similarity is None else f"   cosine {similarity:.2f}"
        return Tile(
            read_pictures(record, [frame])[0], [record.id, f"frame {frame}{score}", name], border
        )

    phases = videos[query[0]].phases
    query_phase = None if phases is None else int(phases[query[1]])
    return [tile(*query), *(tile(*one) for one in found)]


def read_pictures(record, frames: Sequence[int]) -> list[np.ndarray]:
    """uint8 (H, W, 3) of each frame, shorter side 160 pixels; frames may repeat."""
    from fastseq.video import read_frames

    different = sorted({*frames})
    crop = getattr(record, "crop", None)
    read = read_frames(record.path, different, short_side=160, crop=crop)
    by_frame = dict(zip(different, (frame.numpy() for frame in read), strict=True))
    return [by_frame[frame] for frame in frames]


def _known(phase: int | None) -> bool:
    return phase is not None and phase >= 0


def _phase_name(names: Mapping[str, Sequence[str]], action: str, phase: int | None) -> str:
    if not _known(phase):
        return "no label"
    known = names.get(action, ())
    return known[phase] if phase < len(known) else f"phase {phase}"
