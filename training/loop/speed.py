"""SpeedNet: whether a clip plays at normal speed or about twice as fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.loop.clips import Clips
from training.models.heads import apply_head

NORMAL, FAST = 0, 1  # the two clips of an item with data.sampling=speeds, and their classes


def speed(clips: Clips, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the speed of each clip (SpeedNet, Benaim et al. 2020).

    ``-mean log p(class of the clip)`` with ``p(fast) = sigmoid(head(mean of h over the clip))``,
    the mean over all clips that have a real frame. The two clips of an item are the same part of a
    video at both speeds, the paper's same-batch training (section 3.1 of arXiv 2004.06130).

    As in the paper (section 3.2) the features of a clip are averaged over time before a linear
    layer. The paper takes the maximum over the places of a frame before that; here the backbone
    pools (``model.pool``). Its backbone is S3D-G, which convolves over time; here the Transformer
    compares the frames of a clip. It scales its inputs to a random size of 64 to 336 px; here each
    clip has a random crop (``augmentation.scale``).

    Args:
        clips: ``h`` (N, 2, T, E); clip 0 of each item plays at normal speed, clip 1 is fast
            (`fastseq.video.sample_views` with ``strategy="speeds"``).
        head: mean embeddings (..., E) to one logit (..., 1).
    Returns:
        The loss and the accuracy, scalars; both 0 if no frame is real.
    """
    valid = clips.valid
    if valid is None:
        valid = torch.ones(clips.h.shape[:3], dtype=torch.bool, device=clips.h.device)
    lengths = valid.sum(-1)
    h = clips.h.to(torch.promote_types(clips.h.dtype, torch.float32))
    means = h.masked_fill(~valid[..., None], 0).sum(2) / lengths.clamp(min=1)[..., None]
    logits = apply_head(head, means).squeeze(-1)
    classes = logits.new_tensor([NORMAL, FAST]).expand_as(logits)
    values = F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
    correct = (logits.detach() > 0) == (classes == FAST)
    real, count = lengths > 0, (lengths > 0).sum().clamp(min=1)
    return (values * real).sum() / count, (correct & real).sum(dtype=values.dtype) / count


def speed_count(batch: Mapping[str, Any], _: Mapping[str, Any]) -> Tensor:
    """Number of clips of a batch that have a real frame."""
    return batch["valid"].any(-1).sum()
