"""BMN's loss: boundaries, and completeness and presence of an action in each proposal."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

REGRESSION_WEIGHT = 10.0  # mmaction2's BMNLoss; the other two terms have weight 1
_HIGH, _LOW = 0.7, 0.3  # tIoU of the balanced parts of the regression
_POSITIVE_BOUNDARY, _POSITIVE_PROPOSAL = 0.5, 0.9
_RATIO = (1.05, 21.0)


def bmn_loss(
    start: Tensor, end: Tensor, maps: Tensor, targets: tuple[Tensor, Tensor, Tensor], valid: Tensor
) -> Tensor:
    """L = L_start + L_end + 10 L_regression + L_classification, of Lin et al. 2019 (1907.09702).

    Boundary curves and classification: cross-entropy in which positives and negatives have equal
    weight in total, positives where the target exceeds 0.5 (classification: 0.9). The ratio of all
    entries to the positives is limited to 1.05 to 21, as in mmaction2.

    Regression: half the weighted mean square of sigmoid(map) - tIoU. Entries with tIoU above 0.7
    have weight 1; those in (0.3, 0.7] and in (0, 0.3] have the weight with which each group counts
    as much as the first, at most 1. mmaction2 draws that share of a group at random: the weights
    are the expectation of its draw.

    Args:
        start, end: (N, T) logits.
        maps: (N, 2, T, T) logits, regression first; duration by start.
        targets: start (N, T), end (N, T), tIoU (N, T, T) in [0, 1].
        valid: bool (T, T), the entries of proposals that end within the video.

    Returns:
        Scalar of the logits' dtype.
    """
    start_target, end_target, iou = targets
    regression, presence = maps[:, 0][:, valid], maps[:, 1][:, valid]
    iou = iou[:, valid].to(maps.dtype)
    return (
        balanced_cross_entropy(start, start_target > _POSITIVE_BOUNDARY)
        + balanced_cross_entropy(end, end_target > _POSITIVE_BOUNDARY)
        + REGRESSION_WEIGHT * _regression(regression.sigmoid(), iou)
        + balanced_cross_entropy(presence, iou > _POSITIVE_PROPOSAL)
    )


def balanced_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """-mean(r / 2 p log s + r / (2 (r - 1)) (1 - p) log(1 - s)) with s = sigmoid(logits).

    r is the number of entries over that of the positives p, limited to 1.05 to 21.
    """
    ratio = positive.numel() / positive.sum().clamp(min=1).to(logits.dtype)
    ratio = ratio.clamp(*_RATIO)
    hits = F.logsigmoid(logits) * positive * (ratio / 2)
    misses = F.logsigmoid(-logits) * ~positive * (ratio / (2 * (ratio - 1)))
    return -(hits + misses).mean()


def _regression(score: Tensor, iou: Tensor) -> Tensor:
    high = iou > _HIGH
    middle, low = (iou > _LOW) & ~high, (iou > 0) & (iou <= _LOW)
    weights = high.to(score.dtype)
    for group in (middle, low):
        share = high.sum().to(score.dtype) / group.sum().clamp(min=1)
        weights = weights + group * share.clamp(max=1.0)
    return 0.5 * (weights * (score - iou).square()).sum() / weights.sum().clamp(min=1.0)
