"""Evaluation of a classifier of actions on test views of whole videos."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.folders import listed, names_of, place
from training.evaluation.action_scores import (
    action_metrics,
    confusion_counts,
    per_class,
    ranking,
    softmax,
)
from training.evaluation.encoders import ROW_DEFINITIONS, TRAINED
from training.evaluation.videos import (
    known_doubts,
    open_index,
    require_some,
    split_videos,
    videos_digest,
)
from training.support.command import LeftOut, UserError, counted

if TYPE_CHECKING:
    import torch

    from training.data.index import VideoRecord
    from training.data.views import Views
    from training.models.tsn import TSNModel

NAME = "action"
AVERAGES = ("score", "prob")
UNSEEN = "videos whose action no training video has"


@dataclass(frozen=True)
class Classified:
    """The scores of the videos that can be read and whose action is a class.

    Attributes:
        records: the videos.
        scores: float64 (N, C), averaged over the views of a video.
        labels: int64 (N,), their classes.
        unseen: the videos whose action is no class.
    """

    records: list[VideoRecord]
    scores: np.ndarray
    labels: np.ndarray
    unseen: list[VideoRecord]


def evaluate_actions(
    run: str | Path,
    *,
    folder: str | Path | None = None,
    split: str | None = None,
    class_set: str | None = None,
    checkpoint: str | None = None,
    clips: int | None = None,
    crops: int = 1,
    average: str = "score",
    left_out: LeftOut | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The content of RUN/evaluation.json for ``--protocol action``.

    Args:
        run: run directory of ``python -m training.train``, trained with loss.action.
        folder: prepared folder of videos with actions (default: the run's).
        split: the scored videos (default: the run's ``data.test_split``).
        class_set: class set whose splits are used (default: the run's ``data.class_set``).
        checkpoint: the trained weights, see `training.runs.model.restore`.
        clips: number of clips of a video, see `training.data.views.views_of`.
        crops: number of crops of a clip: 1, 3 or 10.
        average: what is averaged over the views: "score", the classifier's output, as the consensus
            in training; "prob", its softmax (mmaction2's average_clips).
        left_out: receives the videos that cannot be read; the metrics do not include them.

    Raises:
        UserError: the run has no classifier of actions, or no video can be scored.
    """
    import torch

    from training.data.views import views_of
    from training.runs.model import restore

    start = time.perf_counter()
    left_out = LeftOut() if left_out is None else left_out
    found = restore(run, checkpoint=checkpoint)
    cfg = found.cfg
    classes = class_names(run, cfg)
    model = found.model.to("cuda" if torch.cuda.is_available() else "cpu")
    index = open_index(cfg, folder, class_set=class_set)
    split = split or cfg.data.test_split
    records = split_videos(index, split)
    left_out.in_index = len(index.bad)
    known = [record for record in records if record.action in classes]
    if not known:
        raise UserError(
            f"none of the {len(records)} videos of the split {split!r} has an action that the run "
            f"{run} has learned ({_some(classes)}): choose another --split or --folder"
        )
    views = views_of(cfg, clips, crops)
    result = classify_videos(
        model, records, cfg, classes, views, average, left_out, progress=progress
    )
    require_some(left_out.kept(known), split, place(index))
    predicted = ranking(result.scores)[:, 0]
    counts = confusion_counts(predicted, result.labels, len(classes))
    row = {
        "metrics": action_metrics(result.scores, result.labels),
        "per_action": {},
        "left_out": {UNSEEN: len(result.unseen)} if result.unseen else {},
    }
    unseen = {record.id: record.action for record in result.unseen}
    few = few_clips(views, result.records)
    trained_on = index.videos.where(split=cfg.data.train_split)
    return {
        "run": str(run),
        "checkpoint": found.checkpoint,
        "step": found.step,
        "folder": place(index),
        "class_set": index.class_set,
        "run_class_set": index.run_class_set,
        "split": split,
        "protocol": NAME,
        "views": {"clips": views.clips, "crops": views.crops, "average": average},
        "videos": {"train": len(trained_on), "test": len(result.records)},
        "videos_digest": videos_digest(index, (cfg.data.train_split, split)),
        "actions": sorted({record.action for record in result.records}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": left_out.videos,
        **({"unseen": unseen} if unseen else {}),
        **({"remark": few} if few else {}),
        **known_doubts(run, result.records),
        "rows": {TRAINED: row},
        "per_class": per_class(counts, classes),
        "classes": classes,
        "confusion": counts.tolist(),
        "definitions": definitions(len(classes), views, average),
        "row_definitions": {TRAINED: ROW_DEFINITIONS[TRAINED]},
    }


def class_names(run: str | Path, cfg: Any) -> list[str]:
    """The actions in the order of the scores, from RUN/classes.json.

    UserError if the run was not trained with loss.action, or lacks the file.
    """
    from training.loop.labels import CLASSES, read_classes

    if cfg.model.encoder != "tsn":
        raise UserError(
            f"{run}: --protocol {NAME} scores a classifier of actions, which a run with "
            f"model.encoder=tsn has, got model.encoder={cfg.model.encoder}. Train one on its "
            f"weights: {classifier_command(run, cfg)}; or "
            "use --protocol vclr, which fits a linear classifier"
        )
    names = read_classes(Path(run))
    number = cfg.loss.action.classes
    if names is None and not (Path(run) / "log.jsonl").exists():  # by training.convert
        remedy = (
            f'write the {number} actions in the order of the scores, {{"classes": [["archery"], '
            f"...]}}, to {Path(run) / CLASSES}"
            if cfg.model.weights_parts == "all"
            else "its classifier has random weights; convert again with model.weights_parts=all, "
            f"or train one: {classifier_command(run, cfg)}"
        )
        raise UserError(
            f"{run} was not trained here, so it has no {CLASSES}, which names its {number} "
            f"classes: {remedy}"
        )
    if names is None or len(names) != number:
        got = "no such file" if names is None else f"{len(names)} classes"
        raise UserError(
            f"{run}: expected the {number} classes of the run in {CLASSES}, got "
            f"{got}; restore it from a copy of the run, or train again"
        )
    return [name for (name,) in names]


def classifier_command(run: str | Path, cfg: Any) -> str:
    """The command that trains a classifier of actions on the backbone of a run."""
    from training.models.build import CLIP_BACKBONES

    recipe = "r3d" if cfg.model.backbone in CLIP_BACKBONES else "tsn"
    keys = {"model.weights": str(run), "model.backbone": cfg.model.backbone}
    if cfg.model.backbone_to != "last":
        keys["model.backbone_to"] = cfg.model.backbone_to
    keys["data.folder"] = listed(names_of(cfg.data.folder)) if cfg.data.folder else "FOLDER"
    keys["train.run_dir"] = f"{str(run).rstrip('/')}_action"
    words = [f"{key}={value}" for key, value in keys.items()]
    return shlex.join(["python", "-m", "training.train", f"recipes/{recipe}_ucf101.yaml", *words])


def few_clips(views: Views, records: Sequence[VideoRecord]) -> str:
    """A sentence about videos that have fewer different clips than ``views.clips``; "" if none."""
    from fastseq.video.columns import column

    counts = column(records, "sound")
    short = [
        count
        for count in np.unique(counts)
        if len(np.unique(views.frames(int(count)), axis=0)) < views.clips
    ]
    number = int(np.isin(counts, short).sum())
    if not number:
        return ""
    return (
        f"too short for {views.clips} different clips: {number} of "
        f"{counted(len(records), 'video')}; equal clips of a video are all averaged"
    )


def classify_videos(
    model: TSNModel,
    records: Sequence[VideoRecord],
    cfg: Any,
    classes: Sequence[str],
    views: Views,
    average: str = "score",
    left_out: LeftOut | None = None,
    *,
    progress: bool = True,
) -> Classified:
    """The scores of videos by a model in eval mode, averaged over their views.

    Videos whose action is not one of ``classes`` are counted and not read. Those that cannot be
    read are added to ``left_out``; without it their VideoError is raised.
    """
    from tqdm import tqdm

    from fastseq.video import decode_side
    from training.data.dataset import open_evaluation_engine
    from training.data.views import read_views

    if average not in AVERAGES:
        raise UserError(f"average: expected one of {', '.join(AVERAGES)}, got {average!r}")
    numbers = {name: number for number, name in enumerate(classes)}
    known = [record for record in records if record.action in numbers]
    size = cfg.augmentation.size
    side = max(size, decode_side(size, cfg.data.cache_side))
    engine = open_evaluation_engine(known, cfg) if known else None
    read = read_views(known, views, size, side, engine=engine) if known else iter(())
    kept, scores = [], []
    bar = tqdm(zip(known, read, strict=True), "classifying", len(known), disable=not progress)
    try:
        for record, clips in bar:
            if isinstance(clips, Exception):
                if left_out is None:
                    raise clips
                left_out.add(record.id, clips.reason)
                continue
            row = video_scores(model, clips, average)
            if not np.isfinite(row).all():
                raise UserError(
                    f"the classifier returned NaN or infinite scores for {record.id}: the training "
                    "has probably diverged; check the loss in log.jsonl"
                )
            kept.append(record)
            scores.append(row)
    finally:
        if engine is not None:
            engine.close()
    labels = np.array([numbers[record.action] for record in kept], dtype=np.int64)
    stacked = np.stack(scores) if scores else np.empty((0, len(classes)))
    unseen = [record for record in records if record.action not in numbers]
    return Classified(kept, stacked, labels, unseen)


def video_scores(model: TSNModel, clips: torch.Tensor, average: str) -> np.ndarray:
    """float64 (C,): the mean of the scores or probabilities of clips (K, L, 3, H, W)."""
    import torch

    from training.models.encoder import CHUNK_FRAMES

    device = next(model.parameters()).device
    # A few clips at a time: train.chunk_frames=0 would keep all views of a video in memory.
    parts = clips.split(max(1, CHUNK_FRAMES // clips.shape[1]))
    with torch.inference_mode():
        made = [model.clip_scores(part[None].to(device))[0] for part in parts]
    scores = torch.cat(made).double().cpu().numpy()
    return (softmax(scores) if average == "prob" else scores).mean(0)


def definitions(classes: int, views: Views, average: str) -> dict[str, str]:
    """A sentence about the protocol and one about each of its columns."""
    what = "scores" if average == "score" else "probabilities"
    crops = {1: "1 central crop", 3: "3 crops along the longer side", 10: "10 crops"}[views.crops]
    clip = f"{views.length} frames" if views.segments is None else f"{views.segments} segments"
    clip = clip.replace("1 frames", "1 frame")
    return {
        "protocol": (
            f"The run's own classifier of {classes} actions, on {views.clips} evenly spaced "
            f"clip{'s' * (views.clips != 1)} of {clip} with {crops} each; the {what} of a video "
            "are averaged."
        ),
        "top_1": "Top-1, higher is better: share of videos whose action has the highest score.",
        "top_5": (
            "Top-5, higher is better: share of videos whose action is among the five highest "
            "scores; undefined for fewer than five classes."
        ),
        "mean_class_accuracy": (
            "Mean class accuracy, higher is better: the mean of top-1 over the actions that scored "
            "videos have."
        ),
    }


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
