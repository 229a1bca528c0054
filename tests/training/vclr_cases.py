"""A small recipe of VCLR on videos that need no files, and its losses from their definitions."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from fastseq.video import ClipLoader, PyAVEngine, SegmentTuples
from training.support import distributed

RECIPE = """
data: {clips: tuples, folder: videos, batch_size: 2, workers: 0, engine: pyav}
augmentation: {size: 16, per_clip: false}
model:
  encoder: vclr
  backbone: small_cnn
  train_from: all
  projection_hidden: 12
  projection_size: 8
loss: {vclr: {weight: 1, queue_size: 20, momentum: 0.9}}
optim: {name: sgd, lr: 0.02, warmup_steps: 3, grad_clip: null}
train: {chunk_frames: 0, steps: 12, log_every: 4, checkpoint_every: 5, device: cpu}
"""


# Options of RECIPE for clips of four frames.
CLIPS = ["model.backbone=small_cnn3d", "data.tuple_frames=4", "data.tuple_stride=2"]


class TupleEngine(PyAVEngine):
    """A bright moving square on a grey that identifies the video; flipped if the draw says so."""

    def read(self, readings) -> torch.Tensor:
        clips, length = len(readings[0].clips), len(readings[0].clips[0].frames)
        frames = np.empty((len(readings), clips, length, 3, 16, 16), dtype=np.uint8)
        for reading, made in zip(readings, frames, strict=True):
            made[:] = 20 * int(reading.path)
            for view, clip in zip(made, reading.clips, strict=True):
                for frame, step in zip(view, clip.frames, strict=True):
                    frame[:, 12 * step // 40 :, : 4 + step // 10] = 255
                if clip.draw.flip:
                    view[:] = view[..., ::-1].copy()
        return torch.from_numpy(frames)


def tuples(cfg, *_, videos: int = 5, **__) -> ClipLoader:
    """Replaces training.train.training_loader: each rank gets its part of the batches."""
    records = [
        SimpleNamespace(
            id=f"video{i}", path=str(i), frames=40, fps=25.0, width=24, height=16, action="all"
        )
        for i in range(videos)
    ]
    data = cfg.data
    items = SegmentTuples(
        records,
        OmegaConf.to_object(cfg.augmentation),
        segments=data.segments,
        anchor=data.anchor,
        reversal=data.reversal,
        clip_frames=data.tuple_frames,
        stride=data.tuple_stride,
    )
    ranks = distributed.world_size()
    return ClipLoader(
        items,
        cfg.data.batch_size // ranks,
        engine=TupleEngine(16, workers=cfg.data.workers),
        seed=cfg.train.seed,
        rank=distributed.rank(),
        world_size=ranks,
    )


def by_definition(model, batch, *, form: str, temperature: float = 0.1) -> tuple[dict, dict]:
    """VCLR's four losses, item by item, of a model in training mode, and its keys."""
    frames, steps = batch["frames"], batch["steps"][:, :, 0].tolist()
    n, s = len(frames), frames.shape[1] // 2
    place = [row[:s].index(row[-1]) for row in steps]  # of the anchor
    labels = [
        (row[:s] != sorted(row[:s])) + 2 * (row[s : 2 * s] != sorted(row[s : 2 * s]))
        for row in steps
    ]
    online, momentum = model.encoder, model.momentum.module
    features = online.clip_features(frames[:, :s])
    others = [[i for i in range(2 * s + 1) if i != place[row]] for row in range(n)]
    with torch.no_grad():
        encoded = momentum.clip_features(torch.stack([frames[r, others[r]] for r in range(n)]))
    values = {name: [] for name in ("inter", "intra", "video", "order")}
    keys = {name: [] for name in values}
    for row in range(n):
        anchor = features[row, place[row]]
        again, rest, positive = encoded[row, -1:], encoded[row, : s - 1], encoded[row, s - 1 : -1]
        made = {
            "inter": torch.cat([again, rest]),
            "intra": torch.cat([again, rest]),
            "video": positive.mean(0, keepdim=True),
            "order": positive,
        }
        entering = {
            "inter": anchor,
            "intra": anchor,
            "video": features[row].mean(0),
            "order": features[row],
        }
        for name, head in online.heads.items():
            q, k = head(entering[name]), momentum.heads[name](made[name]).detach()
            keys[name].append(F.normalize(k, dim=-1))
            if name == "order":
                dim = 0 if form == "code" else 1  # over the frames of the tuple, or its own norm
                both = torch.cat([F.normalize(q, dim=dim), F.normalize(k, dim=dim)]).flatten()
                logits = model.order(both)
                values[name].append(-logits.log_softmax(0)[labels[row]])
                continue
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            positives = (k @ q / temperature).exp()
            if name == "intra":
                wrong = positives[1:]
                right = positives[0]
                if form == "code":
                    values[name].append(-(right / (right + wrong)).log().mean())
                else:
                    values[name].append(-(right / (right + wrong.sum())).log())
            else:
                queue = (model.queues[name].features @ q / temperature).exp().sum()
                values[name].append(-(positives / (positives + queue)).log().mean())
    losses = {name: torch.stack(v).mean() for name, v in values.items() if v}
    return losses, {name: torch.cat(k) for name, k in keys.items() if k}
