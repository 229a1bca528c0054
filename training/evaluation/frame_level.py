"""Evaluation of frame embeddings by one of the `protocols`: all metrics of a run, row by row.

`video_level` is the counterpart for one feature per video.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.folders import labels_file, place, prepare
from training.evaluation.baselines import TIME_INDEX, time_index
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.encoders import load_compared_encoders, row_definitions
from training.evaluation.protocols import definitions, find_protocol
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.videos import known_doubts, open_index, require_some, split_videos
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
    protocol: str = "carl",
    stride: int | None = None,
    fractions: Sequence[float] = (1.0,),
    few_shot: bool = False,
    left_out: LeftOut | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Embed the run's videos with the trained and the untrained network and compute every metric.

    Args:
        run: run directory of ``python -m training.train``.
        folder: prepared folder of videos with labels (default: the run's).
        split: the scored videos (default: the run's ``data.test_split``). Classifiers are fitted to
            ``data.train_split``, whose videos may be scored too.
        class_set: class set whose phases and splits are used (default: the run's
            ``data.class_set``).
        protocol, stride, fractions, few_shot: see `evaluate_embeddings`.
        left_out: receives the videos that cannot be read; no row includes them.

    Returns:
        The content of RUN/evaluation.json: ``rows`` (name -> metrics, per_action, left_out), the
        scored ``split``, the videos that could not be read (``left_out``: id -> reason), the
        definitions as sentences, and a description of what was evaluated.
    """
    from training.evaluation.embed import embed_records

    start = time.perf_counter()
    left_out = LeftOut() if left_out is None else left_out
    stride = find_protocol(protocol).stride if stride is None else stride
    encoders, cfg = load_compared_encoders(run, folder)
    index = open_index(cfg, folder, class_set=class_set)
    names = (cfg.data.train_split, split or cfg.data.test_split)
    train, test = (split_videos(index, name) for name in names)
    for name, found in zip(names, (train, test), strict=True):
        require_labels(index, found, name)
    left_out.in_index = len(index.bad)

    def row(videos: Sequence[EmbeddedVideo]) -> dict[str, Any]:
        return evaluate_embeddings(
            videos[: len(train)],
            videos[-len(test) :],
            index.classes,
            protocol=protocol,
            stride=stride,
            fractions=fractions,
            few_shot=few_shot,
        )

    def records() -> list[VideoRecord]:
        return train if names[0] == names[1] else train + test

    # The time index comes first, so that wrong options and labels raise before the long part.
    rows = {TIME_INDEX: row(time_index(records()))}
    embedded = embed_records(encoders, records(), cfg, left_out, progress=progress)
    if left_out.videos:  # out of all rows, so that these compare the same videos
        train, test = left_out.kept(train), left_out.kept(test)
        for name, kept in zip(names, (train, test), strict=True):
            require_some(kept, name, place(index))
            require_labels(index, kept, name)
        rows = {TIME_INDEX: row(time_index(records()))}
    rows.update({name: row(videos) for name, videos in embedded.items()})
    return {
        "run": str(run),
        "folder": place(index),
        "class_set": index.class_set,
        "run_class_set": index.run_class_set,
        "split": names[1],
        "protocol": protocol,
        "stride": stride,
        "fractions": list(fractions),
        "videos": {"train": len(train), "test": len(test)},
        "actions": sorted({record.action for record in test}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": left_out.videos,
        **known_doubts(run, test),
        "rows": rows,
        "definitions": definitions(
            protocol, stride, views=[record.view for record in test], few_shot=few_shot
        ),
        "row_definitions": row_definitions(rows, cfg.model.backbone_share),
        "remark": TAU_REMARK,
    }


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
