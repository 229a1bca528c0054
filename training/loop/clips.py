"""The input of the losses on items of two clips."""

from collections.abc import Sequence
from dataclasses import dataclass

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
