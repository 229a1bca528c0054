"""Videos whose grey level is the phase position, their embeddings, and a run that knows them."""

from types import SimpleNamespace

import numpy as np

from fastseq.video import write_video
from training.evaluation.embed import EmbeddedVideo

PHASES = 3


def embedded(name, position, *, action="all", phases=True, path=""):
    """A unit-length 2-d embedding whose angle is the phase position."""
    angle = np.asarray(position, float) / PHASES * np.pi / 2
    record = SimpleNamespace(
        id=name,
        path=str(path),
        frames=len(angle),
        fps=25.0,
        action=action,
        split="test",
        phases=np.floor(position).astype(np.int64) if phases else None,
    )
    return EmbeddedVideo(record, np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32))


def warped(frames, power):
    """Phase positions 0 .. PHASES that start slowly (power > 1) or fast (power < 1)."""
    return PHASES * (np.arange(frames) / frames) ** power


def grey_video(path, position, side=32, height=48):
    """A video whose grey level is the phase position."""
    levels = 40 + np.asarray(position) / PHASES * 180
    write_video(path, (np.full((height, side, 3), v, np.uint8) for v in levels.round()), 25.0)
    return path


def grey_run(monkeypatch):
    """Make the commands use a run whose encoder maps the grey level to an angle."""
    import torch
    from omegaconf import OmegaConf

    from training.evaluation import encoders
    from training.runs.model import Restored

    class Grey(torch.nn.Module):
        use_positions, pooled = True, False

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, frames):
            angle = (frames.float().mean(dim=(2, 3, 4)) - 40) / 180 * torch.pi / 2
            return 3 * torch.stack([angle.cos(), angle.sin()], dim=-1)

    cfg = SimpleNamespace(
        data=SimpleNamespace(
            folder="none", class_set=None, engine="pyav", cache="none", cache_side=None
        ),
        augmentation=SimpleNamespace(size=16),
        model=OmegaConf.create({"backbone": "grey"}),
    )
    restored = Restored(Grey(), cfg, "step_00000001", 1)
    monkeypatch.setattr(encoders, "_load", lambda run, **_: restored)
