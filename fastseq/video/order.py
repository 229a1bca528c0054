"""The order in which an epoch uses its items: a function of (seed, epoch) alone.

Let P be ``numpy.random.default_rng([seed, epoch])`` and n the number of items.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from fastseq.video.arguments import as_int, as_number


class Order(Protocol):
    """The order of `fastseq.video.ClipLoader`.

    Attributes:
        count: n, the number of places of an epoch on all ranks together.
        share: (rank, world size) if `order` returns the places of one rank; None if it returns
            those of all ranks, which the loader then deals out batch by batch.
    """

    count: int
    share: tuple[int, int] | None

    def order(self, epoch: int) -> np.ndarray:
        """int64: the positions of the items, in the order of their use."""
        ...

    def describe(self) -> dict[str, Any]:
        """Numbers, strings and lists that are equal for equal orders, whatever the rank."""
        ...


class Shuffled:
    """Every item once, in a new order each epoch: P.permutation(n).

    Args:
        count: n, the number of items.
        seed: seed of the permutations.

    Example:
        >>> Shuffled(5, seed=0).order(0).tolist()
        [2, 4, 3, 0, 1]
    """

    share: tuple[int, int] | None = None

    def __init__(self, count: int, seed: int = 0):
        self.count, self.seed = as_int("count", count, 1), as_int("seed", seed, 0)

    def order(self, epoch: int) -> np.ndarray:
        """int64 (n,): a permutation."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)

    def describe(self) -> dict[str, Any]:
        return {"kind": "shuffled", "count": self.count, "seed": self.seed}


class Mixture:
    """Several sources of videos, such as folders, with given shares of an epoch.

    An epoch has n places, as many as there are items. Source s has `places[s]` of them:
    n w_s / sum(w), rounded by the largest remainders so that the sum is n. Its items are drawn as a
    permutation, repeated or cut to `places[s]` entries: each item of a source occurs floor(q) or
    ceil(q) times, where q is the source's number of places divided by its number of items. Items
    that are cut differ from epoch to epoch. All places are then permuted.

    A repeated item is drawn anew: it shows other frames with another augmentation.

    Args:
        sources: int (n,), the source of each item, from 0; `column(items.videos, "source")`.
        weights: w, one positive number for each source.
        seed: seed of the permutations.

    Attributes:
        places: int64 (number of sources,), places of an epoch.

    Raises:
        ValueError: a source without a weight or an item, a weight that is not positive.

    Example:
        >>> Mixture([0, 0, 0, 1], weights=[1, 1]).places.tolist()
        [2, 2]
    """

    share: tuple[int, int] | None = None

    def __init__(
        self, sources: Sequence[int] | np.ndarray, weights: Sequence[float], seed: int = 0
    ):
        sources = _numbers("sources", sources)
        if not isinstance(weights, Iterable):
            raise TypeError(f"weights must be numbers, one for each source, got {weights!r}")
        self.weights = [float(as_number("weights", weight)) for weight in weights]
        self.count, self.seed = len(sources), as_int("seed", seed, 0)
        wrong = [weight for weight in self.weights if not 0 < weight < np.inf]
        if wrong or not self.weights:
            raise ValueError(
                f"weights must be positive numbers, one for each source, got {self.weights}"
            )
        if sources.min() < 0 or sources.max() >= len(self.weights):
            raise ValueError(
                f"sources must be 0 to {len(self.weights) - 1} for {len(self.weights)} weights, "
                f"got {sources.min()} to {sources.max()}"
            )
        counts = np.bincount(sources, minlength=len(self.weights))
        if not counts.all():
            raise ValueError(
                f"source {int(np.argmin(counts))} has the weight "
                f"{self.weights[int(np.argmin(counts))]:g}, but none of the items: leave out this "
                "source and its weight"
            )
        self.places = _largest_remainders(self.count, np.array(self.weights))
        self._members = np.split(np.argsort(sources, kind="stable"), np.cumsum(counts)[:-1])
        self._checksum = _checksum(sources)

    def order(self, epoch: int) -> np.ndarray:
        """int64 (n,)."""
        generator = np.random.default_rng([self.seed, epoch])
        drawn = [
            np.resize(generator.permutation(members), places)
            for members, places in zip(self._members, self.places, strict=True)
        ]
        return generator.permutation(np.concatenate(drawn))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "mixture",
            "count": self.count,
            "seed": self.seed,
            "weights": self.weights,
            "sources_checksum": self._checksum,
        }


