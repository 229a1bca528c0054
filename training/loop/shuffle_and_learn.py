"""Shuffle and Learn: whether the embeddings of three frames of a clip are in temporal order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.loop.clips import Clips
from training.models.heads import apply_head

DRAWN = 5  # frames of a clip from which a triple is made


def sal(
    clips: Clips, head: nn.Module, *, triples: int, shuffle_share: float
) -> tuple[Tensor, Tensor]:
    """Tuple verification (Misra et al. 2016, arXiv 1603.08561) as released with TCC.

    The mean of the cross-entropy of ``head([h_1, h_2, h_3])`` over ``triples`` triples of each
    clip. `draw_triples` defines the triples and their classes. A clip with fewer than 5 real frames
    has none. The paper chooses frames with much motion; the released code draws them uniformly.

    Args:
        clips: ``h`` (N, 2, T, E); each of the 2N clips has its own triples.
        head: concatenated embeddings (..., 3E) to two logits.
        triples: number of triples of a clip; 8 in the released code.
        shuffle_share: share of the shuffled triples, 0 to 1; 0.75 in paper and released code.
    Returns:
        The loss and the accuracy, scalars; both 0 if no clip has 5 real frames.
    """
    h = clips.h.flatten(0, 1)
    valid = None if clips.valid is None else clips.valid.flatten(0, 1)
    if valid is not None:
        enough = valid.sum(-1) >= DRAWN
        h, valid = h[enough], valid[enough]
    elif h.shape[1] < DRAWN:
        h = h[:0]
    places, classes = draw_triples(len(h), h.shape[1], valid, triples, shuffle_share)
    places, classes = places.to(h.device), classes.to(h.device)
    rows = torch.arange(len(h), device=h.device)[:, None, None]
    logits = apply_head(head, h[rows, places].flatten(2)).flatten(0, 1)
    classes, count = classes.flatten(), max(classes.numel(), 1)
    correct = (logits.detach().argmax(-1) == classes).sum(dtype=logits.dtype)
    return F.cross_entropy(logits, classes, reduction="sum") / count, correct / count


def sal_count(batch: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor:
    """Number of triples of the clips of a batch."""
    return (batch["valid"].sum(-1) >= DRAWN).sum() * options["triples"]


def draw_triples(
    clips: int, frames: int, valid: Tensor | None, triples: int, shuffle_share: float
) -> tuple[Tensor, Tensor]:
    """Places of the frames of each triple, and its class, from torch's CPU generator.

    Each triple is made from five different real frames of a clip, a < b < c < d < e, drawn
    uniformly, and with probability 1/2 reversed (e, d, c, b, a):

    - class 0, in order: (b, c, d). Backwards counts as in order.
    - class 1, shuffled: (b, a, d) or (b, e, d), each with probability 1/2.

    These are the tuples and classes of TCC's released code (tcc/algos/sal.py), except that it
    reverses all triples of a step together, and draws the shuffled ones among all triples of the
    batch; here int(shuffle_share * triples) of each clip are shuffled, so a clip's loss does not
    depend on the other clips.

    Args:
        clips: M, number of clips.
        frames: T, frames of a clip, padding included; at least 5 unless M is 0.
        valid: bool (M, T), at least 5 real frames in each clip; None: all frames are real.
    Returns:
        places: int64 (M, triples, 3), places within the clip. classes: int64 (M, triples).
    """
    keys = torch.rand(clips, triples, max(frames, DRAWN))
    if valid is not None:
        keys[..., :frames].masked_fill_(~valid.cpu()[:, None], 2.0)
    five = keys.argsort(-1)[..., :DRAWN].sort(-1).values
    reverse = torch.rand(clips, triples, 1) < 0.5
    five = torch.where(reverse, five.flip(-1), five)
    a, b, c, d, e = five.unbind(-1)
    outside = torch.where(torch.rand(clips, triples) < 0.5, a, e)
    # The triples of a clip are drawn alike, so it does not matter which of them are shuffled.
    shuffled = torch.arange(triples) < int(shuffle_share * triples)
    middle = torch.where(shuffled, outside, c)
    return torch.stack([b, middle, d], -1), shuffled.long().expand(clips, triples)
