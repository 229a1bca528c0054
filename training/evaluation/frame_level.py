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
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.encoders import row_definitions
from training.evaluation.protocols import definitions, find_protocol
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.stored import RunEmbeddings
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
    left_out = LeftOut() if left_out is None else left_out
    found: dict[str, Any] = {}

    def open_all() -> None:
        found["embeddings"] = RunEmbeddings(
            run, rows=None, checkpoint=checkpoint, folder=folder, store=store
        )
        cfg = found["cfg"] = found["embeddings"].cfg
        index = found["index"] = open_index(cfg, folder, class_set=class_set)
        names = found["names"] = (cfg.data.train_split, split or cfg.data.test_split)
        found["splits"] = [split_videos(index, name) for name in names]
        for name, records in zip(names, found["splits"], strict=True):
            require_labels(index, records, name)
        left_out.in_index = len(index.bad)

    run_on_all(open_all)
    embeddings, cfg, index, names, (train, test) = found.values()

    def row(videos: Sequence[EmbeddedVideo]) -> dict[str, Any]:
        return evaluate_embeddings(
            videos[: len(train)], videos[-len(test) :], index.classes, **options
        )

    def records() -> list[VideoRecord]:
        return train if names[0] == names[1] else train + test

    # The time index comes first, so that wrong options and labels raise before the long part. With
    # several ranks that part is stored, and the others would only wait.
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
        "actions": sorted({record.action for record in test}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": left_out.videos,
        **known_doubts(run, test),
        "rows": rows,
        **described(test, options),
        "row_definitions": row_definitions(rows, cfg.model.backbone_share),
        "remark": TAU_REMARK,
    }


def described(test: Sequence[VideoRecord], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `evaluate_embeddings` that were used, and the definitions of its columns."""
    protocol = options.get("protocol", "carl")
    stride = options.get("stride")
    stride = find_protocol(protocol).stride if stride is None else stride
    return {
        "protocol": protocol,
        "stride": stride,
        "fractions": list(options.get("fractions", (1.0,))),
        "definitions": definitions(
            protocol,
            stride,
            views=[record.view for record in test],
            few_shot=options.get("few_shot", False),
        ),
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