class ByShard:
    """Shard after shard, for videos in tar files that are read from end to end.

    The shards are permuted, then the videos within each shard; videos without a shard (-1) count as
    shards of one video. Let v_0 ... v_(n-1) be the videos in that order. Of W ranks, rank r reads
    v_k for floor(r n / W) <= k < floor((r + 1) n / W): every video is read once, by one rank. Ranks
    have floor(n / W) or ceil(n / W) videos. At most W - 1 shards are read by two neighbouring ranks
    each, which share its videos. Consecutive batches of a rank come from one shard after the other,
    so the videos of a batch are as mixed as those of a shard.

    All ranks have the same number of batches: `ClipLoader.left_over` counts the videos that an
    epoch leaves out or repeats for that.

    Args:
        shards: int (n,), the shard of each item, -1 for none; `column(items.videos, "shard")`.
        seed: seed of the permutations.
        rank, world_size: this process and W, the number of processes.

    Raises:
        ValueError: fewer items than ranks, or an option out of its range.

    Example:
        >>> ranks = [ByShard([7, 7, 7, 3, 3, 3], rank=rank, world_size=2) for rank in (0, 1)]
        >>> [sorted(rank.order(0).tolist()) for rank in ranks]
        [[3, 4, 5], [0, 1, 2]]
    """

    def __init__(
        self,
        shards: Sequence[int] | np.ndarray,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        shards = _numbers("shards", shards)
        self.count, self.seed = len(shards), as_int("seed", seed, 0)
        rank, world_size = as_int("rank", rank), as_int("world_size", world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got {rank} and {world_size}")
        if self.count < world_size:
            raise ValueError(
                f"{self.count} videos are too few for {world_size} ranks; start fewer processes"
            )
        if shards.min() < -1:
            raise ValueError(f"shards count from 0, -1 = none, got {shards.min()}")
        self.rank, self.world_size = rank, world_size
        self.share: tuple[int, int] | None = (rank, world_size)
        alone = shards < 0
        _, self._shards = np.unique(shards, return_inverse=True)
        self._shards[alone] = self._shards.max() + 1 + np.arange(alone.sum())
        _, self._shards = np.unique(self._shards, return_inverse=True)
        self._checksum = _checksum(shards)

    def order(self, epoch: int) -> np.ndarray:
        """int64 (floor(n / W) or ceil(n / W),): the positions of this rank."""
        generator = np.random.default_rng([self.seed, epoch])
        turns = generator.permutation(int(self._shards.max()) + 1)[self._shards]
        shuffled = generator.permutation(self.count)
        order = shuffled[np.argsort(turns[shuffled], kind="stable")]
        rank, world_size = self.rank, self.world_size
        return order[rank * self.count // world_size : (rank + 1) * self.count // world_size]

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "by shard",
            "count": self.count,
            "seed": self.seed,
            "world_size": self.world_size,
            "shards_checksum": self._checksum,
        }


def repeats_of(order: np.ndarray) -> np.ndarray | None:
    """int64 (n,): how often an entry occurred before, in the same order; None if no entry did.

    Example:
        >>> repeats_of(np.array([4, 2, 4, 4])).tolist()
        [0, 0, 1, 2]
    """
    ascending = np.argsort(order, kind="stable")
    begins = np.diff(order[ascending], prepend=-1) != 0
    if begins.all():
        return None
    places = np.arange(len(order))
    out = np.empty_like(places)
    out[ascending] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return out


def _numbers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers, one for each item, got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)


def _largest_remainders(count: int, weights: np.ndarray) -> np.ndarray:
    weights = weights / weights.max()  # the sum of huge numbers is not finite
    exact = count * (weights / weights.sum())
    places = np.floor(exact).astype(np.int64)
    largest = np.argsort(places - exact, kind="stable")
    places[largest[: count - places.sum()]] += 1
    return places


def _checksum(numbers: np.ndarray) -> int:
    return zlib.crc32(numbers.astype("<i8").tobytes())


def check_order(order: Any, count: int, share: tuple[int, int]) -> None:
    """An error if an order does not fit this number of items, or this (rank, world size)."""
    if not all(hasattr(order, name) for name in ("count", "share", "order", "describe")):
        raise TypeError(
            "order must be a Shuffled, Mixture or ByShard of fastseq.video.order, got "
            f"{type(order).__name__}"
        )
    if order.count != count:
        raise ValueError(
            f"the order is of {order.count} items, but there are {count}: make it of the items' "
            '`videos`, without those left out, as in Mixture(column(items.videos, "source"), ...)'
        )
    if order.share not in (None, share):
        raise ValueError(
            "the order is that of rank {} of {}, the loader's is {} of {}; pass both the same "
            "rank and world_size".format(*order.share, *share)
        )
