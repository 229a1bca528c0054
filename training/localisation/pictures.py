"""Pictures of a localisation: recall over the number of proposals; proposals beside segments."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from training.evaluation.plots import INK, PHASE_COLOURS, new_figure, tidy
from training.localisation.annotations import Annotated
from training.localisation.evaluate import Row
from training.localisation.metrics import temporal_iou
from training.support.files import replacing

VIDEOS, PROPOSALS = 4, 5


def recall_curves(rows: Mapping[str, Row], file: Path) -> None:
    """AR over AN, a line for each row; its AUC is in the legend."""
    figure = new_figure(5.6, 3.6)
    axes = figure.subplots()
    for colour, (name, row) in zip(PHASE_COLOURS, rows.items(), strict=False):
        label = f"{name} (AUC {100 * row.recall.auc:.1f})"
        percent = 100 * row.recall.average
        axes.plot(row.recall.numbers, percent, color=colour, linewidth=1.6, label=label)
    axes.set_xlabel("AN: average number of proposals per video", color=INK)
    axes.set_ylabel("AR: average recall, %", color=INK)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    tidy(axes)
    _save(figure, file)


def proposal_bars(row: Row, videos: Sequence[Annotated], file: Path) -> None:
    """The annotated segments of a few videos, and below them the proposals of highest score.

    As VCLR's Fig. 4b. Videos are taken evenly from the given ones. A panel's title has the classes
    of the segments. Proposal 1 has the highest score; beside each is its largest tIoU with an
    annotated segment.
    """
    picked = np.unique(np.linspace(0, len(videos) - 1, min(VIDEOS, len(videos))).astype(int))
    figure = new_figure(7.2, 1.9 * len(picked) + 0.7)
    panels = np.atleast_1d(figure.subplots(len(picked), 1))
    for axes, number in zip(panels, picked, strict=True):
        video = videos[number]
        found = row.proposals[video.name]
        best = found[np.argsort(-found[:, 2], kind="stable")][:PROPOSALS]
        _bars(axes, 0, video.segments, "#228833")
        for place, one in enumerate(best, start=1):
            _bars(axes, place, one[None, :2], "#4477aa")
            overlap = temporal_iou(one[None, :2], video.segments).max()
            text = f"tIoU {overlap:.2f}"
            axes.text(1.01 * video.seconds, place, text, va="center", fontsize=7, color=INK)
        ranks = [f"proposal {rank}" for rank in range(1, len(best) + 1)]
        axes.set_yticks(range(len(best) + 1), ["annotated", *ranks])
        axes.set_ylim(len(best) + 0.6, -0.6)
        axes.set_xlim(0, video.seconds)
        axes.set_title(panel_title(video), fontsize=9, color=INK, loc="left")
        tidy(axes)
        axes.tick_params(axis="y", labelsize=7)
    note = (
        "Proposals by score, the highest first. tIoU: the largest of the proposal with an "
        "annotated segment."
    )
    panels[-1].set_xlabel(f"seconds\n\n{note}", color=INK, fontsize=8)
    _save(figure, file)


def panel_title(video: Annotated) -> str:
    """The name of a video and the classes of its segments by their starts; "run (3)" for three."""
    runs = [(label, len([*same])) for label, same in groupby(video.labels)]
    classes = ", ".join(f"{label} ({count})" if count > 1 else label for label, count in runs)
    return textwrap.shorten(f"{video.name}: {classes}", 90, placeholder=" ...")


def _bars(axes, place: int, segments: np.ndarray, colour: str) -> None:
    spans = [(start, end - start) for start, end in segments]
    axes.broken_barh(spans, (place - 0.35, 0.7), color=colour, edgecolor="white")


def _save(figure, file: Path) -> None:
    with replacing(file) as partial:
        figure.savefig(partial, dpi=110, format="png")
