"""A small recipe, videos that need no files, and what runs are compared by."""

import numpy as np
import torch

from training.data.dataset import collate
from training.run import load_run
from training.runlog import read_log

RECIPE = """
data: {folder: videos, num_frames: 8, batch_size: 2, workers: 0}
augmentation: {size: 16}
model:
  backbone: small_cnn
  train_from: all
  frames_per_chunk: 20
  fc_size: 16
  hidden_size: 16
  heads: 2
  ff_size: 32
  layers: 1
  embedding_size: 16
  projection_hidden: 16
  projection_size: 16
optim: {lr: 1.0e-3}
train: {steps: 12, log_every: 4, checkpoint_every: 5, device: cpu}
"""


class MovingSquares:
    """Stands in for videos: a bright square that moves, a pure function of (epoch, index)."""

    collate = staticmethod(collate)

    def __init__(self, videos: int = 5, padded: bool = True) -> None:
        self.videos, self.padded, self.epoch = videos, padded, 0
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.videos

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        self.asked.append((self.epoch, index))
        rng = np.random.default_rng([self.epoch, index])
        steps = np.stack([np.sort(rng.choice(40, 8, replace=False)) for _ in range(2)])
        frames = np.full((2, 8, 3, 16, 16), 20 * index, dtype=np.uint8)
        for view in range(2):
            for t, step in enumerate(steps[view]):
                frames[view, t, :, 12 * step // 40 :, : 4 + step // 10] = 255
        valid = np.ones((2, 8), dtype=bool)
        if self.padded and index != 2:
            valid[1, 6:] = False
        return {
            "frames": torch.from_numpy(frames),
            "steps": torch.from_numpy(steps),
            "valid": torch.from_numpy(valid),
            "num_frames": torch.tensor([40, 40]),
            "id": f"video{index}",
        }


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_run(run)[0].state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def numbers(run: str) -> list[dict]:
    """Log lines without what depends on the clock."""
    timed = ("frames_per_s", "data_wait", "seconds")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_log(run)]
