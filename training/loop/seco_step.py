"""SeCo's optimizer step: a frame, its second view, and two frames of the other half of its video.

The optimizer, the momentum encoder and the queue work as in `VCLRStep`.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fastseq
from fastseq.video.tuples import anchors
from training.loop.step import ItemFrames, words_of_clips
from training.loop.vclr_step import VCLRStep, loss_options
from training.models.seco import SeCoModel

AGAIN = 4  # place of the second view of the query in a tuple item of two segments


def places_of_halves(steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the clips that SeCo uses among the five of a `SegmentTuples` item of two segments.

    The query is the anchor. Keys are its second view and the two clips of the other half, in the
    order of time. The positive tuple's clip from the query's half is not used.

    Args:
        steps: (N, 5, L), as in a batch.

    Returns:
        The query's places (N, 1), the keys' (N, 3), and labels (N,): 0 if the query is before the
        last two keys, 1 if it is after them.
    """
    starts = steps[..., 0]
    query = anchors(steps)[:, None]
    after = starts.gather(1, query) > starts.gather(1, 1 - query)
    k = starts[:, 2:AGAIN]
    second = 2 + torch.where(after, k.argmin(1, keepdim=True), k.argmax(1, keepdim=True))
    two = torch.cat([1 - query, second], 1)
    two = two.gather(1, starts.gather(1, two).argsort(1))
    return query, torch.cat([torch.full_like(query, AGAIN), two], 1), after[:, 0].long()


def order_validation(
    q: Tensor, k: Tensor, labels: Tensor, classifier: Callable[[Tensor], Tensor]
) -> Tensor:
    """Cross-entropy of ``classifier([q, k_1, k_2])``, all three divided by their norms.

    Args:
        q: (N, D), the query's head.
        k: (N, 2, D), two frames of the other half in the order of time; no gradient in SeCo.
        labels: (N,), 0 if the query is before both, 1 if it is after both.
        classifier: function from (N, 3 D) to logits (N, 2).
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    triple = torch.cat([q[:, None].to(wide), k.to(wide)], 1)
    logits = classifier(F.normalize(triple, dim=-1).flatten(1))
    return F.cross_entropy(logits.to(wide), labels)


class _SeCoLosses(nn.Module):
    """Clips of a batch and keys to the losses: the module DistributedDataParallel wraps."""

    def __init__(self, model: SeCoModel, cfg: DictConfig) -> None:
        super().__init__()
        self.encoder, self.order = model.encoder, model.order
        self.options = loss_options(cfg)

    def forward(
        self,
        clips: Tensor,
        queries: Tensor,
        keys: dict[str, Tensor],
        queues: dict[str, Tensor],
        labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The losses, one for each head, and the features of the ``queries`` (N, 1, F)."""
        features = self.encoder.clip_features(clips, queries)
        losses = []
        for name, head in self.encoder.heads.items():
            q, k = head(features[:, 0]), keys[name]
            if name == "inter":
                loss = fastseq.vclr_loss(inter=(q, k, queues[name]), **self.options)
            elif name == "intra":
                loss = fastseq.vclr_loss(intra=(q, k[:, 0], k[:, 1:]), **self.options)
            else:
                loss = order_validation(q, k, labels, self.order)
            losses.append(loss)
        return torch.stack(losses), features


class SeCoStep(VCLRStep):
    """Steps of a `SeCoModel` on batches of `SegmentTuples` with two segments.

    The query is a clip of one half of the video. Its keys are a second augmentation of it, and two
    clips of the other half. "inter": all three keys are positives, against the queue. "intra": the
    second augmentation is the positive, the other two are negatives. "order": whether the query is
    before or after the other two.

    All keys pass through the momentum encoder together. (The released code passes each kind of key
    separately, so batch norms normalise each kind by its own statistics.)
    """

    section = "loss.seco"
    terms = _SeCoLosses

    @staticmethod
    def check(cfg: DictConfig, device: torch.device, dtype: torch.dtype) -> None:
        z = torch.ones(1, 3, 4, device=device, dtype=dtype)
        options = loss_options(cfg.loss.seco)
        fastseq.vclr_loss(
            inter=(z[:, 0], z, z[0].float()), intra=(z[:, 0], z[:, 0], z[:, 1:]), **options
        )

    @staticmethod
    def describe(cfg: DictConfig) -> ItemFrames:
        """The query is kept for backward; keys are not, and one clip of the item is not used."""
        length = cfg.data.tuple_frames
        clips = AGAIN + 1
        return ItemFrames(clips * length, length, words_of_clips(clips, length))

    def examples(self, items: int) -> Iterator[dict[str, Any]]:
        """From two items on, because a batch norm cannot normalise a single query of one pixel."""
        return islice(super().examples(items), int(items > 1), None)

    @staticmethod
    def _numbers(steps: Tensor) -> tuple[Tensor, ...]:
        query, keys, labels = places_of_halves(steps)
        first = steps.shape[1] * torch.arange(len(steps))[:, None]
        return first + query, first + keys, labels

    @torch.no_grad()
    def _keys(self, clips: Tensor, others: Tensor) -> dict[str, Tensor]:
        """The momentum encoder's heads on the keys' clips ``others`` (N, 3).

        "inter", "intra": (N, 3, D), first the query's second view; "order": (N, 2, D).
        """
        features = self._features(clips, others)
        return {
            name: head(features[:, 1:] if name == "order" else features)
            for name, head in self.model.momentum.module.heads.items()
        }
