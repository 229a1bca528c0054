"""A recipe's data: its items, the engine that reads them, the loader; whole videos to evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastseq.video import (
    Augmentation,
    Clip,
    ClipLoader,
    Engine,
    Items,
    PyAVEngine,
    Reading,
    SegmentTuples,
    TwoViews,
    VideoPairs,
    decode_side,
    eval_draw,
    open_engine,
    scaled_size,
)
from training.data.cache import FrameCache
from training.data.index import VideoRecord

ITEMS = {"views": TwoViews, "videos": VideoPairs}  # by the recipe's data.clips
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


def open_loader(
    records: Sequence[VideoRecord],
    data_cfg: Any,
    augmentation: Augmentation,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    fill_cache: bool = True,
    progress: bool = True,
) -> tuple[ClipLoader, str]:
    """The loader of a recipe, and why it has the engine it has.

    `data.batch_size` items make a batch; each of `world_size` ranks reads its part of them. With
    `data.cache=ram` every video is decoded now; those that fail are set aside. Without `fill_cache`
    none is, and clips come from the files.
    """
    items = open_items(records, data_cfg, augmentation)
    if data_cfg.cache not in ("none", "ram"):
        raise ValueError(f'data.cache must be "none" or "ram", got {data_cfg.cache!r}')
    engine, reason = open_engine(
        data_cfg.engine,
        items.videos,
        augmentation.size,
        device=device,
        workers=data_cfg.workers,
        cache={} if data_cfg.cache == "ram" else None,  # an engine that has none says so first
    )
    failed = []
    if data_cfg.cache == "ram" and fill_cache:
        engine.cache = FrameCache(items.videos, items.side, progress=progress)
        failed = engine.cache.failed
    loader = ClipLoader(
        items,
        data_cfg.batch_size // world_size,
        engine=engine,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    for error in failed:
        loader.set_aside(error)
    return loader, reason


def open_evaluation_engine(records: Sequence[VideoRecord], cfg: Any) -> Engine:
    """The engine that a run of this configuration was trained with, to read whole videos.

    Decoders convert colours differently, so that training and evaluation should share one.
    """
    size = cfg.augmentation.size
    if cfg.data.cache == "ram":
        return PyAVEngine(size, scale_first=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_engine(cfg.data.engine, records, size, device=device)[0]


def load_videos(
    records: Sequence[VideoRecord], size: int, side: int | None = None, *, engine: Engine
) -> Iterator[torch.Tensor]:
    """Every frame of each video with the evaluation transform: uint8 (frames, 3, size, size).

    Raises:
        VideoError: a frame that the index counts does not come out.
    """
    side = decode_side(size, side)
    chunks = [
        (record, np.arange(start, min(start + _CHUNK, record.frames)))
        for record in records
        for start in range(0, record.frames, _CHUNK)
    ]

    def source(chunk: int) -> list[Reading]:
        record, frames = chunks[chunk]
        draw = eval_draw(*scaled_size(record.height, record.width, side))
        return [Reading(record.path, record.height, record.width, side, (Clip(frames, draw),))]

    parts = []
    for (record, frames), made in zip(chunks, engine.batches(source, 0, len(chunks)), strict=True):
        parts.append(made[0, 0])
        if frames[-1] == record.frames - 1:
            parts = [torch.cat(parts)]
            yield parts.pop()  # kept nowhere here while it is worked on
