"""PyAV decodes, torch augments: any codec, on worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fastseq.video._av import VideoError
from fastseq.video.augment import apply_draw
from fastseq.video.reader import VideoInfo, probe, read_frames
from fastseq.video.work import Reading, Source, shape_of


class PyAVEngine:
    """Reads exactly the frames asked for, one file a time in each worker.

    Args:
        size: side of the output in pixels.
        workers: processes; 0 reads in this one, between batches.
        pin_memory: put batches into page-locked memory, from which a GPU copies faster.
        cache: path -> uint8 (frames, H, W, 3), the whole video scaled to the readings' `side`:
            such files are not opened.
        time_limit: seconds for one file, after which it counts as unreadable.
    """

    name = "pyav"

    def __init__(
        self,
        size: int,
        *,
        workers: int = 0,
        pin_memory: bool = False,
        cache: Mapping[str, torch.Tensor] | None = None,
        time_limit: float = 60.0,
    ):
        self.size, self.workers, self.pin_memory = size, workers, pin_memory
        self.cache, self.time_limit = cache, time_limit
        self._infos: dict[str, VideoInfo] = {}

    def batches(self, source: Source, start: int, stop: int) -> Iterator[torch.Tensor]:
        loader = DataLoader(
            _Batches(self, source),
            batch_size=None,
            sampler=range(start, stop),
            collate_fn=_unchanged,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_restore_signals,
            # Its own generator: starting a loader must not advance the one dropout draws from.
            generator=torch.Generator().manual_seed(0),
        )
        for frames in loader:
            if isinstance(frames, tuple):  # an exception would lose its type on the way here
                raise VideoError(*frames)
            yield frames

    def close(self) -> None:
        self._infos.clear()

    def read(self, readings: Sequence[Reading]) -> torch.Tensor:
        """uint8 (readings, clips, T, 3, size, size)."""
        out = torch.empty(shape_of(readings, self.size), dtype=torch.uint8)
        for reading, clips in zip(readings, out, strict=True):
            wanted, places = np.unique(
                np.concatenate([clip.frames for clip in reading.clips]), return_inverse=True
            )
            frames = self._frames(reading, wanted)
            at = places.reshape(len(reading.clips), -1)
            for clip, which, pixels in zip(reading.clips, at, clips, strict=True):
                pixels.copy_(apply_draw(frames[torch.from_numpy(which)], clip.draw, self.size))
        return out

    def _frames(self, reading: Reading, wanted: np.ndarray) -> torch.Tensor:
        path = reading.path
        if self.cache is not None and path in self.cache:
            return self.cache[path][torch.from_numpy(wanted)]
        if path not in self._infos:
            self._infos[path] = probe(path, time_limit=self.time_limit)
        return read_frames(
            path,
            wanted,
            short_side=reading.side,
            info=self._infos[path],
            time_limit=self.time_limit,
        )


class _Batches(Dataset):
    """Batch k as one item, so that a worker makes a whole batch."""

    def __init__(self, engine: PyAVEngine, source: Source):
        self.engine, self.source = engine, source

    def __getitem__(self, batch: int) -> torch.Tensor | tuple[str, str]:
        try:
            return self.engine.read(self.source(batch))
        except VideoError as error:
            return error.path, error.reason


def _unchanged(batch: torch.Tensor | tuple[str, str]) -> torch.Tensor | tuple[str, str]:
    return batch


def _restore_signals(worker: int) -> None:
    """Workers inherit handlers: let them end on SIGTERM and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
