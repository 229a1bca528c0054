"""Batches of clips for training: the same with every engine, and resumable at any batch."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fastseq.video._av import VideoError
from fastseq.video.arguments import as_int
from fastseq.video.items import Item, Items
from fastseq.video.readings import Engine, Reading

# More bad videos than both limits: the data set, not a single file, is at fault.
MAX_BAD = 10
MAX_BAD_SHARE = 0.01
LAST = ("drop", "keep", "wrap")


class TooManyBadVideos(RuntimeError):
    """Too many videos could not be read, or no item is left; the message lists them."""


class ClipLoader:
    """Iterates over batches of items: ``for batch in loader`` is one epoch, in a new order.

    A batch of N items is a dict:

    - `frames` uint8 (N, 2, T, 3, S, S), or (N, 2, T, C, 3, S, S) with C > 1 context frames;
      normalise on the device. A CUDA tensor from DALI's GPU engine, otherwise a CPU tensor.
      (`SegmentTuples` has 2 S + 1 clips of one frame in place of 2 of T, here and below);
    - `steps` int64 (N, 2, T), frame numbers; `times` float64 (N, 2, T), seconds at the video's
      average rate; `valid` bool (N, 2, T); `lengths` int64 (N, 2), valid frames;
      `num_frames` int64 (N, 2), the videos' lengths in frames; `ids` and `actions`, lists. For
      `SynchronisedViews`, `steps`, `times` and `num_frames` are those of the common time.

    Batch k is a function of (seed, k, videos skipped so far): frame numbers, crops, flips and
    colours are the same with any engine and any number of workers. A video that cannot be read is
    replaced by the next in order, counted and named in a warning. `TooManyBadVideos` lists them
    when there are more than 10 and more than 1 % of all videos, or when no item is left. Each rank
    counts the bad videos that it has met.

    Args:
        items: what the clips are: `TwoViews`, `VideoPairs`, `SynchronisedViews` or
            `SegmentTuples`.
        batch_size: N, items per batch and rank.
        engine: the engine that reads them, see `fastseq.video.open_engine`.
        seed: seed of all draws and of each epoch's order.
        rank, world_size: rank of this process and number of ranks; ranks read disjoint parts of
            each global batch.
        last: what happens to items that do not fill the last (global) batch of an epoch. "drop"
            leaves them out (another epoch's order includes them; an epoch has at least one batch),
            "wrap" fills up from the start of the order, "keep" returns a smaller batch (one process
            only).

    Attributes:
        position: number of batches returned so far, over all epochs. Set it between two iterators
            to continue elsewhere.
        bad: path -> reason, for the skipped videos.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> from fastseq.video import Augmentation, ClipLoader, TwoViews, open_engine, probe
        >>> videos = [probe(path) for path in paths]  # doctest: +SKIP
        >>> items = TwoViews(videos, 240, Augmentation(size=224))  # doctest: +SKIP
        >>> engine = open_engine("auto", videos, 224)  # doctest: +SKIP
        >>> for batch in ClipLoader(items, 4, engine=engine):  # doctest: +SKIP
        ...     batch["frames"].shape
        torch.Size([4, 2, 240, 3, 224, 224])
    """

    def __init__(
        self,
        items: Items,
        batch_size: int,
        *,
        engine: Engine,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        last: str = "drop",
    ):
        if not callable(getattr(items, "item", None)):
            raise TypeError(
                "items must be TwoViews, VideoPairs or SegmentTuples, got "
                f"{type(items).__name__}; pass TwoViews([probe(path) for path in paths], ...)"
            )
        if not (hasattr(engine, "batches") and hasattr(engine, "size")):
            raise TypeError(
                f"engine must be a PyAVEngine or DaliEngine, got {type(engine).__name__}; "
                "fastseq.video.open_engine(...)[0] is one, and its [1] states why it was picked"
            )
        batch_size = as_int("batch_size", batch_size, 1)
        rank, world_size = as_int("rank", rank), as_int("world_size", world_size)
        seed = as_int("seed", seed)
        if engine.size != items.augmentation.size:
            raise ValueError(
                f"the engine makes frames of size {engine.size}, the items' augmentation is for "
                f"{items.augmentation.size}; set both to the same size"
            )
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got {rank} and {world_size}")
        if last not in LAST:
            raise ValueError(f"last must be one of {', '.join(LAST)}, got {last!r}")
        if last == "keep" and world_size > 1:
            raise ValueError(
                'last="keep" makes batches of different sizes on ranks; use "drop" or "wrap" with '
                f"{world_size} ranks"
            )
        self.items, self.batch_size, self.engine, self.seed = items, batch_size, engine, seed
        self.rank, self.world_size, self.last = rank, world_size, last
        self.position = 0
        self.bad: dict[str, str] = {}

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(len(self.items), self.batch_size * self.world_size)
        return max(1, whole if self.last == "drop" else whole + bool(rest))

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rest of the epoch at `position`."""
        epoch = self.position // self.batches_per_epoch
        return self.stream((epoch + 1) * self.batches_per_epoch)

    def stream(self, stop: int) -> Iterator[dict[str, Any]]:
        """Batches `position` to `stop` - 1, without a pause between epochs."""
        while (position := self.position) < stop:
            try:
                for frames in self.engine.batches(self.readings, position, stop):
                    batch = self._batch(self.items_of(position), frames)
                    position += 1
                    self.position = position
                    yield batch
                    if self.position != position:  # frames under way belong to other items
                        raise RuntimeError(
                            f"the loader was moved from batch {position} to {self.position} while "
                            "it was iterated over: start a new iterator after that, and use one "
                            "at a time"
                        )
            except VideoError as error:
                self.set_aside(error)

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's order of all items, the same on every rank."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.items))

    def items_of(self, batch: int) -> list[Item]:
        """The items of batch `batch`, counted over all epochs, on this rank."""
        epoch, place = divmod(batch, self.batches_per_epoch)
        order = self.order(epoch)
        start = (place * self.world_size + self.rank) * self.batch_size
        chosen = order[start : start + self.batch_size]
        if self.world_size > 1 or self.last == "wrap":
            places = np.arange(start, start + self.batch_size) % len(order)
            chosen = order[places]
        return [self._item(epoch, int(index)) for index in chosen]

    def readings(self, batch: int) -> list[Reading]:
        return [reading for item in self.items_of(batch) for reading in item.readings]

    def state_dict(self) -> dict[str, Any]:
        """The loader's position, for `load_state_dict`: plain numbers and strings."""
        ids = {video.path: video.id for video in self.items.videos}
        return {
            "position": self.position,
            "bad": {ids[path]: reason for path, reason in self.bad.items()},  # folders may move
            "seed": self.seed,
            "items": len(self.items),
            "batch_size": self.batch_size * self.world_size,
            "last": self.last,
            "videos": self._checksum(),
        }

    def _checksum(self) -> int:
        """Checksum of the properties that the clips are drawn from, pixels excepted."""
        videos = self.items.videos
        frames = np.array([video.frames for video in videos], dtype="<i8").tobytes()
        gaps = [
            (place, *gap)
            for place, video in enumerate(videos)
            for gap in getattr(video, "gaps", ())
        ]
        checksum = zlib.crc32(np.array(gaps, dtype="<i8").tobytes(), zlib.crc32(frames))
        more = [
            (place, getattr(video, "crop", None), getattr(video, "sync", None))
            for place, video in enumerate(videos)
        ]
        more = [entry for entry in more if any(entry[1:])]
        return zlib.crc32(repr(more).encode(), checksum) if more else checksum

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called, with exactly the same batches.

        Raises ValueError if the loader has another seed, global batch size or `last`, or other
        videos. These are compared by their number and order, and by their numbers of frames, gaps,
        crops and sync. TooManyBadVideos if no video is left.
        """
        mine = self.state_dict()
        for name in ("seed", "items", "batch_size", "last"):
            if state[name] != mine[name]:
                raise ValueError(
                    f"the saved loader had {name} = {state[name]}, this one has {mine[name]}; "
                    "batches would not be the same. Use the saved value"
                )
        if state["videos"] != mine["videos"]:
            raise ValueError(
                "the saved loader had other videos, or the same ones in another order (their "
                "numbers of frames, gaps, crops or sync differ); batches would not be the same. "
                "Use the videos of the saved loader"
            )
        paths = {video.id: video.path for video in self.items.videos}
        self.bad = {paths[name]: reason for name, reason in state["bad"].items() if name in paths}
        self.position = state["position"]
        self._item(0, 0)  # raises if nothing is left

    def _item(self, epoch: int, index: int) -> Item:
        """TooManyBadVideos if no video is left to draw from."""
        item = self.items.item(self.seed, epoch, index, self.bad.keys())
        if item is None:
            raise self._too_many_bad("nothing is left to train on")
        return item

    def _too_many_bad(self, why: str) -> TooManyBadVideos:
        """The error that lists the skipped videos."""
        names = {video.path: video.id for video in self.items.videos}
        listed = "".join(
            f"\n  {names.get(path, path)}: {reason}" for path, reason in self.bad.items()
        )
        return TooManyBadVideos(
            f"{len(self.bad)} of {len(self.items)} videos cannot be read, {why}:{listed}\n"
            "check all files with `fastseq.video.probe(path, decode=True)` and leave out those "
            "that raise an error"
        )

    def set_aside(self, error: VideoError) -> None:
        """Leave a video out from now on; TooManyBadVideos if too many are left out."""
        if error.path in self.bad:
            raise RuntimeError(f"{error} (although it was skipped)") from error
        self.bad[error.path] = error.reason
        self._item(0, 0)  # raises if nothing is left
        count, total = len(self.bad), len(self.items)
        most = max(MAX_BAD, int(MAX_BAD_SHARE * total))
        if count > most:
            raise self._too_many_bad(f"more than {most}") from error
        name = next(video.id for video in self.items.videos if video.path == error.path)
        warnings.warn(
            f"left out {name}: {error.reason} ({count} of {total} videos)",
            RuntimeWarning,
            stacklevel=3,
        )

    def _batch(self, items: list[Item], frames: torch.Tensor) -> dict[str, Any]:
        context = self.items.num_context
        steps, valid, num_frames, fps = (
            torch.from_numpy(np.stack([getattr(item, name) for item in items]))
            for name in ("steps", "valid", "num_frames", "fps")
        )
        t = (steps.shape[-1], context) if context > 1 else (steps.shape[-1],)
        return {
            "frames": frames.view(*steps.shape[:2], *t, *frames.shape[3:]),
            "steps": steps,
            "times": steps / fps[..., None],
            "valid": valid,
            "lengths": valid.sum(-1),
            "num_frames": num_frames,
            "ids": [item.id for item in items],
            "actions": [item.action for item in items],
        }
