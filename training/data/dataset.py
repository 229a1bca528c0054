"""Training examples (two augmented views of a video) and whole videos for evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fastseq.video import (
    Augmentation,
    VideoError,
    VideoInfo,
    augment_clip,
    eval_transform,
    probe,
    read_frames,
    sample_views,
)
from training.data.cache import FrameCache
from training.data.index import VideoRecord

# Of all videos: above this share the data set, not a file, is taken to be at fault.
MAX_FAILED_SHARE = 0.01
_CHUNK = 512  # frames decoded at a time when a whole video is read


class TooManyBadVideos(RuntimeError):
    """More than 1 % of the videos could not be read; the message lists them."""


def decode_side(size: int, cache_side: int | None) -> int:
    """Short side that frames are scaled to while they are decoded.

    Default 8/7 of the network's input, the usual 256 for 224: full-size frames of a long clip
    would take gigabytes.
    """
    return round(size * 8 / 7) if cache_side is None else cache_side


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batch of N items: `frames` (N, 2, T, 3, S, S), `steps` and `valid` (N, 2, T), `num_frames`
    (N,), `ids` a list."""
    batch = {
        key: torch.stack([item[key] for item in items]) for key in ("frames", "steps", "valid")
    }
    batch["num_frames"] = torch.tensor([item["num_frames"] for item in items], dtype=torch.int64)
    batch["ids"] = [item["id"] for item in items]
    return batch


class TwoViewDataset(Dataset):
    """Two views of T frames of each video, cropped in time and augmented independently.

    An item is a dict: `frames` uint8 (2, T, 3, S, S); `steps` int64 (2, T), the frames' numbers in
    the video; `valid` bool (2, T), False where the video is too short and `frames` repeats its
    last one; `num_frames` int, the video's length; `id` str. `collate` makes batches of them.

    Item i of epoch e depends on (seed, e, i) alone, whatever the number of workers.

    A video that cannot be read is replaced by the next one in order, counted, and named in a
    warning; above 1 % of all videos `TooManyBadVideos` stops the training.

    Args:
        records: the videos, usually one split of an index.
        data_cfg: the recipe's `data` section: num_frames (T), sampling, crop_base, alpha, beta,
            span, cache ("none": decode at every access; "ram": decode all now, keep them in
            memory), cache_side (short side of decoded frames, None = 8/7 of the output).
        augmentation: what happens to each view; its `size` is S.
        seed: of all randomness.
        progress: show a bar while the cache is filled.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        records: Sequence[VideoRecord],
        data_cfg: Any,
        augmentation: Augmentation,
        seed: int,
        *,
        progress: bool = True,
    ):
        if not records:
            raise ValueError("no videos to train on: the split is empty")
        self.records = list(records)
        self.augmentation = augmentation
        self.seed = seed
        self.num_frames = data_cfg.num_frames
        self.view_options = {
            "strategy": data_cfg.sampling,
            "crop_base": data_cfg.crop_base,
            "alpha": data_cfg.alpha,
            "beta": data_cfg.beta,
            "span": tuple(data_cfg.span),
        }
        # Wrong options show here, not in a loader worker.
        sample_views(1, self.num_frames, np.random.default_rng(seed), **self.view_options)
        self.side = decode_side(augmentation.size, data_cfg.cache_side)
        self.epoch = 0
        # Shared with loader workers, so that all of them count the same bad videos.
        self._bad = torch.zeros(len(self.records), dtype=torch.uint8).share_memory_()
        self._reasons: dict[int, str] = {}
        self._infos: dict[int, VideoInfo] = {}
        self.cache: FrameCache | None = None
        if data_cfg.cache == "ram":
            self.cache = FrameCache(self.records, self.side, progress=progress)
            for index in sorted(self.cache.failed):
                self._set_aside(index, self.cache.failed[index])
        elif data_cfg.cache != "none":
            raise ValueError(f'data.cache must be "none" or "ram", got {data_cfg.cache!r}')

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of the next pass.

        Call it before iterating over a loader. Its workers copy the number when they start, so
        with `persistent_workers` they must be told by other means.
        """
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator_key = [self.seed, self.epoch, index]
        for step in range(len(self.records)):
            position = (index + step) % len(self.records)
            if self._bad[position]:
                continue
            try:
                return self._item(position, np.random.default_rng(generator_key))
            except VideoError as error:
                self._set_aside(position, error)
        raise self.too_many_bad()

    def bad_videos(self) -> list[tuple[str, str]]:
        """(id, reason) of the videos set aside so far, by any worker."""
        found = []
        for position in torch.nonzero(self._bad).flatten().tolist():
            if position not in self._reasons:  # set aside by another process: see for ourselves
                try:
                    self._read(position, np.arange(self.records[position].frames))
                    self._reasons[position] = "could not be read in a loader worker"
                except VideoError as error:
                    self._reasons[position] = error.reason
            found.append((self.records[position].id, self._reasons[position]))
        return found

    def too_many_bad(self) -> TooManyBadVideos:
        """The error that lists the videos set aside, for the caller to raise."""
        found = self.bad_videos()
        listed = "".join(f"\n  {name}: {reason}" for name, reason in found)
        return TooManyBadVideos(
            f"{len(found)} of {len(self.records)} videos cannot be read, more than "
            f"{MAX_FAILED_SHARE:.0%}:{listed}\n"
            "run `python -m training.prepare FOLDER --verify`, which leaves them out"
        )

    def _item(self, position: int, generator: np.random.Generator) -> dict[str, Any]:
        record = self.records[position]
        steps, valid = sample_views(record.frames, self.num_frames, generator, **self.view_options)
        clips = self._read(position, steps.reshape(-1)).unflatten(0, steps.shape)
        views = [augment_clip(clip, self.augmentation, generator) for clip in clips]
        return {
            "frames": torch.stack(views),
            "steps": torch.from_numpy(steps),
            "valid": torch.from_numpy(valid),
            "num_frames": record.frames,
            "id": record.id,
        }

    def _read(self, position: int, indices: np.ndarray) -> torch.Tensor:
        if self.cache is not None:
            return self.cache[position][torch.from_numpy(indices)]
        path = self.records[position].path
        if position not in self._infos:
            self._infos[position] = probe(path)
        info = self._infos[position]
        return read_frames(path, indices, short_side=self.side, info=info)

    def _set_aside(self, position: int, error: VideoError) -> None:
        self._bad[position] = 1
        self._reasons[position] = error.reason
        count, total = int(self._bad.sum()), len(self.records)
        if count > MAX_FAILED_SHARE * total:
            raise self.too_many_bad()
        warnings.warn(
            f"left out {self.records[position].id}: {error.reason} ({count} of {total} videos)",
            RuntimeWarning,
            stacklevel=2,
        )


def load_video(record: VideoRecord, size: int, cache_side: int | None = None) -> torch.Tensor:
    """Every frame of a video with the evaluation transform: uint8 (frames, 3, size, size).

    Raises:
        VideoError: a frame that the index counts does not come out.
    """
    info = probe(record.path)
    side = decode_side(size, cache_side)
    out = torch.empty((record.frames, 3, size, size), dtype=torch.uint8)
    for start in range(0, record.frames, _CHUNK):
        chunk = range(start, min(start + _CHUNK, record.frames))
        frames = read_frames(record.path, chunk, short_side=side, info=info)
        out[start : chunk.stop] = eval_transform(frames, size)
    return out
