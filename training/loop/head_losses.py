"""Losses that train a head on top of the embeddings: `training.models.heads` builds the heads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from training.loop.clips import Clips


@dataclass(frozen=True)
class HeadLoss:
    """A loss with a head, and how it is averaged.

    value: function of (clips, head, options of the recipe) that returns the mean loss and the
    accuracy, each a mean over the counted predictions of these clips. count: function of a batch of
    the loader and the options that returns the number of counted predictions. accuracy: the name of
    the accuracy in log.jsonl.
    """

    value: Callable[..., tuple[Tensor, Tensor]]
    count: Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor | float]
    accuracy: str


def apply_head(head: nn.Module, h: Tensor) -> Tensor:
    """``head(h)`` in the precision of the head's parameters, whatever that of h."""
    return head(h.to(next(head.parameters()).dtype))


def classification(
    clips: Clips, head: nn.Module, *, label_smoothing: float = 0.0, **_: Any
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each labelled real frame's class, averaged over these frames.

    With C classes and smoothing s, the target of class y is 1 - s + s / C and that of every other
    class s / C. Frames labelled -1 and padded frames contribute nothing; without any other frame
    the value is 0. CARL_code's ``classification`` averages in the same way.
    """
    labels = clips.labels
    if clips.valid is not None:
        labels = labels.masked_fill(~clips.valid, -1)
    logits = apply_head(head, clips.h).flatten(0, -2)
    labels = labels.flatten()
    total = F.cross_entropy(
        logits, labels, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    count = (labels >= 0).sum().clamp(min=1)
    correct = (logits.detach().argmax(-1) == labels).sum(dtype=logits.dtype)
    return total / count, correct / count


def _labelled(batch: Mapping[str, Any], _: Mapping[str, Any]) -> Tensor:
    return ((batch["labels"] >= 0) & batch["valid"]).sum()


HEAD_LOSSES: dict[str, HeadLoss] = {
    "classification": HeadLoss(classification, _labelled, "accuracy"),
}
# Losses that need the frames' classes in a batch, see `training.loop.labels`.
NEEDS_LABELS = ("classification",)
