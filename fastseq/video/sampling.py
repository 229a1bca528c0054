"""Which frames of a video form two views or a clip, and which frames are a frame's context."""

from __future__ import annotations

import math

import numpy as np

from fastseq.video.arguments import as_int, as_number, as_range, check_generator

VIEW_SAMPLING = ("random", "even", "speeds")  # of `sample_views`
CLIP_SAMPLING = ("segment", "offset_uniform", "anchors")  # of `sample_clip`
_CROP_BASES = ("clip", "video", "span")
_SPEEDS = ((1.0, 1.2), (1.7, 2.2))  # SpeedNet's ranges of the normal and of the fast view


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

    Each view has T frames inside its own temporal crop of C frames:

    - `crop_base="clip"` (CARL, section 3.2): C = ceil(r T), r ~ U(1, alpha), at most S.
    - `crop_base="span"`: C = round(f S), f ~ U(span), at least min(T, S).
    - `crop_base="video"` (the released Pouring, Penn Action and Kinetics settings): the crop always
      starts at frame 0 and has ceil(r S) frames, r ~ U(1, alpha), so it reaches past the end. Of
      the min(S, T) positions drawn from it, those past the end are padding, 1 - 1/r of them on
      average. `beta` has no effect.

    In the first two, the crops share at least ceil(beta * the shorter C) frames: the second starts
    uniformly among all places where they do. A video shorter than T is used whole and padded.

    With `strategy="speeds"` (SpeedNet, arXiv 2004.06130, section 3.1) the crop's options have no
    effect: the first view plays at normal speed, the second about twice as fast. Both come from one
    segment of min(S, 3 T) consecutive frames. Each view keeps the segment's first frame, and every
    other one with probability 1 / f, f ~ U(1, 1.2) in the first view and U(1.7, 2.2) in the second.
    It then has n consecutive ones of the kept frames, from a uniform place (ours: so both views are
    centred in the segment on average). n is T, or less for both if one view has kept fewer: the
    number of real frames does not reveal the speed.

    Args:
        num_frames: S, number of frames of the video.
        T: frames per view.
        generator: the only source of randomness.
        strategy: "random": T frames of the crop without replacement, sorted. "even": evenly spaced.
            "speeds": the same part of the video at two speeds, as above.
        alpha: largest crop relative to T (or S for "video"), >= 1. Default 1.5 as in the paper.
        beta: overlap of the two crops, 0 to 1. Default 0.2 as in the paper.
        span: smallest and largest fraction of the video for `crop_base="span"`.
    Returns:
        frames: int64 (2, T), ascending within a view, padding at the end set to S - 1.
        valid: bool (2, T), False for padding.
    Raises:
        TypeError: an argument of another type. ValueError: an option out of its range.

    Example:
        >>> frames, valid = sample_views(300, 80, np.random.default_rng(0))
        >>> frames.shape, bool(valid.all())
        ((2, 80), True)
    """
    check_generator(generator)
    num_frames, T = as_int("num_frames", num_frames), as_int("T", T)
    _check_views(num_frames, T, strategy, crop_base, alpha, beta, span)
    if strategy == "speeds":
        return _two_speeds(num_frames, T, generator)
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


def _two_speeds(
    num_frames: int, T: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and validity (2, T) of a view at normal speed and of one about twice as fast."""
    length = min(num_frames, 3 * T)
    start = int(generator.integers(0, num_frames - length + 1))
    kept = []
    for low, high in _SPEEDS:
        chosen = generator.random(length) < 1 / generator.uniform(low, high)
        chosen[0] = True
        kept.append(start + np.flatnonzero(chosen))
    count = min(T, *map(len, kept))
    frames = np.full((2, T), num_frames - 1, dtype=np.int64)
    for view, places in enumerate(kept):
        first = int(generator.integers(0, len(places) - count + 1))
        frames[view, :count] = places[first : first + count]
    return frames, np.tile(np.arange(T) < count, (2, 1))


