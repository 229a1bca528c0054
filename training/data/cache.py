"""Decoded videos in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastseq.video import VideoError, probe, read_frames
from fastseq.video.reader import scaled_size
from training.data.index import VideoRecord, in_threads


class FrameCache:
    """All frames of all videos as bytes, scaled to one short side, decoded once.

    One block of memory: forked loader workers share it as it is, spawned ones through a single
    shared segment.

    Attributes:
        failed: position -> error of the videos that could not be decoded.
    """

    def __init__(self, records: Sequence[VideoRecord], short_side: int, *, progress: bool = True):
        self.shapes: list[tuple[int, int, int, int]] = []
        self.starts = [0]
        for record in records:
            height, width = record.height, record.width
            if not (height and width):
                info = probe(record.path)
                height, width = info.height, info.width
            shape = (record.frames, *scaled_size(height, width, short_side), 3)
            self.shapes.append(shape)
            self.starts.append(self.starts[-1] + torch.Size(shape).numel())
        self.data = torch.empty(self.starts[-1], dtype=torch.uint8)
        self.failed: dict[int, VideoError] = {}

        def decode(position: int) -> None:
            record = records[position]
            try:
                frames = read_frames(record.path, range(record.frames), short_side=short_side)
                if frames.shape != self.shapes[position]:
                    expected = self.shapes[position]
                    raise VideoError(
                        record.path,
                        f"has changed since it was indexed: {tuple(frames.shape)} instead of "
                        f"{expected}; run `python -m training.prepare` again",
                    )
                self[position].copy_(frames)
            except VideoError as error:
                self.failed[position] = error

        what = f"caching {self.starts[-1] / 2**20:.0f} MiB"
        in_threads(decode, range(len(records)), what, progress)

    def __getitem__(self, position: int) -> torch.Tensor:
        """uint8 (frames, H, W, 3), a view."""
        start, end = self.starts[position], self.starts[position + 1]
        return self.data[start:end].view(self.shapes[position])
