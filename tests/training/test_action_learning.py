"""Classifiers of actions learn; what only motion shows, TSM learns and TSN does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from action_cases import RECIPE
from narrow import NARROW_RESNET
from omegaconf import OmegaConf

from fastseq.video import ClipLoader, PyAVEngine, SegmentClips
from training.loop.labels import ActionClasses, LabelledLoader
from training.loop.trainer import Trainer
from training.models import resnet
from training.recipe.load import load_config
from training.runs.model import initial_model

FRAMES, SIZE, SEGMENTS = 40, 32, 4


class MovingSquares(PyAVEngine):
    """A square that crosses the picture, to the right in even videos, to the left in odd ones."""

    def read(self, readings) -> torch.Tensor:
        clips = len(readings[0].clips)
        frames = np.empty((len(readings), clips, 1, 3, SIZE, SIZE), dtype=np.uint8)
        for reading, made in zip(readings, frames, strict=True):
            number = int(reading.path)
            rng = np.random.default_rng(number)
            made[:] = rng.integers(0, 100, (3, 1, 1))
            top, colour = rng.integers(0, SIZE - 8), rng.integers(150, 256, (3, 1, 1))
            for view, clip in zip(made, reading.clips, strict=True):
                step = clip.frames[0] if number % 2 == 0 else FRAMES - 1 - clip.frames[0]
                left = step * (SIZE - 8) // (FRAMES - 1)
                view[0, :, top : top + 8, left : left + 8] = colour
        return torch.from_numpy(frames)


def squares(cfg, numbers: range, size: int) -> ClipLoader:
    records = [
        SimpleNamespace(
            id=str(k),
            path=str(k),
            frames=FRAMES,
            fps=25.0,
            width=SIZE,
            height=SIZE,
            action="left" if k % 2 else "right",
        )
        for k in numbers
    ]
    augmentation = OmegaConf.to_object(cfg.augmentation)
    items = SegmentClips(records, augmentation, segments=SEGMENTS)
    engine, classes = MovingSquares(SIZE), ActionClasses(records)
    return LabelledLoader(items, size, engine=engine, seed=1, classes=classes)


def accuracy(tmp_path, shift: int) -> float:
    """Share of 40 new videos that are classified correctly after 30 steps."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    options = [f"data.segments={SEGMENTS}", "data.batch_size=8", f"augmentation.size={SIZE}"]
    options += ["model.backbone=resnet18", "model.pool=mean", f"model.shift={shift}"]
    options += ["optim.lr=0.05", "train.steps=30", "loss.action.classes=2"]
    cfg = load_config(tmp_path / "tiny.yaml", options)
    trainer = Trainer(cfg, initial_model(cfg), squares(cfg, range(64), 8), tmp_path)
    for batch in trainer.loader.stream(30):
        trainer._train_step([batch], trainer._rate())
        trainer.step += 1
    model = trainer.model.eval()
    (batch,) = squares(cfg, range(100, 140), 40).stream(1)
    with torch.no_grad():
        scores, _ = model.classify(model.clips_of(batch["frames"]))
    return (scores.argmax(1) == batch["labels"]).float().mean().item()


@pytest.mark.parametrize(("shift", "least", "most"), [(8, 0.9, 1.0), (0, 0.2, 0.8)])
def test_the_direction_of_a_motion(tmp_path, monkeypatch, shift, least, most):
    """Left and right have the same frames in opposite order: chance is 0.5."""
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)
    assert least <= accuracy(tmp_path, shift) <= most
