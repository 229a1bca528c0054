"""The data of a recipe: its items, the engine that reads them, the loader, and whole videos."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastseq.video import (
    Augmentation,
    Clip,
    ClipLoader,
    ConsecutiveBlocks,
    Engine,
    Items,
    PyAVEngine,
    Reading,
    SegmentClips,
    SegmentTuples,
    SynchronisedViews,
    TwoViews,
    VideoError,
    VideoPairs,
    decode_side,
    eval_draw,
    open_engine,
)
from fastseq.video.augment import ClipDraw
from fastseq.video.columns import column
from fastseq.video.gaps import frames_of
from fastseq.video.order import ByShard, Mixture, Order
from fastseq.video.readings import area_of, reading_of
from training.data.cache import FrameCache
from training.data.folders import names_of
from training.data.index import VideoRecord
from training.support.command import UserError
from training.support.distributed import union_over_group
from training.support.time_split import TimeSplit

if TYPE_CHECKING:
    from training.data.features import FeatureStore

ITEMS = {  # by the recipe's data.clips
    "views": TwoViews,
    "videos": VideoPairs,
    "synchronised": SynchronisedViews,
}
CACHES = ("none", "ram", "features")
_CHUNK = 512  # frames decoded at a time when a whole video is read


def open_items(records: Sequence[VideoRecord], data_cfg: Any, augmentation: Augmentation) -> Items:
    """Items of clips, as the recipe's `data` section describes them."""
    if data_cfg.clips == "tuples":
        return SegmentTuples(
            records,
            augmentation,
            segments=data_cfg.segments,
            anchor=data_cfg.anchor,
            reversal=data_cfg.reversal,
            side=data_cfg.cache_side,
            clip_frames=data_cfg.tuple_frames,
            stride=data_cfg.tuple_stride,
        )
    if data_cfg.clips == "segments":
        return SegmentClips(
            records,
            augmentation,
            segments=data_cfg.segments,
            clip_frames=data_cfg.tuple_frames,
            stride=data_cfg.tuple_stride,
            side=data_cfg.cache_side,
        )
    if data_cfg.clips == "blocks":
        return ConsecutiveBlocks(
            records,
            augmentation,
            blocks=data_cfg.segments,
            block_frames=data_cfg.tuple_frames,
            stride=data_cfg.tuple_stride,
            side=data_cfg.cache_side,
        )
    return ITEMS[data_cfg.clips](
        records,
        data_cfg.num_frames,
        augmentation,
        sampling=data_cfg.sampling,
        crop_base=data_cfg.crop_base,
        alpha=data_cfg.alpha,
        beta=data_cfg.beta,
        span=tuple(data_cfg.span),
        positive_window=data_cfg.positive_window,
        num_context=data_cfg.num_context,
        context_stride=data_cfg.context_stride,
        side=data_cfg.cache_side,
    )


def open_order(
    videos: Sequence[VideoRecord], data_cfg: Any, seed: int, rank: int = 0, world_size: int = 1
) -> Order | None:
    """The order of an epoch's items, or None for the loader's own, a new permutation each epoch.

    With `data.weights`, a `Mixture` of the folders. If all videos lie in shards, `ByShard`: one
    shard after the other, so that each file is read from its beginning to its end.

    Raises:
        UserError: weights for videos in shards, or for a folder without a video.
    """
    shards, sources = column(videos, "shard"), column(videos, "source")
    if data_cfg.weights is None:
        if not (shards >= 0).all():
            return None
        return ByShard(shards, seed, rank, world_size)
    folders = names_of(data_cfg.folder)
    in_shards = sorted({folders[source] for source in sources[shards >= 0]})
    if in_shards:
        raise UserError(
            f"data.weights: the videos of {' and '.join(in_shards)} lie in shards, which are read "
            "one after the other; weights need folders of video files. Remove data.weights, or "
            "unpack the shards"
        )
    without = [folder for source, folder in enumerate(folders) if source not in sources]
    if without:
        raise UserError(
            f"data.weights: {' and '.join(without)} has no video for training (split, filters, "
            "pairs and used labels taken into account), so its weight cannot be kept; remove it "
            "from data.folder and data.weights"
        )
    if len(folders) == 1:
        return None
    return Mixture(sources, [*data_cfg.weights], seed)