def _check_views(num_frames, T, strategy, crop_base, alpha, beta, span) -> None:
    if num_frames < 1 or T < 1:
        raise ValueError(f"num_frames and T must be at least 1, got {num_frames} and {T}")
    if strategy not in VIEW_SAMPLING:
        raise ValueError(f"strategy must be one of {', '.join(VIEW_SAMPLING)}, got {strategy!r}")
    if crop_base not in _CROP_BASES:
        raise ValueError(f"crop_base must be one of {', '.join(_CROP_BASES)}, got {crop_base!r}")
    if not as_number("alpha", alpha) >= 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    if not 0 <= as_number("beta", beta) <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    as_range("span", span, 1.0)


def sample_clip(
    num_frames: int,
    T: int,
    generator: np.random.Generator,
    *,
    strategy: str,
    positive_window: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw T frames from a whole video of ``num_frames`` frames.

    - "segment" (LAV): the video is cut into T chunks, whose lengths differ by at most one frame;
      one frame is drawn uniformly from each. (If T does not divide the length, LAV's released code
      fills the list up from the start, so that its last frames may be early ones; this function
      does not.)
    - "offset_uniform" (TCC): T frames without replacement, sorted. (TCC's released code never draws
      frame 0.)
    - "anchors" (TCN): T / 2 frames, drawn like that, are anchors; the positive of each is 1 to
      ``positive_window`` frames earlier, at least 0. They alternate: anchor, positive, anchor, ...

    A video with fewer frames than are to be drawn is used whole and padded.

    Args:
        num_frames: number of frames of the video.
        T: number of frames to draw; even for "anchors".
        generator: the only source of randomness.
        strategy: one of the above.
        positive_window: largest distance of a positive from its anchor, in frames. Default 5: the
            released code.
    Returns:
        frames: int64 (T,), padding at the end set to num_frames - 1.
        valid: bool (T,), False for padding.
    Raises:
        TypeError: an argument of another type. ValueError: an option out of its range.

    Example:
        >>> frames, valid = sample_clip(300, 20, np.random.default_rng(0), strategy="segment")
        >>> [0 <= frame - 15 * k < 15 for k, frame in enumerate(frames)].count(True)
        20
    """
    check_generator(generator)
    num_frames, T = as_int("num_frames", num_frames), as_int("T", T)
    positive_window = as_int("positive_window", positive_window, 1)
    if strategy not in CLIP_SAMPLING:
        raise ValueError(f"sampling must be one of {CLIP_SAMPLING}, got {strategy!r}")
    if num_frames < 1 or T < 1:
        raise ValueError(f"expected at least one frame, got a video of {num_frames} and T = {T}")
    if strategy == "anchors":
        if T % 2:
            raise ValueError(f"sampling 'anchors' needs pairs of frames, but T = {T} is odd")
        anchors, valid = _uniform(num_frames, T // 2, generator)
        earlier = generator.integers(1, positive_window + 1, T // 2)
        pairs = np.stack([anchors, np.maximum(anchors - earlier, 0)], axis=1)
        return pairs.reshape(-1), valid.repeat(2)
    if strategy == "segment" and num_frames >= T:
        edges = np.arange(T + 1) * num_frames // T
        return generator.integers(edges[:-1], edges[1:]), np.ones(T, dtype=bool)
    return _uniform(num_frames, T, generator)


def _uniform(
    num_frames: int, T: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    count = min(num_frames, T)
    frames = np.full(T, num_frames - 1, dtype=np.int64)
    frames[:count] = np.sort(generator.permutation(num_frames)[:count])
    return frames, np.arange(T) < count


def context_frames(frames: np.ndarray, num_context: int, stride: int) -> np.ndarray:
    """Frames (...) to (..., num_context): past ones ``stride`` apart, oldest first, then itself.

    Before the start of the video its first frame is repeated, as in LAV and TCC.

    Example:
        >>> context_frames(np.array([2, 30]), num_context=2, stride=15).tolist()
        [[0, 2], [15, 30]]
    """
    num_context, stride = as_int("num_context", num_context, 1), as_int("stride", stride, 0)
    back = stride * np.arange(num_context - 1, -1, -1)
    return np.maximum(frames[..., None] - back, 0)
