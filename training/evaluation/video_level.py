"""VCLR's evaluation: one feature per video, a linear classifier of actions, and retrieval."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.folders import labels_file, place, prepare
from training.evaluation.encoders import (
    BACKBONE_CENTRED,
    ROW_DEFINITIONS,
    TRAINED,
    Encoder,
    load_compared_encoders,
)
from training.evaluation.video_ranking import KS, ranked, recalls
from training.evaluation.videos import (
    known_doubts,
    open_index,
    require_some,
    split_videos,
    videos_digest,
)
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.data.selection import Selection

NAME = "vclr"
FRAMES = 30
CLIPS = 10  # of backbones of clips, as R(2+1)D, https://arxiv.org/abs/1711.11248


def evaluate_video_level(
    run: str | Path,
    *,
    folder: str | Path | None = None,
    split: str | None = None,
    class_set: str | None = None,
    checkpoint: str | None = None,
    left_out: LeftOut | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The content of RUN/evaluation.json for ``--protocol vclr``; classes are the videos' actions.

    Args:
        run: run directory of ``python -m training.train``, trained with any loss.
        folder: prepared folder of videos with actions (default: the run's).
        split: the scored videos (default: the run's ``data.test_split``). The classifier is fitted
            to ``data.train_split``, in which neighbours are searched.
        class_set: class set whose splits are used (default: the run's
            ``data.class_set``).
        checkpoint: the trained weights, see `training.runs.model.restore`.
        left_out: receives the videos that cannot be read; no row includes them.
    """
    start = time.perf_counter()
    left_out = LeftOut() if left_out is None else left_out
    encoders, cfg = load_compared_encoders(run, folder, checkpoint=checkpoint)
    weights = encoders[TRAINED].weights
    encoders.pop(BACKBONE_CENTRED, None)  # its mean over the video is 0
    if cfg.model.encoder == "conv3d":
        raise UserError(
            f"{run}: got model.encoder=conv3d, which needs neighbouring frames; --protocol {NAME} "
            f"uses {FRAMES} frames of the whole video and needs model.encoder fve, vclr, tsn or dpc"
        )
    index = open_index(cfg, folder, class_set=class_set)
    names = (cfg.data.train_split, split or cfg.data.test_split)
    if names[0] == names[1]:
        raise UserError(
            f"--protocol {NAME} searches the nearest training videos, so it cannot score the split "
            f"{names[0]!r} that the run was trained on; choose another --split"
        )
    train, test = (split_videos(index, name) for name in names)
    _require_classes(index, train)
    left_out.in_index = len(index.bad)
    features = video_features(encoders, train + test, cfg, left_out, progress=progress)
    train, test = left_out.kept(train), left_out.kept(test)
    for name, kept in zip(names, (train, test), strict=True):
        require_some(kept, name, place(index))
    _require_classes(index, train)
    labels = [np.array([record.action for record in split]) for split in (train, test)]
    rows = {
        name: {
            "metrics": video_scores(rows[: len(train)], labels[0], rows[len(train) :], labels[1]),
            "per_action": {},
            "left_out": {},
        }
        for name, rows in features.items()
    }
    return {
        "run": str(run),
        "checkpoint": weights.checkpoint,
        "step": weights.step,
        "folder": place(index),
        "class_set": index.class_set,
        "run_class_set": index.run_class_set,
        "split": names[1],
        "protocol": NAME,
        "videos": {"train": len(train), "test": len(test)},
        "videos_digest": videos_digest(index, names),
        "actions": sorted({record.action for record in test}),
        "seconds": round(time.perf_counter() - start, 1),
        "left_out": left_out.videos,
        **known_doubts(run, test),
        "rows": rows,
        "definitions": definitions(
            len(set(labels[0])), clip_of(cfg), cfg.data.segments if cfg.model.shift else None
        ),
        "row_definitions": {name: ROW_DEFINITIONS[name] for name in rows},
    }