def open_loader(
    records: Sequence[VideoRecord],
    data_cfg: Any,
    augmentation: Augmentation,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    store: FeatureStore | None = None,
    fill_cache: bool = True,
    progress: bool = True,
    loader_type: Callable[..., ClipLoader] = ClipLoader,
    split: TimeSplit | None = None,
) -> tuple[ClipLoader, str]:
    """The loader of a recipe, a ``loader_type``, and the reason for its engine.

    A batch has `data.batch_size` items; each of `world_size` ranks reads its part of them. With
    `data.cache=ram` every video is decoded now; videos that fail are skipped. With
    `data.cache=features` features are read from `store`; this rank first computes those missing
    from its share of the videos. Without `fill_cache` nothing is decoded here; with cache=ram clips
    are then read from the files.

    With a `split` the ranks of its group read the same items, each its part of every clip; together
    they leave out the videos that one of them cannot read.
    """
    items = open_items(records, data_cfg, augmentation)
    part, parts = (0, 1) if split is None else (split.part, split.parts)
    share, shares = rank // parts, world_size // parts
    order = open_order(items.videos, data_cfg, seed, share, shares)
    if data_cfg.cache not in CACHES:
        raise ValueError(f"data.cache must be one of {', '.join(CACHES)}, got {data_cfg.cache!r}")
    failed = []
    if data_cfg.cache == "features":
        if store is None:
            raise ValueError("data.cache=features needs the argument store, a FeatureStore")
        engine, failed, reason = _stored_features(
            items, data_cfg, augmentation, store, (rank, world_size), fill_cache, progress
        )
    else:
        engine, reason = open_engine(
            data_cfg.engine,
            items.videos,
            augmentation.size,
            device=device,
            workers=data_cfg.workers,
            cache={} if data_cfg.cache == "ram" else None,  # an engine without one raises
        )
    if data_cfg.cache == "ram" and fill_cache:
        engine.cache = FrameCache(items.videos, items.side, progress=progress)
        failed = engine.cache.failed
    loader = loader_type(
        items,
        data_cfg.batch_size // shares,
        engine=engine,
        seed=seed,
        rank=share,
        world_size=shares,
        order=order,
        part=(part, parts),
        agree=None if split is None else functools.partial(union_over_group, group=split.group),
    )
    for error in failed:
        loader.set_aside(error)
    return loader, reason


def _stored_features(
    items: Items,
    data_cfg: Any,
    augmentation: Augmentation,
    store: FeatureStore,
    share: tuple[int, int],
    fill: bool,
    progress: bool,
) -> tuple[Engine, list[VideoError], str]:
    """The engine, the videos that failed, and a description; ``share``: rank and world size."""
    from training.data.features import FeatureEngine

    count = data_cfg.feature_draws
    draws = range(1, count + 1) if count else (0,)
    rank, world_size = share
    failed = store.fill(items.videos[rank::world_size], draws, progress=progress) if fill else []
    engine = FeatureEngine(store, items.videos, augmentation.size, count)
    what = f"{count} augmented versions of each video" if count else "unaugmented videos"
    return engine, failed, f"computed once, from {what}"


def open_evaluation_engine(records: Sequence[VideoRecord], cfg: Any) -> Engine:
    """The engine that a run with this configuration was trained with, for reading whole videos.

    Decoders convert colours differently, so training and evaluation should use the same one.
    """
    size = cfg.augmentation.size
    if cfg.data.cache == "ram":
        return PyAVEngine(size, scale_first=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_engine(cfg.data.engine, records, size, device=device)[0]


def load_videos(
    records: Sequence[VideoRecord],
    size: int,
    side: int | None = None,
    *,
    engine: Engine,
    draw: Callable[[VideoRecord, int, int], ClipDraw] | None = None,
) -> Iterator[torch.Tensor | VideoError]:
    """The sound frames of each video, uint8 (n, 3, size, size), with the evaluation transform.

    For a video that cannot be read, yields the VideoError instead.

    Args:
        draw: function of a video and the height and width of its scaled frames that returns another
            transform.
    """
    side = decode_side(size, side)

    def reading(record: VideoRecord, chunk: int) -> Reading:
        frames = frames_of(record)[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        area = area_of(record, side)
        shape = (area.height, area.width)
        made = eval_draw(*shape) if draw is None else draw(record, *shape)
        return reading_of(record, side, [Clip(frames, made)])

    chunks = [-(-len(frames_of(record)) // _CHUNK) for record in records]
    return read_each(records, chunks, reading, engine=engine)


def read_each(
    records: Sequence[VideoRecord],
    counts: Sequence[int],
    reading: Callable[[VideoRecord, int], Reading],
    *,
    engine: Engine,
) -> Iterator[torch.Tensor | VideoError]:
    """For each video, the frames of its readings 0 to count - 1 as one tensor, or its error."""
    plan = [
        (place, k) for place, count in enumerate(counts) for k in range(max(1, count))
    ]  # a video without a sound frame has one reading too, which raises an error
    failed: dict[str, VideoError] = {}

    def source(position: int) -> list[Reading]:
        place, k = plan[position]
        record = records[place]
        if record.path in failed:
            raise failed[record.path]
        if not counts[place]:
            raise VideoError(record.path, f"none of its {record.frames} frames is sound")
        return [reading(record, k)]

    position, parts = 0, []
    while position < len(plan):
        try:
            for made in engine.batches(source, position, len(plan)):
                place, k = plan[position]
                position += 1
                parts.append(made[0, 0])
                if k + 1 == counts[place]:
                    parts = [torch.cat(parts)]
                    yield parts.pop()  # no reference stays here while the caller uses it
        except VideoError as error:
            place, k = plan[position]
            if error.path == records[place].path:
                parts.clear()
                position += max(1, counts[place]) - k
                yield error
            elif error.path in failed:
                raise
            else:  # a later video, read ahead: its error is yielded in its turn
                failed[error.path] = error
