"""Consecutive blocks of frames of a video (DPC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastseq.video.arguments import as_int
from fastseq.video.augment import Augmentation
from fastseq.video.items import Item, Video, times_of
from fastseq.video.segments import SegmentClips, clip_span, long_enough


class ConsecutiveBlocks(SegmentClips):
    """B consecutive blocks of L frames of a video (DPC, https://arxiv.org/abs/1909.04656).

    The first block starts at a random place, and each block begins one stride after the end of the
    block before it: together they are one clip of B L frames. All share one augmentation. `frames`
    of a batch are (N, B, L, 3, size, size).

    Args:
        videos: the videos to draw from; those shorter than all blocks are left out.
        augmentation: augmentation, drawn once for each item. (The released code draws crop and
            flip once, colours for each frame.)
        blocks: B. Default 8: DPC's released code.
        block_frames: L, frames of a block. Default 5: DPC's released code.
        stride: distance of frames, in frames of the video. Default 3: DPC's released code for
            UCF101; 5 for Kinetics-400.
        side: short side of the frame in whose pixels crops are drawn, see `decode_side`.

    Attributes:
        left_out: (id, reason) of videos that are too short.

    Raises:
        ValueError: an option out of its range, or no video that is long enough.

    Example:
        >>> from fastseq.video import Augmentation, ClipLoader, ConsecutiveBlocks, open_engine
        >>> items = ConsecutiveBlocks(videos, Augmentation())  # doctest: +SKIP
        >>> engine = open_engine("auto", videos, 128)  # doctest: +SKIP
        >>> for batch in ClipLoader(items, 32, engine=engine):  # doctest: +SKIP
        ...     batch["frames"].shape
        torch.Size([32, 8, 5, 3, 128, 128])
    """

    def __init__(
        self,
        videos: Sequence[Video],
        augmentation: Augmentation,
        *,
        blocks: int = 8,
        block_frames: int = 5,
        stride: int = 3,
        side: int | None = None,
    ):
        self.blocks = as_int("blocks", blocks, 1)
        self.block_frames = as_int("block_frames", block_frames, 1)
        frames = self.blocks * self.block_frames
        super().__init__(videos, augmentation, clip_frames=frames, stride=stride, side=side)

    def _usable(self, videos: Sequence[Video]) -> Sequence[Video]:
        least = clip_span(self.clip_frames, self.stride)
        needed = f"{self.blocks} blocks of {self.block_frames} frames need {least}"
        kept, self.left_out = long_enough(videos, least, needed)
        return kept

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item:
        item = super()._item(position, generator, out)
        (reading,) = item.readings
        shape = (self.blocks, self.block_frames)
        steps = item.steps.reshape(shape)
        clips = tuple(replace(reading.clips[0], frames=frames) for frames in steps)
        return replace(
            item,
            readings=(replace(reading, clips=clips),),
            steps=steps,
            valid=item.valid.reshape(shape),
            num_frames=item.num_frames.repeat(self.blocks),
            fps=item.fps.repeat(self.blocks),
            times=times_of(self.videos[position], steps),
        )
