"""The input of the losses on items of two clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Clips:
    """The input of a loss: N items of two clips, which are views of one video or two videos.

    h: embeddings (N, 2, T, E). z: projected embeddings (N, 2, T, P), or None if no loss needs them.
    steps: int64 (N, 2, T), frame numbers in the video. valid: bool (N, 2, T), True = real frame,
    real frames first; None = all are real. num_frames: (N, 2), lengths of the videos in frames.
    actions: the action that both clips of an item show, N names; None = all items show the same.
    labels: int64 (N, 2, T), class of each frame, -1 = none; None if no loss needs them.
    """

    h: Tensor
    z: Tensor | None
    steps: Tensor
    valid: Tensor | None
    num_frames: Tensor
    actions: Sequence[str] | None = None
    labels: Tensor | None = None

    def lengths(self, clip: int) -> Tensor | None:
        return None if self.valid is None else self.valid[:, clip].sum(-1)


def pair(clips: Clips, normalize: bool) -> tuple[Tensor, Tensor]:
    """Embeddings (N, T, E) of both clips."""
    h = embeddings(clips, normalize)
    return h[:, 0], h[:, 1]


def embeddings(clips: Clips, normalize: bool) -> Tensor:
    """(N, 2, T, E), divided by their L2 norm in float32 if ``normalize``."""
    return F.normalize(clips.h.float(), dim=-1) if normalize else clips.h


def times(clips: Clips) -> dict[str, Any]:
    """Frame numbers, lengths of the videos and numbers of real frames, as fastseq's losses name
    them."""
    return {
        "tx": clips.steps[:, 0],
        "ty": clips.steps[:, 1],
        "duration_x": clips.num_frames[:, 0],
        "duration_y": clips.num_frames[:, 1],
        "lengths_x": clips.lengths(0),
        "lengths_y": clips.lengths(1),
    }
