"""PyAV decodes and torch augments, in worker processes; supports any codec, and pictures."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fastseq.video._av import VideoError
from fastseq.video.arguments import as_int, as_number, as_size
from fastseq.video.augment import crop_resize, finish
from fastseq.video.decode import Converter, deliver, scaled_size
from fastseq.video.pictures import is_pictures, pictures_of
from fastseq.video.reader import probe
from fastseq.video.readings import Reading, Source, box_of, check_size, shape_of, wanted_frames
from fastseq.video.timeline import Deadline, VideoInfo

# Each worker caches timestamps for at most this many frames (140 MB); without a limit, 240,000
# videos of 300 frames would take 1 GB.
_MOST_KNOWN = 10_000_000


class PyAVEngine:
    """Reads exactly the requested frames, one file at a time in each worker.

    Each frame is cropped and resized as soon as it is decoded, from its full size.

    Args:
        size: side of the output in pixels.
        workers: number of processes; 0 reads in this process, between batches. Each works two
            batches ahead. Batches lie in shared memory, so /dev/shm must be large enough; in
            containers it is small by default (`--shm-size`).
        pin_memory: put batches into page-locked memory, from which a GPU copies faster.
        cache: path -> uint8 (frames, H, W, 3), the whole video scaled to the readings' `side`, or
            the part of it that is used (`Reading.kept`). Such files are not opened.
        scale_first: scale frames to the readings' `side` before the crop, so that pixels equal
            those from a cache. Slower.
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
        scale_first: bool = False,
        time_limit: float = 60.0,
    ):
        self.size, self.workers = as_size(size), as_int("workers", workers, 0)
        self.pin_memory = pin_memory
        if cache is not None and not callable(getattr(cache, "get", None)):
            raise TypeError(
                f"cache must be a dict of paths to frames, or None, got {type(cache).__name__}"
            )
        self.cache: Mapping[str, torch.Tensor] = {} if cache is None else cache
        self.scale_first = scale_first
        self.time_limit = as_number("time_limit", time_limit)
        self._infos: dict[str, VideoInfo] = {}
        self._known = 0
        self._resized = torch.empty(0, dtype=torch.uint8)

    def batches(self, source: Source, start: int, stop: int) -> Iterator[torch.Tensor]:
        loader = DataLoader(
            _Batches(self, source),
            batch_size=None,
            sampler=range(start, stop),
            collate_fn=_unchanged,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_restore_signals,
            # A separate generator: starting a loader must not advance the generator of dropout.
            generator=torch.Generator().manual_seed(0),
        )
        for frames in loader:
            if isinstance(frames, VideoError):  # raised in a worker it would lose its type
                raise frames
            yield frames

    def close(self) -> None:
        self._forget()
        self._resized = torch.empty(0, dtype=torch.uint8)

    def read(self, readings: Sequence[Reading]) -> torch.Tensor:
        """uint8 (readings, clips, T, 3, size, size)."""
        out = torch.empty(shape_of(readings, self.size), dtype=torch.uint8)
        if get_worker_info() is not None:
            out.share_memory_()  # shared while empty: otherwise the way to the parent copies it
        for reading, clips in zip(readings, out, strict=True):
            self._read(reading, clips)
        return out

    def _read(self, reading: Reading, out: torch.Tensor) -> None:
        wanted, places = wanted_frames(reading)
        users: list[list[tuple[int, int]]] = [[] for _ in wanted]
        for clip, t in np.ndindex(places.shape):
            users[places[clip, t]].append((clip, t))
        cached = reading.path in self.cache
        if cached or self.scale_first:
            frame_size = scaled_size(reading.height, reading.width, reading.side)
            top, left = reading.kept if cached else (0, 0)
            boxes = [
                (draw.top - top, draw.left - left, draw.height, draw.width)
                for draw in (clip.draw for clip in reading.clips)
            ]
        else:
            frame_size = (reading.height, reading.width)
            boxes = [box_of(clip, reading) for clip in reading.clips]
        shape = (*places.shape, self.size, self.size, 3)
        # Kept, as fresh memory takes as long as the resizing; but not tensors that came pickled,
        # which all spawned workers share.
        if self._resized.shape != shape or self._resized.is_shared():
            self._resized = torch.empty(shape, dtype=torch.uint8)
        resized = self._resized

        def take(place: int, pixels: np.ndarray) -> None:
            frame = torch.from_numpy(np.ascontiguousarray(pixels))[None]
            for clip, t in users[place]:
                crop_resize(frame, boxes[clip], resized[clip, t : t + 1])

        if cached:
            video = self.cache[reading.path]
            for place, number in enumerate(wanted):
                take(place, video[number].numpy())
        else:
            info, converter = self._info(reading), Converter(reading.path, None, frame_size)
            deadline = Deadline(reading.path, self.time_limit)
            deliver(reading.path, wanted, info, converter, deadline, take)
        for clip, frames, pixels in zip(reading.clips, resized, out, strict=True):
            finish(frames, clip.draw, pixels)

    def _info(self, reading: Reading) -> VideoInfo:
        path = reading.path
        if path not in self._infos:
            if is_pictures(path):
                info = pictures_of(path).info()
            else:
                info = probe(path, time_limit=self.time_limit)
            if self._known + info.frames > _MOST_KNOWN:
                self._forget()
            self._known += info.frames
            self._infos[path] = info
        info = self._infos[path]
        check_size(reading, info.height, info.width)
        return info

    def _forget(self) -> None:
        self._infos.clear()
        self._known = 0


class _Batches(Dataset):
    """Batch k as one item, so that a worker makes a whole batch."""

    def __init__(self, engine: PyAVEngine, source: Source):
        self.engine, self.source = engine, source

    def __getitem__(self, batch: int) -> torch.Tensor | VideoError:
        try:
            return self.engine.read(self.source(batch))
        except VideoError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _restore_signals(worker: int) -> None:
    """Reset inherited signal handlers: workers end on SIGTERM and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
