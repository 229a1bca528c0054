"""Strips: each video as bars over its length, for embeddings, labelled and predicted phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from training.evaluation.boundaries import inner_starts, on_frames
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.plots import INK, PHASE_COLOURS, new_figure, principal_colours

_COLOUR, _PHASE, _GAP, _NUMBERS = 0.3, 0.15, 0.03, 0.15  # heights of a video's parts in inches
_BETWEEN = 0.16  # inches between two videos
_COLUMNS, _ID = 5, 32  # columns of the legend; characters of a video's name
_APART = 0.05  # least distance of two frame numbers, as a share of the strip's length
_SEEN = 0.01  # least width of the colour at a tick, as a share of it: the tick would hide one frame


@dataclass(frozen=True)
class Bar:
    """A bar over the length of a video.

    colours: float (frames, 3), red, green and blue in [0, 1] for each frame of the video.
    name: text at the right of the bar.
    height: inches.
    starts: frames with a tick and, where there is room, their number. Their colour is at least 1 %
        of the bar wide, up to the next tick.
    above: whether the numbers are above the bar instead of below it.
    phases: the phases whose colours the bar has, for the legend.
    """

    colours: np.ndarray
    name: str = ""
    height: float = _COLOUR
    starts: tuple[int, ...] = ()
    above: bool = False
    phases: tuple[int, ...] = ()


def embedding_strips(
    videos: Sequence[EmbeddedVideo],
    phase_names: Mapping[str, Sequence[str]],
    file: str | Path,
    *,
    predicted: Sequence[np.ndarray | None] = (),
) -> None:
    """Bars for each video over its length: embedding, labelled phases, predicted phases.

    The colour's red, green and blue are the first three principal components over all the frames
    shown, each stretched between its 2nd and 98th percentile. Frames that the network finds alike
    have like colours. Frames in gaps and frames without a label are white.

    predicted: for each video the phases of its embeddings, see `boundaries.predicted_phases`. With
        them, the bars have a tick and the number of the frame where each phase begins.
    """
    colours = principal_colours([video.embeddings for video in videos])
    bars = []
    for number, video in enumerate(videos):
        phases = predicted[number] if predicted else None
        of_video = [embedding_bar(video, colours[number], "embedding" if predicted else "")]
        if video.record.phases is not None:
            of_video += [labelled_bar(video, named=phases is not None)]
        if phases is not None:
            of_video += [predicted_bar(video, phases, "predicted")]
        bars.append(of_video)
    draw_strips(videos, bars, phase_names, file)


def embedding_bar(video: EmbeddedVideo, colours: np.ndarray, name: str) -> Bar:
    """``colours``: (n, 3) of the embeddings, one of the results of `plots.principal_colours`."""
    shown = np.ones((video.record.frames, 3))
    shown[video.frames] = colours
    return Bar(shown, name)


def labelled_bar(video: EmbeddedVideo, *, named: bool = False) -> Bar:
    """The labelled phases; ``named``: with a name and the frames where phases begin."""
    bar = _phase_bar(video.record.phases, "labelled" if named else "")
    return replace(bar, above=True) if named else replace(bar, starts=())


def predicted_bar(video: EmbeddedVideo, phases: np.ndarray, name: str) -> Bar:
    """``phases``: int64 (n,), the predicted phase of each embedding."""
    return _phase_bar(on_frames(video, phases), name)


def _phase_bar(phases: np.ndarray, name: str) -> Bar:
    starts, known = inner_starts(phases).values(), np.unique(phases[phases >= 0]).tolist()
    return Bar(phase_colours(phases), name, _PHASE, tuple(starts), phases=tuple(known))


def phase_colours(phases: np.ndarray) -> np.ndarray:
    """float (frames, 3): the colour of each phase, white for -1."""
    palette = np.array([*map(to_rgb, PHASE_COLOURS), (1, 1, 1)])
    return palette[np.where(phases < 0, len(PHASE_COLOURS), phases % len(PHASE_COLOURS))]


def draw_strips(
    videos: Sequence[EmbeddedVideo],
    bars: Sequence[Sequence[Bar]],
    phase_names: Mapping[str, Sequence[str]],
    file: str | Path,
) -> None:
    """Write the picture: ``bars[i]`` from top to bottom for ``videos[i]``, then the phase names.

    The legend has the phases of the bars; long names of videos lose their beginning.
    """
    actions = dict.fromkeys(video.record.action for video in videos)
    names = [phase_names[action] for action in actions if action in phase_names]
    phases = sorted({phase for of_video in bars for bar in of_video for phase in bar.phases})
    heights = [sum(map(_height, of_video)) for of_video in bars]
    legend_rows = -(-len(phases) // _COLUMNS) if names else 0
    below = 0.5 + 0.3 * bool(phases) + 0.2 * legend_rows
    figure = new_figure(8.2, sum(heights) + _BETWEEN * len(bars) + below)
    panels = figure.subplots(len(videos), 1, squeeze=False, height_ratios=heights)[:, 0]
    for video, of_video, height, axes in zip(videos, bars, heights, panels, strict=True):
        top = height
        for bar in of_video:
            top = _draw_bar(axes, bar, top)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, height)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        text = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8, "color": INK}
        name = video.record.id
        name = name if len(name) <= _ID else "…" + name[1 - _ID :]
        axes.set_ylabel(f"{name}\n{video.record.frames} frames", **text)
    panels[-1].set_xticks([0, 0.5, 1], ["start", "middle", "end"], fontsize=9, color=INK)
    panels[-1].tick_params(length=0)
    if legend_rows:
        _phase_legend(figure, names, phases)
    figure.savefig(file, dpi=110)


def _height(bar: Bar) -> float:
    return bar.height + _GAP + _NUMBERS * bool(bar.starts)


def _draw_bar(axes, bar: Bar, top: float) -> float:
    """Draw a bar below ``top``; returns where the next one begins."""
    bottom = top - _height(bar)
    low = bottom + _GAP + (_NUMBERS if bar.starts and not bar.above else 0)
    high = low + bar.height
    axes.imshow(bar.colours[None], aspect="auto", extent=(0, 1, low, high), interpolation="nearest")
    text = {"fontsize": 8, "color": INK, "clip_on": False}
    axes.text(1.01, (low + high) / 2, bar.name, va="center", ha="left", **text)
    last = before = -1.0
    for start in sorted(bar.starts):
        place = before = max(start / len(bar.colours), before + _SEEN)
        left = min(place, 1 - _SEEN)
        colour = bar.colours[start]
        axes.fill_between([left, left + _SEEN], low, high, color=colour, linewidth=0)
        axes.plot([place, place], [low, high], color="black", linewidth=1.2, solid_capstyle="butt")
        if place - last >= _APART:
            y, align = (high + 0.01, "bottom") if bar.above else (low - 0.01, "top")
            axes.text(place, y, str(start), ha="center", va=align, **text)
            last = place
    return bottom


def _phase_legend(figure, names: Sequence[Sequence[str]], phases: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    handles = []
    for phase in phases:
        label = " / ".join(dict.fromkeys(p[phase] for p in names if phase < len(p)))
        colour = PHASE_COLOURS[phase % len(PHASE_COLOURS)]
        handles.append(Patch(color=colour, label=label or f"phase {phase}"))
    columns = min(len(phases), _COLUMNS)
    place = {"loc": "outside lower center", "ncols": columns, "fontsize": 8, "frameon": False}
    figure.legend(handles=handles, **place)
