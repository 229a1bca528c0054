"""Items, orders and the loader at 200,000 videos: seconds and memory that grow with their number.

``pytest benchmarks/test_loader_scale.py -s`` prints the table; it takes a few seconds.
"""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from benchmarks.many_videos import ManyVideos
from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    SegmentTuples,
    TwoViews,
    VideoPairs,
)
from fastseq.video.columns import column
from fastseq.video.order import ByShard, Mixture, Shuffled

COUNT = 200_000
CLIP = Augmentation(size=224)
ITEMS: dict[str, Callable[[Any], Any]] = {
    "TwoViews": lambda videos: TwoViews(videos, 80, CLIP),
    "VideoPairs": lambda videos: VideoPairs(videos, 20, CLIP, sampling="segment"),
    "SegmentTuples": lambda videos: SegmentTuples(videos, Augmentation(size=224, per_clip=False)),
}
ORDERS: dict[str, Callable[[Any], Any]] = {
    "Shuffled": lambda videos: Shuffled(len(videos)),
    "Mixture": lambda videos: Mixture(column(videos, "source"), [1, 2, 3]),
    "ByShard": lambda videos: ByShard(column(videos, "shard")),
}


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """CPU time, which other work on the machine affects little; nothing here waits."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def peak_mib(call: Callable[[], Any]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


@pytest.mark.parametrize("kind", ITEMS)
def test_items(kind):
    videos = ManyVideos(np.arange(COUNT))
    built = seconds(lambda: ITEMS[kind](videos))
    peak = peak_mib(lambda: ITEMS[kind](videos))
    items = ITEMS[kind](videos)
    index = iter(np.random.default_rng(0).integers(COUNT, size=1000).tolist())
    items.item(0, 0, 0)
    each = seconds(lambda: items.item(0, 0, next(index)), 100)
    loader = ClipLoader(items, 8, engine=PyAVEngine(224))
    loader.items_of(0)
    batch = iter(range(1, 100))
    of_batch = seconds(lambda: loader.items_of(next(batch)), 10)
    print(
        f"\n{kind}: {built:.3f} s and {peak:.0f} MiB to build, {1e6 * each:.0f} us an item, "
        f"{1e6 * of_batch:.0f} us a batch of 8, {seconds(loader.state_dict):.3f} s for state_dict, "
        f"then {seconds(loader.state_dict):.6f} s"
    )
    assert each < 0.01  # a walk over all videos takes longer


@pytest.mark.parametrize("kind", ORDERS)
def test_orders(kind):
    videos = ManyVideos(np.arange(COUNT))
    order = ORDERS[kind](videos)
    epoch = iter(range(100))
    drawn = seconds(lambda: order.order(next(epoch)), 5)
    print(f"\n{kind}: {seconds(lambda: ORDERS[kind](videos)):.3f} s, {drawn:.3f} s an epoch")
    assert videos.made == 0
