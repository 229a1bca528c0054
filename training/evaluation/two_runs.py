"""Two runs on the same videos: embeddings, metrics and the pictures that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.folders import folders_of, place
from training.evaluation.baselines import time_index
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.videos import open_index, require_some, split_videos
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.selection import Selection

LETTERS = ("A", "B")


@dataclass(frozen=True)
class RunVideos:
    """A run, and the videos that both runs have.

    letter: "A" or "B". folder: the run's directory. cfg: its configuration. train, test: the
    embedded videos that classifiers are fitted to, and those that are compared; both runs have the
    same ones in the same order.
    """

    letter: str
    folder: Path
    cfg: Any
    train: list[EmbeddedVideo]
    test: list[EmbeddedVideo]

    @property
    def name(self) -> str:
        return f"{self.letter}: {self.folder.resolve().name}"


@dataclass(frozen=True)
class TwoRuns:
    """Both runs, what they were compared on, and remarks on their videos.

    remarks: on videos that only one run has, or that a run was trained on.
    """

    a: RunVideos
    b: RunVideos
    index: Selection
    split: str
    remarks: tuple[str, ...]


def load_two_runs(
    runs: Sequence[Path],
    *,
    folder: Path | None = None,
    split: str | None = None,
    checkpoint: str | None = None,
    store: bool = True,
    left_out: LeftOut,
) -> TwoRuns:
    """Embed the videos that both runs have with each run's trained network.

    Args:
        runs: two run directories.
        folder: prepared folder of videos for both (default: the runs', which must be the same).
        split: the compared videos (default: the runs' ``data.test_split``, which must be the same).
        checkpoint, store: see `training.evaluation.stored.run_embeddings`, for both runs.
        left_out: receives the videos that cannot be read; neither run has them.

    Raises:
        UserError: the runs have different folders, splits or class sets, or no common video.
    """
    from training.evaluation.encoders import TRAINED
    from training.evaluation.stored import RunEmbeddings
    from training.runs.videos import trained_on

    loaded = [RunEmbeddings(run, checkpoint=checkpoint, folder=folder, store=store) for run in runs]
    configs = [embeddings.cfg for embeddings in loaded]
    if folder is None:
        folders = [sorted(str(path.resolve()) for path in folders_of(cfg)) for cfg in configs]
        _check_same(runs, "the folder", [" and ".join(names) for names in folders], "--folder")
    splits = [split or cfg.data.test_split for cfg in configs]
    _check_same(runs, "the test split", splits, "--split")
    indexes = [open_index(cfg, folder) for cfg in configs]
    if indexes[0].class_set != indexes[1].class_set:
        raise UserError(
            f"{runs[0]} has the class set {indexes[0].class_set!r}, {runs[1]} has "
            f"{indexes[1].class_set!r}: phases of different class sets cannot be compared; pass "
            "runs with the same data.class_set"
        )
    left_out.in_index = len(indexes[0].bad)
    remarks: list[str] = []
    test = _common([split_videos(index, splits[0]) for index in indexes], splits[0], remarks)
    if not test[0]:
        raise UserError(
            f"{runs[0]} and {runs[1]} have no common video in the split {splits[0]!r}: data.where "
            "and data.action of their recipes choose different ones"
        )
    train = [
        [r for r in index.videos if r.split == cfg.data.train_split and r.phases is not None]
        for index, cfg in zip(indexes, configs, strict=True)
    ]
    fitted_to = " and ".join(dict.fromkeys(cfg.data.train_split for cfg in configs))
    train = _common(train, fitted_to, remarks) if splits[0] not in fitted_to else [[], []]
    made = []
    for embeddings, of_train, of_test in zip(loaded, train, test, strict=True):
        records = left_out.kept([*of_train, *of_test])
        made.append(embeddings.embed(records, left_out)[TRAINED])
    require_some(left_out.kept(test[0]), splits[0], place(indexes[0]))
    ids = {record.id for record in test[0]}
    a, b = (
        RunVideos(
            letter,
            Path(run),
            cfg,
            [v for v in videos if v.record.id not in ids | left_out.videos.keys()],
            [v for v in videos if v.record.id in ids - left_out.videos.keys()],
        )
        for letter, run, cfg, videos in zip(LETTERS, runs, configs, made, strict=True)
    )
    for run in (a, b):
        if seen := trained_on(run.folder, [video.record for video in run.test]):
            remarks.append(
                f"{run.letter} was trained on {len(seen)} of the {len(run.test)} {splits[0]} "
                "videos: its figures on them say nothing about new videos."
            )
    return TwoRuns(a, b, indexes[0], splits[0], tuple(remarks))


def _check_same(runs: Sequence[Path], what: str, values: Sequence[str], option: str) -> None:
    if values[0] != values[1]:
        raise UserError(
            f"{runs[0]} and {runs[1]} cannot be compared as they are: {what} is {values[0]} in the "
            f"first and {values[1]} in the second; {option} sets it for both"
        )


def _common(both: Sequence[Sequence[Any]], split: str, remarks: list[str]) -> list[list[Any]]:
    """The records that both runs have, in the order of the first run."""
    ids = [{record.id: record for record in records} for records in both]
    shared = [record.id for record in both[0] if record.id in ids[1]]
    for letter, mine in zip(LETTERS, ids, strict=True):
        if only := len(mine) - len(shared):
            remarks.append(
                f"{only} of the {len(mine)} {split} videos of {letter} are not among the other "
                f"run's videos and are left out."
            )
    return [[of_run[name] for name in shared] for of_run in ids]


def metrics_of_both(
    runs: TwoRuns, *, protocol: str = "carl", stride: int | None = None
) -> dict[str, dict[str, float]]:
    """The metrics of A, of B and of the time index, on the same videos; empty without labels.

    Returns:
        ``{"A": {key: value}, "B": ..., "time index only": ...}``, NaN where undefined.
    """
    from training.evaluation.baselines import TIME_INDEX
    from training.evaluation.frame_level import has_labels
    from training.evaluation.scores import evaluate_embeddings

    if not has_labels([video.record for video in runs.a.test]):
        return {}
    rows = {run.letter: (run.train, run.test) for run in (runs.a, runs.b)}
    records = [[video.record for video in videos] for videos in rows["A"]]
    rows[TIME_INDEX] = (time_index(records[0]), time_index(records[1]))
    return {
        name: evaluate_embeddings(
            train, test, runs.index.classes, protocol=protocol, stride=stride, progress=True
        )["metrics"]
        for name, (train, test) in rows.items()
    }


def better(key: str, a: float, b: float) -> str:
    """The letter of the run with the better value of a metric; empty for a tie or NaN."""
    from training.evaluation.protocols import LOWER_IS_BETTER

    if np.isnan(a) or np.isnan(b) or a == b:
        return ""
    lower = key.partition(" ")[0] in LOWER_IS_BETTER
    return "A" if (a < b) == lower else "B"


def retrieval_of_both(runs: TwoRuns, file: Path, *, queries: int = 4, scope: str = "others") -> int:
    """The sheet of the same queries by both runs, A above B; returns the number of queries.

    As LAV Fig. 6: five frames of each run beside the query frame.
    """
    from training.evaluation.pictures import contact_sheet
    from training.evaluation.retrieval import (
        FRAME_NEIGHBOURS,
        GAP,
        choose_queries,
        found_by_scope,
        frame_tiles,
    )

    chosen = choose_queries(runs.a.test, queries, scope)
    rows, titles = [], []
    for query in chosen:
        for run in (runs.a, runs.b):
            found = found_by_scope(run.test, query, FRAME_NEIGHBOURS, scope, GAP)
            rows.append(frame_tiles(run.test, runs.index.classes, query, found))
            titles.append(run.name)
    if rows:
        contact_sheet(rows, file, titles=titles)
    return len(chosen)


def strips_of_both(
    runs: TwoRuns, file: Path, *, most: int = 8, classifier: str = "logistic"
) -> list[EmbeddedVideo]:
    """Strips of the first videos of the first action: labels, then predictions and embeddings.

    Returns the videos shown, as A embeds them.
    """
    from training.evaluation import strips
    from training.evaluation.boundaries import predicted_phases
    from training.evaluation.plots import principal_colours

    action = runs.a.test[0].record.action
    shown = [n for n, v in enumerate(runs.a.test) if v.record.action == action][:most]
    videos = {run.letter: [run.test[n] for n in shown] for run in (runs.a, runs.b)}
    colours = {
        letter: principal_colours([video.embeddings for video in of_run])
        for letter, of_run in videos.items()
    }
    predicted = {
        run.letter: predicted_phases(run.train, videos[run.letter], classifier)
        for run in (runs.a, runs.b)
    }
    bars = []
    for number, video in enumerate(videos["A"]):
        labelled = video.record.phases is not None
        of_video = [strips.labelled_bar(video, named=True)] if labelled else []
        for letter in LETTERS if labelled else ():
            phases = predicted[letter][number]
            if phases is not None:
                bar = strips.predicted_bar(videos[letter][number], phases, f"{letter}: predicted")
                of_video.append(bar)
        for letter in LETTERS:
            mine = videos[letter][number]
            name = f"{letter}: embedding"
            of_video.append(strips.embedding_bar(mine, colours[letter][number], name))
        bars.append(of_video)
    strips.draw_strips(videos["A"], bars, runs.index.classes, file)
    return videos["A"]


def losses_of_both(
    logs: Mapping[str, Sequence[tuple[int, float]]], file: Path, *, same_scale: bool
) -> None:
    """One panel for each run: its training loss over steps. The panels have the same steps.

    same_scale: whether they have the same limits of the loss, too.
    """
    from training.evaluation.plots import INK, new_figure, tidy

    figure = new_figure(8.2, 2.6)
    panels = figure.subplots(1, len(logs), squeeze=False, sharex=True, sharey=same_scale)[0]
    for axes in panels:
        axes.yaxis.set_tick_params(labelleft=True)
    for axes, (name, points) in zip(panels, logs.items(), strict=True):
        axes.plot(*zip(*points, strict=True), color="#1f4e79", linewidth=1.2)
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xlabel("training step", fontsize=9, color=INK)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        tidy(axes)
    panels[0].set_ylabel("loss", fontsize=9, color=INK)
    figure.savefig(file, dpi=110)


def curves_of_both(
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], file: Path
) -> None:
    """One panel for each metric: its value over training steps, a line for each run.

    curves: title -> name of the run (`RunVideos.name`) -> (step, value).
    """
    from training.evaluation.plots import INK, PHASE_COLOURS, new_figure, tidy

    figure = new_figure(2.7 * len(curves), 2.6)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, by_run) in zip(panels, curves.items(), strict=True):
        for name, points in by_run.items():
            number = LETTERS.index(name[0])
            style = {"color": PHASE_COLOURS[number], "marker": "os"[number], "markersize": 3}
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.6, **style)
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel("training step", fontsize=9, color=INK)
        values = [value for points in by_run.values() for _, value in points]
        # Kendall's tau may be negative. Progression has no lower bound: a low value would flatten.
        axes.set_ylim(max(-1.0, 1.1 * min(0.0, *values)), 1.1 * max(1e-9, *values))
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        tidy(axes)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)
