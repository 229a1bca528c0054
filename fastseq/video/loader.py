"""Batches of clips for training: the same with every engine, and resumable at any batch."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastseq.video._av import VideoError
from fastseq.video.arguments import as_int
from fastseq.video.columns import column, having, special, values_of
from fastseq.video.items import Item, Items, part_of
from fastseq.video.order import Order, Shuffled, check_order, repeats_of
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
      `SegmentTuples`, `SegmentClips` and `ConsecutiveBlocks` have 2 S + 1, S and B clips of L
      frames in place of 2 of T, here and below;
    - `steps` int64 (N, 2, T), frame numbers; `times` float64 (N, 2, T), true presentation times in
      seconds since the video's first frame, also of files with a variable frame rate (k / fps for
      videos without `times`, see `fastseq.video.items.Video`); `valid` bool (N, 2, T); `lengths`
      int64 (N, 2), valid frames; `num_frames` int64 (N, 2), the videos' lengths in frames; `ids`
      and `actions`, lists. For `SynchronisedViews`, `steps`, `times` and `num_frames` are those of
      the common time.

    Batch k is a function of (seed, order, k, videos skipped so far): frame numbers, crops, flips
    and colours are the same with any engine and any number of workers, so a run that is resumed
    from `state_dict` has exactly the batches of one that was not interrupted, with every order.
    Nothing is walked per batch: 200,000 videos take as long as 200. A video that cannot be read is
    replaced by the next in order, counted and named in a warning. `TooManyBadVideos` lists them
    when there are more than 10 and more than 1 % of all videos, or when no item is left. Each rank
    counts the bad videos that it has met.

    Several loaders may share every clip, each with another `part` of its frames. Only the pixels of
    these frames are read, and T above becomes T / R; draws, `num_frames`, `ids` and `actions` are
    those of the whole clip. So are the pixels, except where the contrast is changed: this keeps the
    mean of a part, not of the whole clip.

    Args:
        items: what the clips are: `TwoViews`, `VideoPairs`, `SynchronisedViews`, `SegmentTuples`,
            `SegmentClips` or `ConsecutiveBlocks`.
        batch_size: N, items per batch and rank.
        engine: the engine that reads them, see `fastseq.video.open_engine`.
        seed: seed of all draws and of each epoch's order.
        rank, world_size: rank of this process and number of ranks; ranks read disjoint parts of
            each global batch.
        last: what happens to items that do not fill the last (global) batch of an epoch. "drop"
            leaves them out (another epoch's order includes them; an epoch has at least one batch),
            "wrap" fills up from the start of the order, "keep" returns a smaller batch (one process
            only).
        order: the order of the items, see `fastseq.video.order`: `Shuffled` (the default, with
            this seed), `Mixture` of several sources, or `ByShard`.
        part: (r, R): of every clip of T frames, the frames r T / R to (r + 1) T / R. The loaders of
            the R parts have the same `rank` and `world_size`. The clips of `SegmentTuples`,
            `SegmentClips` and `ConsecutiveBlocks` have no parts.
        agree: function that every loader of the parts calls once per batch, with path -> reason of
            the videos that this loader could not read; it returns those of all parts, in the same
            order on each. If there are any, all parts draw the batch anew. Without it, a loader of
            a part raises VideoError for an unreadable video.

    Attributes:
        position: number of batches returned so far, over all epochs. Set it between two iterators
            to continue elsewhere.
        bad: path -> reason, for the skipped videos.

    Raises:
        ValueError: an option out of its range, an order of another number of items or of other
            ranks, or clips that cannot be divided into R equal parts.

    Example:
        >>> import tempfile
        >>> from fastseq.video import *
        >>> paths = [f"{tempfile.mkdtemp()}/{name}.mp4" for name in "abcd"]
        >>> for path in paths:
        ...     write_video(path, [np.full((48, 64, 3), k, np.uint8) for k in range(20)], fps=25)
        >>> items = TwoViews([probe(path) for path in paths], 8, Augmentation(size=32))
        >>> for batch in ClipLoader(items, 2, engine=PyAVEngine(32)):
        ...     print(batch["frames"].shape, batch["times"].dtype)
        torch.Size([2, 2, 8, 3, 32, 32]) torch.float64
        torch.Size([2, 2, 8, 3, 32, 32]) torch.float64
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
        order: Order | None = None,
        part: tuple[int, int] = (0, 1),
        agree: Callable[[dict[str, str]], dict[str, str]] | None = None,
    ):
        if not callable(getattr(items, "item", None)):
            raise TypeError(
                "items must be TwoViews, VideoPairs, SynchronisedViews, SegmentTuples, "
                f"SegmentClips or ConsecutiveBlocks, got {type(items).__name__}; pass "
                "TwoViews([probe(path) for path in paths], ...)"
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
        if order is not None:
            check_order(order, len(items), (rank, world_size))
        self.items, self.batch_size, self.engine, self.seed = items, batch_size, engine, seed
        self.rank, self.world_size, self.last = rank, world_size, last
        self.part, self.agree = _as_part(part, items), agree
        self.position = 0
        self.bad: dict[str, str] = {}
        self._order: Order = Shuffled(len(items), seed) if order is None else order
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._names: dict[str, str] = {}
        self._videos: int | None = None  # checksum, computed when it is needed

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes, which draw items; a process group cannot be pickled.
        return self.__dict__ | {"agree": None}

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(self._order.count, self.batch_size * self.world_size)
        return max(1, whole if self.last == "drop" else whole + bool(rest))

    @property
    def left_over(self) -> int:
        """Places of an epoch's order that no batch of any rank has; below 0: those that fill the
        last batches a second time. Another epoch's order has other items there."""
        places = self.batches_per_epoch * self.batch_size * self.world_size
        if self._fills_up:
            return self._order.count - places
        return max(0, self._order.count - places)

    @property
    def _fills_up(self) -> bool:
        return self.world_size > 1 or self.last == "wrap"

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
                    if self._skip({}):
                        break
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
                if self.part[1] > 1 and self.agree is None:
                    raise  # the loaders of the other parts would have other items
                self._skip({error.path: error.reason})

    def _skip(self, found: dict[str, str]) -> bool:
        """Leave out the videos that a loader of any part cannot read; whether there are any."""
        if self.agree is not None:
            found = self.agree(found)
        for path, reason in found.items():
            self.set_aside(VideoError(path, reason))
        return bool(found)

    def order(self, epoch: int) -> np.ndarray:
        """int64: the items of an epoch in their order, for all ranks; for `ByShard` for this one.

        Drawn once: the last two epochs are kept.
        """
        return self._epoch(epoch)[0]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The order of an epoch and its `repeats_of`."""
        drawn = self._epochs.get(epoch)
        if drawn is None:
            order = self._order.order(epoch)
            drawn = order, repeats_of(order)
            self._epochs = dict([*self._epochs.items(), (epoch, drawn)][-2:])
        return drawn

    def items_of(self, batch: int) -> list[Item]:
        """This rank's items of batch `batch`, counted over all epochs; of clips, this `part`."""
        epoch, place = divmod(batch, self.batches_per_epoch)
        order, repeats = self._epoch(epoch)
        # An order of one rank has been dealt out already.
        rank, ranks = (self.rank, self.world_size) if self._order.share is None else (0, 1)
        start = (place * ranks + rank) * self.batch_size
        places = np.arange(start, start + self.batch_size)
        places = places % len(order) if self._fills_up else places[places < len(order)]
        items = [
            self._item(epoch, int(order[k]), 0 if repeats is None else int(repeats[k]))
            for k in places
        ]
        return items if self.part == (0, 1) else [part_of(item, *self.part) for item in items]

    def readings(self, batch: int) -> list[Reading]:
        return [reading for item in self.items_of(batch) for reading in item.readings]

    def state_dict(self) -> dict[str, Any]:
        """The loader's position, for `load_state_dict`: plain numbers and strings."""
        ids = self._ids()
        return {
            "position": self.position,
            "bad": {ids[path]: reason for path, reason in self.bad.items()},  # folders may move
            "seed": self.seed,
            "items": len(self.items),
            "batch_size": self.batch_size * self.world_size,
            "last": self.last,
            "order": self._order.describe(),
            "videos": self._checksum(),
        }

    def _ids(self) -> dict[str, str]:
        """Path -> id of the skipped videos and possibly of others."""
        if self.bad.keys() - self._names.keys():  # looked up once, as that reads every path
            videos = self.items.videos
            found = having(videos, "path", self.bad.keys())
            self._names = dict(values_of(videos, found, "path", "id"))
        return self._names

    def _checksum(self) -> int:
        """Checksum of the properties that the clips are drawn from, pixels excepted."""
        if self._videos is None:
            frames = column(self.items.videos, "frames").astype("<i8").tobytes()
            gaps, more = [], []
            for place, video in special(self.items.videos):
                gaps += [(place, *gap) for gap in getattr(video, "gaps", ())]
                crop, sync = getattr(video, "crop", None), getattr(video, "sync", None)
                if crop or sync:
                    more.append((place, crop, sync))
            self._videos = zlib.crc32(np.array(gaps, dtype="<i8").tobytes(), zlib.crc32(frames))
            if more:
                self._videos = zlib.crc32(repr(more).encode(), self._videos)
        return self._videos

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called, with exactly the same batches.

        Raises ValueError if the loader has another seed, global batch size, `last` or order, or
        other videos. These are compared by their number and order, and by their numbers of frames,
        gaps, crops and sync. TooManyBadVideos if no video is left. A state without an order is one
        of `Shuffled`. With `ByShard` the number of ranks must be the same too, otherwise only their
        global batch.
        """
        mine = self.state_dict()
        for name in ("seed", "items", "batch_size", "last"):
            if state[name] != mine[name]:
                use = "the same videos" if name == "items" else "the saved value"
                raise ValueError(
                    f"the saved loader had {name} = {state[name]}, this one has {mine[name]}; "
                    f"batches would not be the same. Use {use}"
                )
        saved = state.get("order") or Shuffled(len(self.items), self.seed).describe()
        ranks = [order.get("world_size") for order in (saved, mine["order"])]
        if None not in ranks and ranks[0] != ranks[1]:
            raise ValueError(
                f"the saved loader read shards on a world_size of {ranks[0]}, this one has "
                f"{ranks[1]}: ranks would read other shards. Use {ranks[0]} ranks"
            )
        for name in [*saved, *mine["order"]]:
            if saved.get(name) != mine["order"].get(name):
                raise ValueError(
                    f"the saved loader had an order with {name} = {saved.get(name)!r}, this one "
                    f"has {mine['order'].get(name)!r}; batches would not be the same. Use the "
                    "saved order"
                )
        if state["videos"] != mine["videos"]:
            raise ValueError(
                "the saved loader had other videos, or the same ones in another order (their "
                "numbers of frames, gaps, crops or sync differ); batches would not be the same. "
                "Use the videos of the saved loader"
            )
        videos = self.items.videos
        paths = dict(values_of(videos, having(videos, "id", state["bad"].keys()), "id", "path"))
        self.bad = {paths[name]: reason for name, reason in state["bad"].items() if name in paths}
        self.position = state["position"]
        self._item(0, 0)  # raises if nothing is left

    def _item(self, epoch: int, index: int, repeat: int = 0) -> Item:
        """TooManyBadVideos if no video is left to draw from."""
        again = (repeat,) if repeat else ()
        item = self.items.item(self.seed, epoch, index, self.bad.keys(), *again)
        if item is None:
            raise self._too_many_bad("nothing is left to train on")
        return item

    def _too_many_bad(self, why: str) -> TooManyBadVideos:
        """The error that lists the skipped videos."""
        names = self._ids()
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
        if self.part[0]:
            return  # the loader of part 0 warns
        name = self._ids()[error.path]
        warnings.warn(
            f"left out {name}: {error.reason} ({count} of {total} videos)",
            RuntimeWarning,
            stacklevel=4,
        )

    def _batch(self, items: list[Item], frames: torch.Tensor) -> dict[str, Any]:
        context = self.items.num_context
        steps, times, valid, num_frames = (
            torch.from_numpy(np.stack([getattr(item, name) for item in items]))
            for name in ("steps", "times", "valid", "num_frames")
        )
        t = (steps.shape[-1], context) if context > 1 else (steps.shape[-1],)
        return {
            "frames": frames.view(*steps.shape[:2], *t, *frames.shape[3:]),
            "steps": steps,
            "times": times,
            "valid": valid,
            "lengths": valid.sum(-1),
            "num_frames": num_frames,
            "ids": [item.id for item in items],
            "actions": [item.action for item in items],
        }


def _as_part(part: tuple[int, int], items: Items) -> tuple[int, int]:
    """(r, R) as integers; ValueError unless the items' clips have R equal parts."""
    r, parts = (as_int("part", number, 0) for number in part)
    if not r < parts:
        raise ValueError(f"part must be (r, R) with 0 <= r < R, got {part}")
    length = getattr(items, "num_frames", None)
    if parts > 1 and length is None:
        raise ValueError(
            f"part: the clips of {type(items).__name__} have no parts, got {part}; use (0, 1)"
        )
    if length is not None and length % parts:
        raise ValueError(
            f"part: clips of T = {length} frames cannot be divided into {parts} equal parts; "
            f"choose a T that is a multiple of {parts}"
        )
    return r, parts
