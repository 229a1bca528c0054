"""Which frames of a video make a clip, and which ones give a frame its context."""

import numpy as np

from fastseq.video.arguments import as_int, check_generator

VIEW_SAMPLING = ("random", "even")  # within a crop: fastseq.video.sample_views
CLIP_SAMPLING = ("segment", "offset_uniform", "anchors")


def sample_clip(
    num_frames: int,
    T: int,
    generator: np.random.Generator,
    *,
    strategy: str,
    positive_window: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw T frames from a whole video of ``num_frames`` frames.

    - "segment" (LAV): the video is cut into T chunks of equal length, give or take a frame; one
      uniformly drawn frame of each. (LAV's released code fills the list up from the start where T
      does not divide the length, so that its last frames may be early ones; this does not.)
    - "offset_uniform" (TCC): T frames without replacement, sorted. (TCC's released code never draws
      frame 0.)
    - "anchors" (TCN): T / 2 frames, drawn like that, are anchors; the positive of each is 1 to
      ``positive_window`` frames earlier, at least 0. They alternate: anchor, positive, anchor, ...

    A video with fewer frames than are to be drawn is taken whole and padded.

    Returns:
        frames: int64 (T,), padding at the end set to num_frames - 1.
        valid: bool (T,), False for padding.
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
            raise ValueError(f"sampling 'anchors' takes pairs of frames, T = {T} is odd")
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

    Before the start of the video stands its first frame, as in LAV and TCC.
    """
    num_context, stride = as_int("num_context", num_context, 1), as_int("stride", stride, 0)
    back = stride * np.arange(num_context - 1, -1, -1)
    return np.maximum(frames[..., None] - back, 0)
