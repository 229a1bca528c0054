"""A small recipe, videos that need no files, and functions that compare runs."""

from types import SimpleNamespace

import numpy as np
import torch

from fastseq.video import Augmentation, Clip, ClipLoader, Item, PyAVEngine, Reading
from fastseq.video.readings import shape_of
from training.runs.log import read_log
from training.runs.model import load_run

RECIPE = """
data: {folder: videos, num_frames: 8, batch_size: 2, workers: 0, engine: pyav}
augmentation: {size: 16}
model:
  backbone: small_cnn
  train_from: all
  fc_size: 16
  hidden_size: 16
  heads: 2
  ff_size: 32
  layers: 1
  embedding_size: 16
  projection_hidden: 16
  projection_size: 16
optim: {lr: 1.0e-3}
train: {chunk_frames: 20, steps: 12, log_every: 4, checkpoint_every: 5, device: cpu}
"""


class SquareItems:
    """Replaces videos: two clips that are a pure function of (epoch, index)."""

    num_context = 1
    num_frames = 8
    left_out = ()
    augmentation = Augmentation(size=16)

    def __init__(self, videos: int, padded: bool) -> None:
        self.videos = [
            SimpleNamespace(id=f"video{i}", path=str(i), frames=40) for i in range(videos)
        ]
        self.padded = padded

    def __len__(self) -> int:
        return len(self.videos)

    def item(self, seed: int, epoch: int, index: int, bad=()) -> Item:
        rng = np.random.default_rng([epoch, index])
        steps = np.stack([np.sort(rng.choice(40, 8, replace=False)) for _ in range(2)])
        valid = np.ones((2, 8), dtype=bool)
        if self.padded and index != 2:
            valid[1, 6:] = False
        clips = tuple(Clip(view, None) for view in steps)
        reading = Reading(str(index), 16, 16, 16, clips)
        return Item(
            f"video{index}", "all", (reading,), steps, valid, np.array([40, 40]), np.ones(2)
        )


class SquareEngine(PyAVEngine):
    """A bright moving square on a grey that identifies the video."""

    def read(self, readings) -> torch.Tensor:
        frames = np.empty(shape_of(readings, 16), dtype=np.uint8)
        for reading, made in zip(readings, frames, strict=True):
            made[:] = 20 * int(reading.path)
            for view, clip in zip(made, reading.clips, strict=True):
                for pixels, step in zip(view, clip.frames, strict=True):
                    pixels[:, 12 * step // 40 :, : 4 + step // 10] = 255
        return torch.from_numpy(frames)


def squares(cfg, *_, videos: int = 5, padded: bool = True, **__) -> ClipLoader:
    """Replaces training.train.training_loader: needs no files."""
    items = SquareItems(videos, padded)
    engine = SquareEngine(16, workers=cfg.data.workers)
    return ClipLoader(items, cfg.data.batch_size, engine=engine, seed=cfg.train.seed)


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_run(run)[0].state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def numbers(run: str) -> list[dict]:
    """Log lines without the values that depend on the clock."""
    timed = ("frames_per_s", "data_wait", "seconds")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_log(run)]
