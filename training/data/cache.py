"""Decoded videos kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from fastseq.video import VideoError, read_frames
from fastseq.video.gaps import frames_of
from fastseq.video.readings import area_of
from training.data.index import VideoRecord
from training.data.threads import in_threads


class FrameCache(Mapping[str, torch.Tensor]):
    """All frames of all videos, decoded once and scaled to one short side.

    Maps a video's path to its frames, uint8 (frames, H, W, 3); frames in its gaps are undefined. Of
    a video with a crop, only the crop is kept, scaled to the short side. The frames are one block
    of memory, which forked loader workers share directly and spawned ones through a single shared
    segment.

    Attributes:
        failed: the errors of the videos that could not be decoded.
    """

    def __init__(self, records: Sequence[VideoRecord], short_side: int, *, progress: bool = True):
        self._places: dict[str, tuple[int, torch.Size]] = {}
        sound = {record.path: frames_of(record) for record in records}
        crops = {record.path: getattr(record, "crop", None) for record in records}
        total = 0
        for record in records:
            if record.path not in self._places:
                area = area_of(record, short_side)
                shape = torch.Size((record.frames, area.height, area.width, 3))
                self._places[record.path] = (total, shape)
                total += shape.numel()
        self.data = torch.empty(total, dtype=torch.uint8)
        self.failed: list[VideoError] = []

        def decode(path: str) -> None:
            out = self[path]
            try:
                frames = read_frames(path, sound[path], short_side=short_side, crop=crops[path])
                if frames.shape[1:] != out.shape[1:]:
                    raise VideoError(
                        path,
                        f"has changed since it was indexed: {tuple(frames.shape[1:])} instead of "
                        f"{tuple(out.shape[1:])}; run `python -m training.prepare` again",
                    )
                out[torch.from_numpy(sound[path])] = frames
            except VideoError as error:
                self.failed.append(error)

        in_threads(decode, self._places, f"caching {total / 2**20:.0f} MiB", progress)
        for error in self.failed:
            del self._places[error.path]

    def __getitem__(self, path: str) -> torch.Tensor:
        start, shape = self._places[path]
        return self.data[start : start + shape.numel()].view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
