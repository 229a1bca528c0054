"""Estimates the time of a training from steps on a few random frames."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fastseq.video.columns import column
from training.loop.precision import autocast
from training.loop.random_batch import random_pixels
from training.support.distributed import broadcast_from_main

if TYPE_CHECKING:
    from training.loop.trainer import Trainer

ENOUGH = 0.7  # seconds; after a step of this time no larger step is measured
_UNITS = [(604800, "weeks"), (86400, "days"), (3600, "hours"), (60, "minutes")]


def running_time(trainer: "Trainer") -> str:
    """The estimated time of the training, in words.

    After a warm-up step it measures a step on as many random frames as take a second or two; a
    longer step is assumed to grow linearly with its frames. Videos are not read, and torch.compile
    is not used. With ``data.cache=features``, the time to compute the features of all videos is
    added.
    """
    cfg, model = trainer.cfg, trainer.model
    with torch.compiler.set_stance("force_eager"):
        seconds, frames, whole = _step_seconds(trainer)
    seconds *= cfg.train.accumulate
    total, ends = seconds * trainer.steps, ""
    if cfg.train.max_minutes is not None and total > 60 * cfg.train.max_minutes:
        total, ends = 60 * cfg.train.max_minutes, ", ended by train.max_minutes"
    measured = "measured" if frames == whole else f"measured on {frames} frames"
    if cfg.data.cache != "features":
        return (
            f"about {in_words(total)}{ends}: {_short(seconds)} s per step ({measured}, without "
            "reading videos)"
        )
    in_videos = int(column(trainer.loader.items.videos, "frames").sum())
    stored = max(1, cfg.data.feature_draws) * in_videos
    filling = stored * _feature_seconds(model, cfg.augmentation.size, trainer.precision)
    return (
        f"about {in_words(total + filling)}{ends}: {_short(seconds)} s per step ({measured}), "
        f"after at most {in_words(filling)} for the features of {stored} frames"
    )


def in_words(seconds: float) -> str:
    """A duration in the usual unit: "40 s", "12 minutes", "3 weeks"."""
    for size, unit in _UNITS:
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{_short(seconds)} s"


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _step_seconds(trainer: "Trainer") -> tuple[float, int, int]:
    """Seconds of one batch on this rank, the frames measured, and the frames of the batch."""
    cfg, model, step = trainer.cfg, trainer.model, trainer.gradient_step
    clips = step.describe(cfg)
    items = min(trainer.loader.batch_size, len(trainer.loader.items))
    whole = items * clips.read // cfg.data.split_time
    chunk, before = model.chunk_frames, model.chunk_size()
    times: list[tuple[int, float]] = []
    warm = False
    try:
        for batch in step.examples(items):
            frames = batch["valid"].numel() * cfg.data.num_context
            if before and frames <= before < whole:  # several chunks, as in the whole step
                model.chunk_frames = max(1, frames // 2)
            else:
                model.chunk_frames = chunk

            def run(batch: dict[str, Any] = batch) -> None:
                step([batch], 0.0, list)

            if not warm:
                run()
                warm = True
            times.append((frames, broadcast_from_main(_timed(run, trainer.device))))
            if times[-1][1] > ENOUGH:
                break
    except torch.OutOfMemoryError:  # smaller steps may have been measured before
        if not times:
            raise
    finally:
        model.chunk_frames = chunk
    few, first = times[0]
    frames, seconds = times[-1]
    # Constant time, such as the optimizer's step, is in both.
    growth = (seconds - first) / (frames - few) if frames > few else seconds / frames
    return seconds + max(growth, 0.0) * (whole - frames), frames, whole


def _feature_seconds(model: Any, size: int, precision: torch.dtype) -> float:
    """Seconds of one frame in the backbone, for stored features."""
    device = next(model.parameters()).device
    frames = model.chunk_size() or 8

    def run() -> None:
        with torch.no_grad(), autocast(device, precision):
            model.features(pixels.to(device))

    pixels = random_pixels((1, frames, 3, size, size))
    run()
    while (seconds := _timed(run, device)) < ENOUGH / 4:
        frames *= 2
        pixels = random_pixels((1, frames, 3, size, size))
    return seconds / frames


def _timed(call: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock
