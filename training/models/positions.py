"""Sine-cosine positions of the frames of a clip or of a whole video."""

import torch
from torch import Tensor

KINDS = ("vaswani", "released", "none")


def frame_positions(frames: int, train_frames: int, lengths: Tensor, training: bool) -> Tensor:
    """Position of each frame on the axis seen in training: (N, frames) float32.

    In a training clip of ``train_frames`` frames the positions are 0, 1, 2, ... Any other length is
    rescaled to [0, train_frames - 1], as in the released code: the first frame is at 0 and the last
    real frame (``lengths``, (N,)) at ``train_frames - 1``. A single frame is at 0.
    """
    index = torch.arange(frames, device=lengths.device, dtype=torch.float32)
    if training and frames == train_frames:
        return index.expand(len(lengths), frames)
    step = (train_frames - 1) / (lengths - 1).clamp(min=1).float()
    return index * step[:, None]


def sine_cosine(positions: Tensor, channels: int, kind: str = "vaswani") -> Tensor:
    """Encode positions (...) as (..., channels) in float32.

    Even channel c is ``sin(p / 10000^(c / channels))``. Odd channel c is the cosine at the same
    frequency as channel c - 1 with ``kind="vaswani"`` (the formula CARL's paper cites), or at
    ``10000^(c / channels)`` with ``kind="released"`` (as in CARL's code; needed for its
    checkpoints).
    """
    channel = torch.arange(channels, device=positions.device)
    exponent = channel if kind == "released" else channel - channel % 2
    angle = positions.float()[..., None] / 10000.0 ** (exponent.float() / channels)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())
