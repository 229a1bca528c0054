"""The plan and the cost of a training: python -m training.train --dry-run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastseq.video.columns import column
from training.data.folders import filters_of, listed, names_of
from training.loop.optimizer import KINDS, group_rates
from training.loop.precision import autocast, precision_name
from training.loop.step_time import running_time
from training.loop.trainer import Trainer
from training.models import VCLRModel, VideoEncoder
from training.support.distributed import world_size


def describe(trainer: Trainer) -> str:
    """The text of --dry-run: sizes of model and data, memory and time of the training."""
    cfg, model, items = trainer.cfg, trainer.model, trainer.loader.items
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    ranks, parts = world_size(), cfg.train.accumulate
    videos = min(cfg.data.batch_size, len(items)) if ranks == 1 else cfg.data.batch_size
    item = trainer.gradient_step.describe(cfg)
    frames = videos * item.read
    shared = f", {frames // ranks} on each of {ranks} ranks" if ranks > 1 else ""
    if cfg.data.split_time > 1:
        shared += f" ({cfg.data.num_frames // cfg.data.split_time} of each clip)"
    optimizer = KINDS[cfg.optim.name]
    several = f"; {parts} times, then {optimizer.name}'s step" if parts > 1 else ""
    others = f" and {ranks - 1} more" if ranks > 1 else ""
    unit = "pairs" if cfg.data.clips == "videos" else "videos"
    epoch_steps = trainer.loader.batches_per_epoch / parts
    averaged = cfg.optim.ema is not None
    # fp32 weights; of trained ones also gradients, the optimizer's state, and the average.
    weights = 4 * (total + (1 + optimizer.moments + averaged) * trained)
    average = " and the average" if averaged else ""
    kept = videos * item.kept // ranks
    takes = running_time(trainer)
    model.chunk_frames = model.chunk_size()  # the size on the run's device
    stored = cfg.data.cache == "features"
    size = cfg.augmentation.size
    activations = saved_bytes(model.cpu(), kept, size, trainer.precision, stored=stored)
    return "\n".join(
        [
            f"model        {cfg.model.backbone}: {total:,} parameters, {trained:,} trained",
            f"data         {len(items)} videos in split {cfg.data.train_split!r}, "
            f"{epoch_steps:g} steps per epoch, {trainer.steps} steps in total",
            *folder_lines(items.videos, cfg.data),
            f"step         {videos} {unit} x {item.words} = "
            f"{frames} frames of {cfg.augmentation.size} px{shared}{several}",
            f"optimizer    {optimizer_words(trainer)}",
            f"memory       about {_size(weights + activations)}: {_size(weights)} for weights, "
            f"gradients{',' if average else ' and'} {optimizer.name}{average}, "
            f"{_size(activations)} kept for backward",
            f"time         {takes}",
            f"runs on      {trainer.device}{others}, {precision_name(trainer.precision)}",
            f"writes to    {cfg.train.run_dir}",
        ]
    )


def optimizer_words(trainer: Trainer) -> str:
    """The optimizer, its rates and schedule, and the average of the weights."""
    optim, steps = trainer.cfg.optim, trainer.steps
    rates = [f"{name} {rate:g}" for name, rate in group_rates(optim, optim.lr).items()]
    schedule = optim.schedule
    if schedule == "step":
        at = [f"{share * steps:g}" for share in trainer.milestones if share < 1]
        schedule = f"times {optim.gamma:g} at steps {', '.join(at)}" if at else "constant"
        if unreached := len(trainer.milestones) - len(at):
            schedule += f" ({unreached} of {len(trainer.milestones)} milestones after the end)"
    words = [KINDS[optim.name].name, *rates, schedule]
    if optim.ema is not None:
        left = f"{optim.ema**steps:.2%}".replace("%", " %")
        words.append(f"average with decay {optim.ema:g} (initial weights: {left} of it)")
    return ", ".join(words)


def folder_lines(videos: Sequence[Any], data_cfg: Any) -> list[str]:
    """The filters, and for each of several folders its videos and their share of an epoch."""
    lines = [f"filter       {key}={listed(names)}" for key, names in filters_of(data_cfg).items()]
    folders = names_of(data_cfg.folder)
    if len(folders) == 1:
        return [*lines, f"folder       {folders[0]}"]
    counts = np.bincount(column(videos, "source"), minlength=len(folders)).tolist()
    weights = data_cfg.weights or counts
    for folder, count, weight in zip(folders, counts, weights, strict=True):
        given = f"weight {weight:g}, " if data_cfg.weights else ""
        share = f"{weight / sum(weights):.1%}".replace("%", " %")
        number = "1 video" if count == 1 else f"{count} videos"
        lines.append(f"folder       {folder}: {number}, {given}{share} of an epoch")
    return lines


def saved_bytes(
    model: VideoEncoder | VCLRModel,
    frames: int,
    size: int,
    precision: torch.dtype,
    *,
    stored: bool = False,
) -> float:
    """Bytes that autograd keeps for all frames; with recomputation, for the inputs of the chunks
    and one whole chunk. ``stored``: the frames are stored features."""
    before, chunk = model.chunk_frames, model.chunk_size()
    if chunk and (length := _clip_frames(model)):
        chunk = max(1, chunk // length) * length  # whole clips
    try:
        model.chunk_frames = 0
        whole = saved_bytes_per_frame(model, size, precision, stored)
        if stored or not (model.checkpointing and 0 < chunk < frames):
            return frames * whole
        model.chunk_frames = 2  # less than the few frames that are measured
        kept = saved_bytes_per_frame(model, size, precision)
        return frames * kept + chunk * (whole - kept)
    finally:
        model.chunk_frames = before


def saved_bytes_per_frame(
    model: VideoEncoder | VCLRModel, size: int, precision: torch.dtype, stored: bool = False
) -> float:
    """Bytes that autograd keeps per frame, measured on a few frames or clips on the CPU."""
    few, more = 4, 12  # the difference excludes constant memory
    if length := _clip_frames(model):
        few, more = 2 * length, 3 * length
    kept = [_saved_bytes(model, frames, size, precision, stored) for frames in (few, more)]
    return (kept[1] - kept[0]) / (more - few)


def _clip_frames(model: VideoEncoder | VCLRModel) -> int | None:
    """Frames of a clip; None if the backbone is one of images."""
    return model.clip_frames if model.backbone.clips else None


def _saved_bytes(
    model: VideoEncoder | VCLRModel, frames: int, size: int, precision: torch.dtype, stored: bool
) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with (
        torch.compiler.set_stance("force_eager"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(torch.device("cpu"), precision),
    ):
        if stored:
            features = torch.zeros(1, frames, model.backbone.out_features)
            z = model.project(model.encode(features, stored=True))
        elif length := _clip_frames(model):
            clips = torch.zeros(1, frames // length, length, 3, size, size, dtype=torch.uint8)
            z = model.clip_features(clips)
        else:
            context = getattr(model, "num_context", 1)
            shape = (1, frames // context, *([context] if context > 1 else []), 3, size, size)
            z = model(torch.zeros(shape, dtype=torch.uint8))
    del z  # keeps the graph, and thereby every counted storage, alive until here
    return sum(kept.values())


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
