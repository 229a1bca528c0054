"""A retrieval sheet to look at: query frames and their nearest frames in other test videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.evaluation.embed import EmbeddedVideo


def choose_queries(videos: Sequence[EmbeddedVideo], count: int) -> list[tuple[int, int]]:
    """``count`` queries (video, row), spread over actions, phases and videos; always the same.

    With labels, queries are the middle frames of phases, phase by phase, each from another video if
    possible. Without labels, they are spread evenly over the videos. A video that is alone in its
    action has no query.
    """
    actions = [video.record.action for video in videos]
    usable = [v for v, action in enumerate(actions) if actions.count(action) > 1]
    by_phase: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for number in usable:
        phases = videos[number].phases
        for phase in [] if phases is None else np.unique(phases[phases >= 0]):
            frames = np.flatnonzero(phases == phase)
            key = (actions[number], int(phase))
            by_phase.setdefault(key, []).append((number, int(frames[len(frames) // 2])))
    if by_phase:
        keys = sorted(by_phase)
        chosen = [keys[k] for k in _spread(len(keys), min(count, len(keys)))]
        return [by_phase[key][turn % len(by_phase[key])] for turn, key in enumerate(chosen)]
    turns = min(count, len(usable))
    return [
        (usable[k], int((turn + 0.5) / turns * len(videos[usable[k]].embeddings)))
        for turn, k in enumerate(_spread(len(usable), turns))
    ]


def _spread(length: int, count: int) -> list[int]:
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


def retrieval_sheet(
    videos: Sequence[EmbeddedVideo],
    phase_names: Mapping[str, Sequence[str]],
    file: Path,
    *,
    queries: int = 6,
    neighbours: int = 5,
) -> int:
    """Write the contact sheet; returns the number of queries shown, 0 if there is no pair."""
    from fastseq.video import read_frames
    from training.evaluation.pictures import NEUTRAL, OTHER, SAME, Tile, contact_sheet

    def tile(number: int, row: int, query_phase: int | None, similarity: float | None) -> Tile:
        record, frame = videos[number].record, int(videos[number].frames[row])
        crop = getattr(record, "crop", None)
        picture = read_frames(record.path, [frame], short_side=160, crop=crop)[0].numpy()
        phase = None if record.phases is None else int(record.phases[frame])
        name = _phase_name(phase_names, record.action, phase)
        score = "" if similarity is None else f"   cosine {similarity:.2f}"
        border = NEUTRAL
        if similarity is not None and _known(phase) and _known(query_phase):
            border = SAME if phase == query_phase else OTHER
            name = ("✓ " if phase == query_phase else "✗ ") + name
        return Tile(picture, [f"{record.id}", f"frame {frame}{score}", name], border)

    rows = []
    for number, frame in choose_queries(videos, queries):
        phases = videos[number].phases
        query_phase = None if phases is None else int(phases[frame])
        row = [tile(number, frame, None, None)]
        for other, best, similarity in nearest_frames(videos, (number, frame), neighbours):
            row.append(tile(other, best, query_phase, similarity))
        rows.append(row)
    if rows:
        contact_sheet(rows, file)
    return len(rows)


def _known(phase: int | None) -> bool:
    return phase is not None and phase >= 0


def _phase_name(names: Mapping[str, Sequence[str]], action: str, phase: int | None) -> str:
    if not _known(phase):
        return "no label"
    known = names.get(action, ())
    return known[phase] if phase < len(known) else f"phase {phase}"