def video_features(
    encoders: Mapping[str, Encoder],
    records: Sequence[VideoRecord],
    cfg: Any,
    left_out: LeftOut | None = None,
    *,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """For each encoder float64 (videos, E): the mean embedding of FRAMES frames of each video.

    With a backbone of clips it is the mean of CLIPS clips, see `clip_places`. Videos that cannot be
    read are added to ``left_out``; without it their VideoError is raised.
    """
    import torch
    from tqdm import tqdm

    from fastseq.video import decode_side
    from fastseq.video.gaps import frames_of
    from training.data.dataset import open_evaluation_engine, read_each

    size, clip = cfg.augmentation.size, clip_of(cfg)
    side = decode_side(size, cfg.data.cache_side)

    def places(record: VideoRecord) -> np.ndarray:
        sound = frames_of(record)
        if clip is None:
            return sound[np.round(np.linspace(0, len(sound) - 1, FRAMES)).astype(np.int64)]
        return sound[clip_places(len(sound), *clip)]

    engine = open_evaluation_engine(records, cfg)
    counts = [int(len(frames_of(record)) > 0) for record in records]
    read = read_each(
        records,
        counts,  # a frame that several clips have is read once
        lambda one, _: _reading(one, np.unique(places(one)), size, side),
        engine=engine,
    )
    out: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    bar = tqdm(zip(records, read, strict=True), "embedding", len(records), disable=not progress)
    for record, frames in bar:
        if isinstance(frames, Exception):
            if left_out is None:
                raise frames
            left_out.add(record.id, frames.reason)
            continue
        wanted = places(record)
        index = np.searchsorted(np.unique(wanted), wanted)
        made: dict[Any, torch.Tensor] = {None: frames[torch.from_numpy(index)][None]}
        for name, encoder in encoders.items():
            if encoder.features not in made:
                made[encoder.features] = encoder.features(made[None])
            feature = encoder.embed(made[encoder.features])[0].float().mean(0)
            if not torch.isfinite(feature).all():
                raise UserError(
                    f"encoder {name!r} returned NaN or infinite features for {record.id}: the "
                    "training has probably diverged; check the loss in log.jsonl"
                )
            out[name].append(feature.double().cpu().numpy())
    engine.close()
    return {name: np.stack(rows) if rows else np.empty((0, 0)) for name, rows in out.items()}


def clip_of(cfg: Any) -> tuple[int, int] | None:
    """Frames of a clip and their distance; None if the run's backbone is one of images."""
    from training.models.build import CLIP_BACKBONES

    if cfg.model.backbone not in CLIP_BACKBONES:
        return None
    return cfg.data.tuple_frames, cfg.data.tuple_stride


def clip_places(num_frames: int, clip_frames: int, stride: int) -> np.ndarray:
    """int64 (CLIPS, L): the frames of clips that start at evenly spaced places of a video.

    The first clip starts at the first frame and the last one ends at the last frame. A video that
    is shorter than a clip repeats its last frame.
    """
    last = max(num_frames - 1 - (clip_frames - 1) * stride, 0)
    starts = np.round(np.linspace(0, last, CLIPS)).astype(np.int64)
    return np.minimum(starts[:, None] + stride * np.arange(clip_frames), num_frames - 1)


def _reading(record: VideoRecord, frames: np.ndarray, size: int, side: int) -> Any:
    """A reading of these frames, each cropped to the central square of ``size`` pixels."""
    from fastseq.video import Clip
    from fastseq.video.augment import ClipDraw
    from fastseq.video.readings import area_of, reading_of

    area = area_of(record, side)
    height, width = area.height, area.width
    square = min(size, height, width)
    box = ((height - square) // 2, (width - square) // 2, square, square)
    clip = Clip(frames, ClipDraw(*box, flip=False, colour=(), blur_sigma=0.0))
    return reading_of(record, side, [clip])


def video_scores(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """``linear_svm`` and ``recall_at_K`` of features (videos, E), see `definitions`.

    ``recall_at_K`` is NaN if there are fewer than K training videos.
    """
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=1.0, dual=False, fit_intercept=False, max_iter=10_000)
    accuracy = float(svm.fit(train, train_labels).score(test, test_labels))
    order, _ = ranked(test, train)
    return {"linear_svm": accuracy} | recalls(train_labels[order] == test_labels[:, None])


def definitions(
    classes: int, clip: tuple[int, int] | None = None, shifted: int | None = None
) -> dict[str, str]:
    """A sentence about the protocol and one about each of its columns.

    clip: see `clip_of`. shifted: frames of a clip of a network with model.shift.
    """
    taken, source = f"{FRAMES} evenly spaced frames", ""
    if shifted is not None:
        source = (
            f" The network shifts channels between frames (model.shift): it sees each of the "
            f"{FRAMES} frames in a clip of {shifted} neighbouring ones of them."
        )
    if clip is not None:
        taken = f"{CLIPS} evenly spaced clips of {clip[0]} frames with stride {clip[1]}"
        source = (
            f" VCLR does not state the number of clips of 3-D networks: {CLIPS} as in R(2+1)D "
            "(arXiv 1711.11248)."
        )
    out = {
        "protocol": (
            f"VCLR (sections 4.3 and 4.6, A.2.3): a video's feature is the mean of the embeddings "
            f"of {taken}, without the losses' heads; the videos' actions are the classes. Each "
            "frame is scaled so that its shorter side has 8/7 of augmentation.size pixels (or "
            "data.cache_side), and its central square of augmentation.size pixels is kept; extract "
            f"and the protocols that score frames keep more of it.{source}"
        ),
        "linear_svm": (
            f"Linear classification, higher is better: share of test videos whose action, of "
            f"{classes}, is predicted correctly by a linear support vector machine fitted to the "
            "training videos' features without scaling (squared hinge, C = 1, no intercept, one "
            "against rest: liblinear's -s 2 -c 1, as in the released code)."
        ),
    }
    for k in KS:
        out[f"recall_at_{k}"] = (
            f"R@{k}, higher is better: share of test videos with a video of the same action among "
            f"the {k} nearest training videos, by cosine similarity."
        )
    return out


def _require_classes(index: Selection, train: Sequence[VideoRecord]) -> None:
    actions = {record.action for record in train}
    if len(actions) < 2:
        raise UserError(
            f"--protocol {NAME} classifies actions, but the training videos of {place(index)} "
            f'all have the action {actions.pop()!r}: add "action" to them in '
            f"{labels_file(index)} and run {prepare(index)}"
        )
