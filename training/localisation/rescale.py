"""Frame features of a video of any length as a fixed number of steps."""

from __future__ import annotations

import numpy as np


def bin_means(values: np.ndarray, times: np.ndarray, duration: float, steps: int) -> np.ndarray:
    """The mean feature in each of equally long bins of a video.

    The features are interpolated linearly between the given times, and constant before the first
    and after the last one. Row i is the exact mean of this function over
    [i, i + 1) duration / steps. BSN and mmaction2 interpolate in the same way, but average three
    points of each bin, as their features are 16 frames apart.

    Args:
        values: (n, F), features of frames, n >= 1.
        times: float (n,), ascending, seconds of each feature from the video's start.
        duration: length of the video in seconds.
        steps: number of bins.

    Returns:
        float32 (steps, F).
    """
    edges = np.linspace(0.0, duration, steps + 1)
    points = np.union1d(np.clip(times, 0.0, duration), edges)
    after = np.clip(np.searchsorted(times, points, side="right"), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        at_points = np.repeat(values, len(points), axis=0).astype(np.float64)
    else:
        gap = times[after] - times[after - 1]
        share = np.clip((points - times[after - 1]) / gap, 0.0, 1.0)[:, None]
        at_points = values[after - 1] * (1.0 - share) + values[after] * share
    areas = np.diff(points)[:, None] * (at_points[:-1] + at_points[1:]) / 2
    first = np.searchsorted(points, edges[:-1])
    return (np.add.reduceat(areas, first, axis=0) * (steps / duration)).astype(np.float32)


def segment_means(features: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The mean feature of each segment, weighted by the overlap of each step with it.

    Args:
        features: (T, F), one row for each of T equally long steps of the video.
        segments: (n, 2), start and end as shares of the video's length. A segment without overlap
            has the feature of the step nearest to its start.

    Returns:
        float64 (n, F).
    """
    steps = len(features)
    scaled = np.asarray(segments, dtype=np.float64).reshape(-1, 2) * steps
    left = np.arange(steps)
    weights = np.minimum(scaled[:, 1:], left + 1) - np.maximum(scaled[:, :1], left)
    weights = np.maximum(weights, 0.0)
    empty = weights.sum(axis=1) <= 0
    nearest = np.clip(scaled[:, 0].astype(int), 0, steps - 1)
    weights[empty, nearest[empty]] = 1.0
    return weights / weights.sum(axis=1, keepdims=True) @ features
