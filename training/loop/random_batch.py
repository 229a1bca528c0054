"""Batches of random frames for measuring steps; no video is read."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from training.recipe.schema import Config

DRAWN = 1 << 22  # random pixels


def random_batch(
    cfg: "Config",
    frames: int,
    items: int | None = None,
    *,
    features: int | None = None,
    padded: bool = True,
) -> dict[str, Any]:
    """A batch of ``items`` (data.batch_size) items of two clips, in the loader's format.

    All frames have the class 0.

    Args:
        frames: T, number of frames of a clip.
        features: size of stored features, which then replace the frames.
        padded: one clip has a padded frame, so masks are used everywhere, the more expensive case.
    """
    n = cfg.data.batch_size if items is None else items
    valid = torch.ones(n, 2, frames, dtype=torch.bool)
    if padded:
        valid[0, 0, -1] = False
    size, context = cfg.augmentation.size, cfg.data.num_context
    shape = (n, 2, frames, *([context] if context > 1 else []), 3, size, size)
    return {
        "frames": random_pixels(shape) if features is None else torch.rand(n, 2, frames, features),
        "steps": torch.arange(frames).expand(n, 2, frames).clone(),
        "valid": valid,
        "num_frames": torch.full((n, 2), frames),
        "ids": [str(i) for i in range(n)],
        "actions": [""] * n,
        "labels": torch.zeros(n, 2, frames, dtype=torch.int64),
    }


def random_tuples(cfg: "Config", items: int) -> dict[str, Any]:
    """The same for `fastseq.video.SegmentTuples`: tuples are in order, the anchor is clip 0."""
    segments = cfg.data.segments
    places = torch.arange(2 * segments)
    starts = torch.cat([places[::2], places[1::2], places[:1]])
    return _random_clips(cfg, items, starts, 2 * segments)


def random_segments(cfg: "Config", items: int) -> dict[str, Any]:
    """The same for `fastseq.video.SegmentClips`, and `ConsecutiveBlocks`, whose steps differ."""
    return _random_clips(cfg, items, torch.arange(cfg.data.segments), cfg.data.segments)


def _random_clips(
    cfg: "Config", items: int, starts: torch.Tensor, num_starts: int
) -> dict[str, Any]:
    length, stride, size = cfg.data.tuple_frames, cfg.data.tuple_stride, cfg.augmentation.size
    steps = starts[:, None] + stride * torch.arange(length)
    shape = (items, *steps.shape)
    return {
        "frames": random_pixels((*shape, 3, size, size)),
        "steps": steps.expand(shape).clone(),
        "valid": torch.ones(shape, dtype=torch.bool),
        "num_frames": torch.full(shape[:2], num_starts + (length - 1) * stride),
        "ids": [str(i) for i in range(items)],
        "actions": [""] * items,
    }


def random_pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """Random pixels, which repeat: drawing all of them would take longer than the step."""
    pixels = torch.empty(shape, dtype=torch.uint8)
    flat = pixels.view(-1)
    drawn = torch.randint(256, (min(flat.numel(), DRAWN),), dtype=torch.uint8)
    for part in flat.split(DRAWN):
        part.copy_(drawn[: part.numel()])
    return pixels
