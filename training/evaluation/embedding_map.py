"""A map of embeddings in two dimensions by t-SNE, coloured by phase and by video."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.evaluation.embed import EmbeddedVideo
from training.evaluation.plots import INK, PHASE_COLOURS, new_figure, principal_components

MAX_FRAMES = 2000  # more take minutes: the time of t-SNE is more than proportional to the frames
MIN_FRAMES = 10
PERPLEXITY = 30  # scikit-learn's default
NAMED = 12  # groups with a colour and a name in each legend; the others are grey
_MARKERS = "osD^vP*X"
_OTHERS = "#c8c8c8"


def evenly_chosen(videos: Sequence[EmbeddedVideo], most: int = MAX_FRAMES) -> list[np.ndarray]:
    """For each video the rows of its embeddings that the map shows: every k-th, ``most`` in all.

    k is the same for all videos, so each has points in proportion to its length. With more than
    ``most`` videos, some videos have none.
    """
    total = sum(len(video.embeddings) for video in videos)
    step = max(1, -(-total // most))
    ends = np.cumsum([0, *(len(video.embeddings) for video in videos)])
    return [np.arange(-begin % step, end - begin, step) for begin, end in itertools.pairwise(ends)]


def tsne(embeddings: np.ndarray) -> np.ndarray | None:
    """float64 (n, 2): positions of (n, E) embeddings by t-SNE; None where no map can be made.

    scikit-learn's TSNE with its defaults, perplexity 30 (less for fewer than 91 embeddings) and
    seed 0. The start is the first two principal components, scaled to a standard deviation of 1e-4
    in the first one, so the map of the same embeddings is the same every time. There is no map of
    fewer than MIN_FRAMES embeddings or of equal ones.
    """
    from sklearn.manifold import TSNE

    start = principal_components(embeddings, 2)
    spread = start[:, 0].std() if len(start) else 0.0
    if len(embeddings) < MIN_FRAMES or spread < 1e-6:
        return None
    perplexity = min(PERPLEXITY, (len(embeddings) - 1) / 3)
    start = (start / spread * 1e-4).astype(np.float32)
    return TSNE(init=start, perplexity=perplexity, random_state=0).fit_transform(embeddings)


def embedding_map(
    videos: Sequence[EmbeddedVideo], phase_names: Mapping[str, Sequence[str]], file: str | Path
) -> int:
    """Write the map of the videos' frames; returns the number of frames shown, 0 without a map.

    Left by phase where there are labels, right by video. Each legend names the NAMED groups with
    the most frames, by colour and mark; the other frames are grey. The axes of t-SNE have no
    unit.
    """
    rows = evenly_chosen(videos)
    points = tsne(np.concatenate([v.embeddings[r] for v, r in zip(videos, rows, strict=True)]))
    if points is None:
        return 0
    panels = {}
    actions = [*dict.fromkeys(video.record.action for video in videos)]
    if any(video.phases is not None for video in videos):
        panels["by phase"] = [
            name
            for video, chosen in zip(videos, rows, strict=True)
            for name in _phases(video, chosen, phase_names, len(actions) > 1)
        ]
    panels["by video"] = [
        video.record.id for video, chosen in zip(videos, rows, strict=True) for _ in chosen
    ]
    order = {
        "by phase": _phase_order(phase_names, actions),
        "by video": [video.record.id for video in videos],
    }
    figure = new_figure(4.8 * len(panels), 5.3)
    for axes, (title, names) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        _scatter(axes, points, names, order[title], title)
    figure.savefig(file, dpi=110)
    return len(points)


def _phases(
    video: EmbeddedVideo, rows: np.ndarray, names: Mapping[str, Sequence[str]], several: bool
) -> list[str | None]:
    """The name of the phase of each row, None without a label."""
    if video.phases is None:
        return [None] * len(rows)
    known = names.get(video.record.action, ())
    before = f"{video.record.action}: " if several else ""
    return [
        None if p < 0 else before + (known[p] if p < len(known) else f"phase {p}")
        for p in video.phases[rows]
    ]


def _phase_order(names: Mapping[str, Sequence[str]], actions: Sequence[str]) -> list[str]:
    """The names that `_phases` returns for named phases, action by action."""
    if len(actions) == 1:
        return [*names.get(actions[0], ())]
    return [f"{action}: {name}" for action in actions for name in names.get(action, ())]


def _scatter(
    axes, points: np.ndarray, names: Sequence[str | None], order: Sequence[str], title: str
) -> None:
    """Points with the colour and mark of their group, and the legend under them."""
    counts = Counter(name for name in names if name is not None)
    place = {name: number for number, name in enumerate(order)}
    shown = [name for name, _ in counts.most_common(NAMED)]
    shown.sort(key=lambda name: (place.get(name, len(place)), name))
    of = np.array([shown.index(name) if name in shown else -1 for name in names])
    style = {"s": 13, "linewidths": 0}
    others, without = len(counts) - len(shown), sum(name is None for name in names)
    grey = [f"{others} others"] * bool(others) + ["no label"] * bool(without)
    in_strips = len(place) <= len(PHASE_COLOURS)  # then phases have the colours of the strips
    for number, name in enumerate(shown):
        kind = place.get(name, number) if in_strips else number
        colour, marker = PHASE_COLOURS[kind % len(PHASE_COLOURS)], _MARKERS[kind % len(_MARKERS)]
        label = name if len(name) <= 26 else "…" + name[-25:]
        axes.scatter(*points[of == number].T, color=colour, marker=marker, label=label, **style)
    if grey:  # last in the legend, below the others in the picture
        axes.scatter(*points[of < 0].T, color=_OTHERS, label=", ".join(grey), zorder=0.5, **style)
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#bbbbbb")
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "frameon": False}
    axes.legend(ncols=2, fontsize=8, markerscale=1.6, handletextpad=0.2, **legend)
