"""Evaluation of frame embeddings by one of the `protocols`: all metrics of a run, row by row.

`video_level` is the counterpart for one feature per video.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.folders import labels_file, place, prepare
from training.evaluation.baselines import TIME_INDEX, time_index
from training.evaluation.definitions import definitions
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.encoders import row_definitions
from training.evaluation.options import Options
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.stored import RunEmbeddings
from training.evaluation.videos import (
    known_doubts,
    open_index,
    require_some,
    split_videos,
    unseen_labels,
    videos_digest,
)
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.data.selection import Selection

TAU_REMARK = (
    "Kendall's tau is about 1 for any encoder that encodes the frame's position, even an untrained "
    "one, because a copy of the time index keeps the order. Do not argue from tau alone."
)


def evaluate_frame_level(
    run: str | Path,
    *,
    folder: str | Path | None = None,
    split: str | None = None,
    class_set: str | None = None,
    checkpoint: str | None = None,
    store: bool = True,
    left_out: LeftOut | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any] | None:
    """Embed the run's videos with the trained and the untrained network and compute every metric.

    Args:
        run: run directory of ``python -m training.train``.
        folder: prepared folder of videos with labels (default: the run's).
        split: the scored videos (default: the run's ``data.test_split``). Classifiers are fitted to
            ``data.train_split``, whose videos may be scored too.
        class_set: class set whose phases and splits are used (default: the run's
            ``data.class_set``).
        checkpoint: the trained weights, see `training.runs.model.restore`.
        store: whether embeddings are kept in RUN/embeddings, see `training.evaluation.stored`.
        left_out: receives the videos that cannot be read; no row includes them.
        options: see `evaluate_embeddings`.

    Returns:
        The content of RUN/evaluation.json: ``rows`` (name -> metrics, per_action, left_out), the
        scored ``split``, the videos that could not be read (``left_out``: id -> reason), the
        definitions as sentences, and a description of what was evaluated. None on the ranks of
        torchrun other than 0, which embed their part of the videos only.
    """
    from training.support.distributed import run_on_all, world_size

    start = time.perf_counter()
    Options(**options)  # wrong ones raise before the long part, on every rank
    left_out = LeftOut() if left_out is None else left_out

    def open_all() -> tuple[RunEmbeddings, Selection, tuple[str, str], list[list[VideoRecord]]]:
        embeddings = RunEmbeddings(
            run, rows=None, checkpoint=checkpoint, folder=folder, store=store
        )
        data = embeddings.cfg.data
        index = open_index(embeddings.cfg, folder, class_set=class_set)
        names = (data.train_split, split or data.test_split)
        splits = [split_videos(index, name) for name in names]
        for name, records in zip(names, splits, strict=True):
            require_labels(index, records, name)
        return embeddings, index, names, splits

    embeddings, index, names, (train, test) = run_on_all(open_all)
    left_out.in_index = len(index.bad)

    def row(videos: Sequence[EmbeddedVideo]) -> dict[str, Any]:
        return evaluate_embeddings(
            videos[: len(train)],
            videos[-len(test) :],
            index.classes,
            progress=progress,
            **options,
        )

    def records() -> list[VideoRecord]:
        return train if names[0] == names[1] else train + test

    # The time index comes first, so that wrong labels raise before the long part. With several
    # ranks that part is stored, and the others would only wait.
    rows = {TIME_INDEX: row(time_index(records()))} if world_size() == 1 else {}
    if not embeddings.share(records(), left_out):
        return None
    embedded = embeddings.embed(left_out.kept(records()), left_out, progress=progress)
    if left_out.videos or not rows:  # out of all rows, so that these compare the same videos
        train, test = left_out.kept(train), left_out.kept(test)
        for name, kept in zip(names, (train, test), strict=True):
            require_some(kept, name, place(index))
            require_labels(index, kept, name)
        rows = {TIME_INDEX: row(time_index(records()))}
    rows.update({name: row(videos) for name, videos in embedded.items()})
    return {
        "run": str(run),
        **embeddings.weights,
        "folder": place(index),
        "class_set": index.class_set,
        "run_class_set": index.run_class_set,
        "split": names[1],
        "videos": {"train": len(train), "test": len(test)},
        "videos_digest": videos_digest(index, names),
        "actions": sorted({record.action for record in test}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": left_out.videos,
        **known_doubts(run, test),
        **unseen_labels(embeddings.cfg, options.get("fractions", (1.0,))),
        "rows": rows,
        **described(test, options),
        "row_definitions": row_definitions(rows, embeddings.cfg.model.backbone_share),
    }


def described(test: Sequence[VideoRecord], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `evaluate_embeddings` that were used, and the definitions of its columns."""
    chosen = Options(**options)
    remark = {"remark": TAU_REMARK} if "tau" in chosen.metrics else {}
    names = [record.view for record in test]
    return {**chosen.facts(), "definitions": definitions(chosen, names), **remark}


def has_labels(records: Sequence[VideoRecord]) -> bool:
    """Whether any frame of any video has a phase."""
    return any(record.phases is not None and (record.phases >= 0).any() for record in records)


def require_labels(index: Selection, records: Sequence[VideoRecord], split: str) -> None:
    """UserError unless the videos of a split have labels."""
    if not has_labels(records):
        raise UserError(
            f"none of the {len(records)} readable videos of the split {split!r} has phase labels, "
            f"which the metrics need: write {labels_file(index)} and run "
            f"{prepare(index)}"
        )
