"""Argument checks that several functions share. Errors state argument, value and expectation.

A value of another type raises TypeError, a value out of range ValueError. NumPy numbers are
accepted wherever Python's are, and are returned as Python's.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from fastseq.video.columns import is_lazy

_OF_A_VIDEO = ("id", "path", "frames", "fps", "width", "height", "action")


def as_path(path: Any, name: str = "path") -> str:
    """The name of a file, as `str`."""
    named = isinstance(path, str | bytes | os.PathLike)
    if not named or (isinstance(path, bytes) and b"\0" in path):  # contents, no name
        raise TypeError(
            f"{name} must be the name of a file (str or os.PathLike), got {_kind(path)}; write "
            "data in memory to a file first"
        )
    return os.fsdecode(path)


def as_int(name: str, value: Any, least: int | None = None) -> int:
    """An integer, at least `least`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_shown(value)}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def as_number(name: str, value: Any) -> Any:
    """A real number, returned as the int, float or Fraction that it is."""
    if isinstance(value, np.number):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {_shown(value)}")
    return value


def as_range(name: str, value: Any, most: float = math.inf) -> tuple[float, float]:
    """(low, high) with 0 < low <= high <= `most`."""
    limits = "0 < low <= high" + (f" <= {most:g}" if most < math.inf else "")
    try:
        low, high = value
    except (TypeError, ValueError):
        kind = ValueError if isinstance(value, Iterable) else TypeError
        raise kind(f"{name} must be (low, high), {limits}, got {_shown(value)}") from None
    low, high = as_number(name, low), as_number(name, high)
    if not 0 < low <= high <= most:
        raise ValueError(f"{name} must be (low, high), {limits}, got {low}, {high}")
    return low, high


def as_size(size: Any) -> int:
    """Side in pixels of square frames."""
    if isinstance(size, (tuple, list, torch.Size, np.ndarray)) and np.ndim(size):
        raise ValueError(
            f"size is the side of a square, one integer; got {tuple(size)}. Frames of another "
            "shape: read_frames(size=(height, width))"
        )
    return as_int("size", size, 1)


def check_generator(generator: Any) -> None:
    if not isinstance(generator, np.random.Generator):
        seed = generator if isinstance(generator, (int, np.integer)) else "seed"
        raise TypeError(
            f"generator must be a numpy.random.Generator, got {_shown(generator)}; pass "
            f"numpy.random.default_rng({seed})"
        )


def check_frames(frames: Any) -> None:
    """uint8 (T, H, W, 3), T possibly 0."""
    if not isinstance(frames, torch.Tensor):
        fix = "; pass torch.from_numpy(frames)" if isinstance(frames, np.ndarray) else ""
        raise TypeError(f"frames must be a torch.Tensor, got {_kind(frames)}{fix}")
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if frames.ndim != 4 or frames.shape[3] != 3 or not frames.shape[1] * frames.shape[2]:
        raise ValueError(f"frames must be (T, H, W, 3), got {tuple(frames.shape)}")


def as_videos(videos: Any, needed: tuple[str, ...] = _OF_A_VIDEO) -> Sequence[Any]:
    """Results of `probe`, or objects with the needed attributes.

    A list, or the sequence itself if it has a method `column`, see `fastseq.video.columns`. Its
    videos are of one kind, so only the first one is checked.
    """
    expected = "VideoInfo from fastseq.video.probe"
    if isinstance(videos, (str, bytes, os.PathLike)) or not isinstance(videos, Iterable):
        one = all(hasattr(videos, name) for name in needed)
        fix = (
            "pass a list for a single video too" if one else "pass [probe(path) for path in paths]"
        )
        raise TypeError(f"videos must be a list of {expected}, got one {_kind(videos)}; {fix}")
    if is_lazy(videos):
        checked = [videos[0]] if len(videos) else []
    else:
        checked = videos = list(videos)
    for place, video in enumerate(checked):
        missing = [name for name in needed if not hasattr(video, name)]
        if missing:
            without = "" if len(missing) == len(needed) else f" without {', '.join(missing)}"
            raise TypeError(
                f"videos[{place}] must be {expected}, got {_shown(video)}{without}; pass "
                "[probe(path) for path in paths]"
            )
    return videos


def _kind(value: Any) -> str:
    return type(value).__name__


def _shown(value: Any) -> str:
    """Type and value, if the value is short."""
    text = repr(value)
    short = len(text) <= 80 and "\n" not in text and not text.startswith("<")
    return f"{_kind(value)} {text}" if short else _kind(value)
