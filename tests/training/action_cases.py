"""A small recipe of a classifier of actions, on videos that need no files."""

from types import SimpleNamespace

import numpy as np
import torch
from omegaconf import OmegaConf

from fastseq.video import ClipLoader, PyAVEngine, SegmentClips
from training.loop.labels import ActionClasses, LabelledLoader
from training.support import distributed

RECIPE = """
data: {clips: segments, segments: 3, folder: videos, batch_size: 2, workers: 0, engine: pyav}
augmentation: {size: 16, flip: 0.0}
model: {encoder: tsn, backbone: small_cnn, train_from: all}
loss: {action: {weight: 1, dropout: 0.0}}
optim: {name: sgd, lr: 0.02, warmup_steps: 3, grad_clip: null}
train: {chunk_frames: 0, steps: 12, log_every: 4, checkpoint_every: 5, device: cpu}
"""
ACTIONS = ("throw", "catch", "all", "run")


class SegmentEngine(PyAVEngine):
    """A bright moving square on a grey that identifies the video."""

    def read(self, readings) -> torch.Tensor:
        clip = readings[0].clips[0]
        shape = (len(readings), len(readings[0].clips), len(clip.frames), 3, 16, 16)
        frames = np.empty(shape, dtype=np.uint8)
        for reading, made in zip(readings, frames, strict=True):
            made[:] = 20 * int(reading.path)
            for view, one in zip(made, reading.clips, strict=True):
                for frame, step in zip(view, one.frames, strict=True):
                    frame[:, 12 * step // 40 :, : 4 + step // 10] = 255
        return torch.from_numpy(frames)


def records(videos: int) -> list:
    return [
        SimpleNamespace(
            id=f"video{i}",
            path=str(i),
            frames=40,
            fps=25.0,
            width=24,
            height=16,
            action=ACTIONS[i % len(ACTIONS)],
        )
        for i in range(videos)
    ]


def segments(cfg, *_, videos: int = 7, **__) -> ClipLoader:
    """Replaces training.train.training_loader: each rank gets its part of the batches."""
    data = cfg.data
    classes = ActionClasses(records(videos))
    cfg.loss.action.classes = len(classes.names)
    items = SegmentClips(
        classes.videos,
        OmegaConf.to_object(cfg.augmentation),
        segments=data.segments,
        clip_frames=data.tuple_frames,
        stride=data.tuple_stride,
    )
    ranks = distributed.world_size()
    return LabelledLoader(
        items,
        data.batch_size // ranks,
        engine=SegmentEngine(16, workers=data.workers),
        seed=cfg.train.seed,
        rank=distributed.rank(),
        world_size=ranks,
        classes=classes,
    )
