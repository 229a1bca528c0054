"""Which frames of a video make the two views of a training example."""

from __future__ import annotations

import math

import numpy as np

from fastseq.video.arguments import as_int, as_number, as_range, check_generator

_STRATEGIES = ("random", "even")
_CROP_BASES = ("clip", "video", "span")


def sample_views(
    num_frames: int,
    T: int,
    generator: np.random.Generator,
    *,
    strategy: str = "random",
    crop_base: str = "clip",
    alpha: float = 1.5,
    beta: float = 0.2,
    span: tuple[float, float] = (0.3, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the frame indices of two views of a video of S = `num_frames` frames.

    Each view takes T frames inside its own temporal crop of C frames:

    - `crop_base="clip"` (CARL, section 3.2): C = ceil(r T), r ~ U(1, alpha), at most S.
    - `crop_base="span"`: C = round(f S), f ~ U(span), at least min(T, S).
    - `crop_base="video"` (the released Pouring, Penn Action and Kinetics settings): the crop always
      starts at frame 0 and has ceil(r S) frames, r ~ U(1, alpha), so it reaches past the end. The
      min(S, T) positions drawn from it that do are padding, 1 - 1/r of them on average. `beta` has
      no effect.

    In the first two, the crops share at least ceil(beta * the shorter C) frames: the second starts
    uniformly among all places where they do. A video shorter than T is taken whole and padded.

    Args:
        T: frames per view.
        strategy: "random": T frames of the crop without replacement, sorted. "even": evenly spaced.
        alpha: largest crop relative to T (or S for "video"), >= 1. Default 1.5 as in the paper.
        beta: overlap of the two crops, 0 to 1. Default 0.2 as in the paper.
        span: smallest and largest share of the video for `crop_base="span"`.
    Returns:
        frames: int64 (2, T), ascending within a view, padding at the end set to S - 1.
        valid: bool (2, T), False for padding.
    Raises:
        ValueError: an option out of its range.
    """
    check_generator(generator)
    num_frames, T = as_int("num_frames", num_frames), as_int("T", T)
    _validate(num_frames, T, strategy, crop_base, alpha, beta, span)
    count = min(num_frames, T)
    positions = np.full((2, T), num_frames, dtype=np.int64)
    if crop_base == "video":
        crops = [(0, math.ceil(generator.uniform(1.0, alpha) * num_frames)) for _ in range(2)]
    else:
        if crop_base == "clip":
            lengths = [math.ceil(generator.uniform(1.0, alpha) * T) for _ in range(2)]
        else:
            lengths = [max(count, round(generator.uniform(*span) * num_frames)) for _ in range(2)]
        crops = _overlapping(num_frames, [min(n, num_frames) for n in lengths], beta, generator)
    for view, (start, length) in enumerate(crops):
        if strategy == "random":
            chosen = np.sort(generator.permutation(length)[:count])
        else:
            chosen = np.round(np.linspace(0, length - 1, count)).astype(np.int64)
        positions[view, :count] = start + chosen
    return np.minimum(positions, num_frames - 1), positions < num_frames


def _overlapping(
    num_frames: int, lengths: list[int], beta: float, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """(start, length) of two crops of the video that share at least beta of the shorter one."""
    first, second = lengths
    start = int(generator.integers(0, num_frames - first + 1))
    low, high = 0, num_frames - second
    if beta > 0:
        shared = math.ceil(beta * min(first, second))
        low, high = max(low, start - second + shared), min(high, start + first - shared)
    return [(start, first), (int(generator.integers(low, high + 1)), second)]


def _validate(num_frames, T, strategy, crop_base, alpha, beta, span) -> None:
    if num_frames < 1 or T < 1:
        raise ValueError(f"num_frames and T must be at least 1, got {num_frames} and {T}")
    if strategy not in _STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(_STRATEGIES)}, got {strategy!r}")
    if crop_base not in _CROP_BASES:
        raise ValueError(f"crop_base must be one of {', '.join(_CROP_BASES)}, got {crop_base!r}")
    if not as_number("alpha", alpha) >= 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    if not 0 <= as_number("beta", beta) <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    as_range("span", span, 1.0)
