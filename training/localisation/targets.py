"""What BMN learns from the annotated segments of a video."""

from __future__ import annotations

import numpy as np

from training.localisation.metrics import temporal_iou

REGION = 3.0  # steps around a boundary, of the BMN repository


def boundary_targets(segments: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The start and the end curve.

    Step i stands for a segment that starts at i / T, or ends at (i + 1) / T. The value is the
    largest share of the region of length 1 / T around this time that lies within 1.5 / T of a
    segment's start (end).

    Args:
        segments: (n, 2), n >= 1, start and end as shares of the video's length.
        steps: T.

    Returns:
        float32 (T,) and (T,), values in [0, 1].
    """
    scaled = np.asarray(segments, dtype=np.float64) * steps
    curves = []
    for offset, bounds in ((0, scaled[:, 0]), (1, scaled[:, 1])):
        times = np.arange(steps)[:, None] + offset
        common = np.minimum(times + 0.5, bounds + REGION / 2)
        common = common - np.maximum(times - 0.5, bounds - REGION / 2)
        curves.append(np.clip(common, 0.0, 1.0).max(axis=1).astype(np.float32))
    return curves[0], curves[1]


def iou_map(segments: np.ndarray, steps: int) -> np.ndarray:
    """The largest tIoU of each proposal with a segment.

    Entry (d, t) is the proposal from t / T to (t + d + 1) / T; 0 where it ends after the video.

    Args and shapes as for `boundary_targets`. Returns float32 (T, T), duration by start.
    """
    d, t = np.nonzero(valid_entries(steps))
    proposals = np.stack([t, t + d + 1], axis=1) / steps
    out = np.zeros((steps, steps), dtype=np.float32)
    out[d, t] = temporal_iou(proposals, segments).max(axis=1)
    return out


def valid_entries(steps: int) -> np.ndarray:
    """bool (T, T): whether the proposal of an entry (d, t) ends within the video."""
    d, t = np.indices((steps, steps))
    return t + d < steps
