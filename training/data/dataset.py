"""Training examples (two augmented clips each) and whole videos for evaluation."""

from __future__ import annotations

import warnings
from collections import Counter
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
from training.data.sampling import VIEW_SAMPLING, context_frames, sample_clip

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
    (N, 2), `ids` a list."""
    batch = {
        key: torch.stack([item[key] for item in items])
        for key in ("frames", "steps", "valid", "num_frames")
    }
    batch["ids"] = [item["id"] for item in items]
    return batch


class ClipDataset(Dataset):
    """Items of two clips of T frames, sampled in time and augmented independently.

    An item is a dict: `frames` uint8 (2, T, 3, S, S), or (2, T, C, 3, S, S) when the encoder sees
    C > 1 frames at a time (`training.data.sampling.context_frames`); `steps` int64 (2, T), the
    frames' numbers in the video; `valid` bool (2, T), False where the video is too short and
    `frames` repeats its last one; `num_frames` int64 (2,), the videos' lengths; `id` str.
    `collate` makes batches of them.

    Item i of epoch e depends on (seed, e, i) alone, whatever the number of workers.

    A video that cannot be read is replaced by the next one in order, counted, and named in a
    warning; above 1 % of all videos `TooManyBadVideos` stops the training.

    Args:
        records: the videos, usually one split of an index.
        data_cfg: the recipe's `data` section: num_frames (T), sampling and its options,
            num_context (C), context_stride, cache ("none": decode at every access; "ram": decode
            all now, keep them in memory), cache_side (short side of decoded frames, None = 8/7 of
            the output).
        augmentation: what happens to each clip, its context frames included; its `size` is S.
        seed: of all randomness.
        progress: show a bar while the cache is filled.

    Attributes:
        left_out: (id, reason) of videos that no item is made of.
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
        self.left_out: list[tuple[str, str]] = []
        self.records = self._usable(records)
        self.augmentation = augmentation
        self.seed = seed
        self.num_frames = data_cfg.num_frames
        self.sampling = data_cfg.sampling
        self.positive_window = data_cfg.positive_window
        self.context = (data_cfg.num_context, data_cfg.context_stride)
        self.crop_options = {
            "crop_base": data_cfg.crop_base,
            "alpha": data_cfg.alpha,
            "beta": data_cfg.beta,
            "span": tuple(data_cfg.span),
        }
        self._draw(1, np.random.default_rng(seed))  # wrong options show here, not in a worker
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
            item = self._item(position, generator_key)
            if item is not None:
                return item
        raise self.too_many_bad()

    def _usable(self, records: Sequence[VideoRecord]) -> list[VideoRecord]:
        return list(records)

    def _item(self, position: int, key: list[int]) -> dict[str, Any] | None:
        """The item of a video, or None when it had to be set aside."""
        raise NotImplementedError

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

    def _draw(
        self, num_frames: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frames and validity (2, T) of two clips of one video."""
        if self.sampling in VIEW_SAMPLING:
            return sample_views(
                num_frames,
                self.num_frames,
                generator,
                strategy=self.sampling,
                **self.crop_options,
            )
        clips = [
            sample_clip(
                num_frames,
                self.num_frames,
                generator,
                strategy=self.sampling,
                positive_window=self.positive_window,
            )
            for _ in range(2)
        ]
        steps, valid = zip(*clips, strict=True)
        return np.stack(steps), np.stack(valid)

    def _clip(
        self, position: int, steps: np.ndarray, generator: np.random.Generator
    ) -> torch.Tensor | None:
        """Augmented frames (T, 3, S, S), or (T, C, 3, S, S); None when they cannot be read."""
        indices = context_frames(steps, *self.context)
        try:
            frames = self._read(position, indices.reshape(-1))
        except VideoError as error:
            self._set_aside(position, error)
            return None
        frames = augment_clip(frames, self.augmentation, generator)
        return frames if self.context[0] == 1 else frames.unflatten(0, indices.shape)

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


class TwoViewDataset(ClipDataset):
    """Two views of one video: see `ClipDataset`."""

    def _item(self, position: int, key: list[int]) -> dict[str, Any] | None:
        generator = np.random.default_rng(key)
        record = self.records[position]
        steps, valid = self._draw(record.frames, generator)
        frames = []
        for view in steps:
            clip = self._clip(position, view, generator)
            if clip is None:
                return None
            frames.append(clip)
        return {
            "frames": torch.stack(frames),
            "steps": torch.from_numpy(steps),
            "valid": torch.from_numpy(valid),
            "num_frames": torch.tensor([record.frames] * 2),
            "id": record.id,
        }


class PairDataset(ClipDataset):
    """A video and another one of the same action, drawn anew each epoch: see `ClipDataset`.

    There are as many items as videos. A video that is the only one of its action is left out.
    """

    def _usable(self, records: Sequence[VideoRecord]) -> list[VideoRecord]:
        counts = Counter(record.action for record in records)
        usable = [record for record in records if counts[record.action] > 1]
        self.left_out = [
            (record.id, f"the only video of action {record.action!r}, pairs need two")
            for record in records
            if counts[record.action] == 1
        ]
        if not usable:
            raise ValueError(
                f"no pairs to train on: each of the {len(records)} videos is the only one of its "
                'action; give them the same "action" in labels.json, or none'
            )
        return usable

    def _item(self, position: int, key: list[int]) -> dict[str, Any] | None:
        action = self.records[position].action
        while True:
            generator = np.random.default_rng(key)
            others = [
                other
                for other, record in enumerate(self.records)
                if record.action == action and other != position and not self._bad[other]
            ]
            if not others:
                return None
            pair = (position, others[generator.integers(len(others))])
            clips = []
            for one in pair:
                steps, valid = self._draw(self.records[one].frames, generator)
                frames = self._clip(one, steps[0], generator)
                if frames is None:
                    break
                clips.append((frames, torch.from_numpy(steps[0]), torch.from_numpy(valid[0])))
            if len(clips) == 2:
                break
            if self._bad[position]:
                return None
        frames, steps, valid = (torch.stack(parts) for parts in zip(*clips, strict=True))
        return {
            "frames": frames,
            "steps": steps,
            "valid": valid,
            "num_frames": torch.tensor([self.records[one].frames for one in pair]),
            "id": " with ".join(self.records[one].id for one in pair),
        }


DATASETS = {"views": TwoViewDataset, "videos": PairDataset}  # by the recipe's data.clips


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
