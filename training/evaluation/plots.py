"""Diagrams of the report, as PNG files: similarity, loss, embeddings over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.evaluation.embed import EmbeddedVideo

INK = "#333333"
# Tol's bright scheme, then his muted one: apart for colour-blind readers too. The grey is darker
# than his, apart from frames without a label. The player's page has the same colours of phases.
PHASE_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777"),
    *("#332288", "#ddcc77", "#117733", "#882255", "#44aa99", "#999933", "#cc6677"),
)


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes) -> None:
    """No frame at the top and right, small numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def similarity_map(
    a: EmbeddedVideo,
    b: EmbeddedVideo,
    path: tuple[np.ndarray, np.ndarray],
    file: str | Path,
    *,
    ends: bool = False,
) -> None:
    """Cosine similarity of all frame pairs with the DTW path; dotted lines are phase boundaries.

    Axes are the frames' numbers; those in gaps stay white. ``ends``: what lies before and behind
    the path is faded, and the path's first and last pair are marked and named.
    """
    similarity = np.full((a.record.frames, b.record.frames), np.nan, dtype=np.float32)
    similarity[np.ix_(a.frames, b.frames)] = a.embeddings @ b.embeddings.T
    i, j = a.frames[path[0]], b.frames[path[1]]
    rows, columns = similarity.shape
    longest = max(rows, columns)
    figure = new_figure(2.8 + 4.6 * columns / longest, 1.4 + 4.6 * rows / longest)
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="cividis", vmax=1.0, aspect="equal", origin="upper")
    axes.plot(j, i, color="white", linewidth=3.5)
    axes.plot(j, i, color="#d62728", linewidth=1.6, label="alignment (DTW)")
    if ends:
        _mark_ends(axes, i, j, rows, columns)
    if len(_boundaries(a)) or len(_boundaries(b)):  # white lines, grey in the legend
        axes.plot([], [], color="0.4", linewidth=0.9, linestyle=":", label="phase boundaries")
    for boundary in _boundaries(a):
        axes.axhline(boundary - 0.5, color="white", linewidth=0.9, linestyle=":")
    for boundary in _boundaries(b):
        axes.axvline(boundary - 0.5, color="white", linewidth=0.9, linestyle=":")
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlabel(f"frame of {b.record.id}", color=INK)
    axes.set_ylabel(f"frame of {a.record.id}", color=INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(loc="lower left", fontsize=8, framealpha=0.9)
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    figure.savefig(file, dpi=110)


def _mark_ends(axes, i: np.ndarray, j: np.ndarray, rows: int, columns: int) -> None:
    top, bottom, left, right = i[0] - 0.5, i[-1] + 0.5, j[0] - 0.5, j[-1] + 0.5
    faded = {"color": "white", "alpha": 0.6, "linewidth": 0}
    axes.axhspan(-0.5, top, **faded)
    axes.axhspan(bottom, rows - 0.5, **faded)
    for start, stop in ((-0.5, left), (right, columns - 0.5)):
        axes.fill_between([start, stop], top, bottom, **faded)
    for word, place, marker in (("begins", 0, "o"), ("ends", -1, "s")):
        label = f"{word} at {i[place]} | {j[place]}"
        style = {"markeredgecolor": "white", "markersize": 8, "clip_on": False, "zorder": 5}
        axes.plot(j[place], i[place], marker, color="#d62728", label=label, **style)


def _boundaries(video: EmbeddedVideo) -> np.ndarray:
    phases = video.record.phases
    return np.array([]) if phases is None else np.flatnonzero(np.diff(phases)) + 1


def loss_curve(steps: Sequence[int], losses: Sequence[float], file: str | Path) -> None:
    """Training loss over steps: every logged value, and a running mean over a twentieth of them."""
    figure = new_figure(7.2, 2.9)
    axes = figure.subplots()
    steps, losses = np.asarray(steps), np.asarray(losses, dtype=float)
    axes.plot(steps, losses, color="#9db8d2", linewidth=0.9, label="logged value")
    window = max(1, len(losses) // 20)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="#1f4e79", linewidth=1.8, label="running mean")
        axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel("training step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    tidy(axes)
    figure.savefig(file, dpi=110)


def largest_directions(rows: np.ndarray, count: int) -> np.ndarray:
    """(E, at most count) orthonormal directions in which (n, E) rows are largest, largest first.

    The first right singular vectors, from the eigenvectors of rows' products. The largest entry of
    each, by absolute value, is positive: a picture does not flip from one run to the next.
    """
    _, vectors = np.linalg.eigh(rows.T @ rows)
    vectors = vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return vectors * np.sign(largest)


def principal_components(embeddings: np.ndarray, count: int) -> np.ndarray:
    """float64 (n, count): (n, E) embeddings along their first principal components.

    Where E is below count the rest is 0.
    """
    centred = embeddings.astype(np.float64)
    centred -= centred.mean(axis=0)
    directions = largest_directions(centred, count)
    projected = np.zeros((len(centred), count))
    projected[:, : directions.shape[1]] = centred @ directions
    return projected


def principal_colours(embeddings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(frames, 3) colours in [0, 1] for each video, from components shared by all of them."""
    projected = principal_components(np.concatenate(embeddings), 3)
    low, high = np.percentile(projected, [2, 98], axis=0)
    colours = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.split(colours, np.cumsum([len(part) for part in embeddings])[:-1])


def few_shot_curves(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]], file: str | Path, *, label: str
) -> None:
    """A classifier's score over the number of labelled training videos, a line for each row.

    A bar is one standard deviation over the random choices, to both sides. A count of "half" is not
    a place on this axis and is left out, as are undefined values.

    Args:
        rows: name of a row -> count of videos -> ``{"mean": m, "std": s}``.
        label: name of the score.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    markers = "osD^vP"
    for place, (name, by_count) in enumerate(rows.items()):
        known = {
            int(count): one
            for count, one in by_count.items()
            if count != "half" and one["mean"] is not None and not np.isnan(one["mean"])
        }
        shift = 0.06 * (place - (len(rows) - 1) / 2)  # bars beside each other
        axes.errorbar(
            [count + shift for count in known],
            [one["mean"] for one in known.values()],
            [one["std"] for one in known.values()],
            color=PHASE_COLOURS[place % len(PHASE_COLOURS)],
            marker=markers[place % len(markers)],
            markersize=4,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
    counts = sorted({int(count) for one in rows.values() for count in one if count != "half"})
    axes.set_xticks(counts)
    axes.set_xlabel("labelled training videos", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    tidy(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(len(rows), 2),
        frameon=False,
        fontsize=8,
    )
    figure.savefig(file, dpi=110)
