"""Losses that align the two clips of an item, which are videos of one action."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastseq
from training.loop.clips import Clips, embeddings, pair, times


def _soft_dtw(clips: Clips, *, normalize: bool, **options: Any) -> Tensor:
    """Divided by the number of frames of a clip, as in LAV's released code."""
    x, y = pair(clips, normalize)
    values = fastseq.soft_dtw(
        x,
        y,
        lengths_x=clips.lengths(0),
        lengths_y=clips.lengths(1),
        reduction="mean",
        **options,
    )
    return values / x.shape[1]


def _lav(clips: Clips, *, normalize: bool, **options: Any) -> Tensor:
    return fastseq.lav_loss(*pair(clips, normalize), **times(clips), **options)


def _contrastive_idm(
    clips: Clips, *, normalize: bool, window: float, form: str, weights: str, **options: Any
) -> Tensor:
    """Sum of both clips' losses divided by the frames of a clip: LAV is _soft_dtw + alpha * this.

    ``form`` is called ``kind`` in fastseq; recipes keep the earlier name. With ``weights="code"``
    times and window are shares of the video, as in LAV's released code.
    """
    h = embeddings(clips, normalize)
    total = torch.zeros((), device=h.device)
    for clip in (0, 1):
        times, within = clips.steps[:, clip], window
        if weights == "code":
            duration = clips.num_frames[:, clip].float()
            times, within = times.float() / duration[:, None], window / duration
        total = total + fastseq.contrastive_idm(
            h[:, clip],
            times,
            window=within,
            kind=form,
            weights=weights,
            lengths=clips.lengths(clip),
            reduction="sum",
            **options,
        )
    return total / (h.shape[0] * h.shape[2])


def _gta(clips: Clips, **options: Any) -> Tensor:
    return fastseq.gta_loss(clips.h[:, 0], clips.h[:, 1], **_lengths(clips), **options)


def _ae2(clips: Clips, **options: Any) -> Tensor:
    return fastseq.ae2_loss(clips.h[:, 0], clips.h[:, 1], **_lengths(clips), **options)


def _vava(clips: Clips, *, normalize: bool, **options: Any) -> Tensor:
    return fastseq.vava_loss(*pair(clips, normalize), **_lengths(clips), **options)


def _drop_dtw(clips: Clips, *, keep: float, temperature: float, **options: Any) -> Tensor:
    """Frames of either clip may be dropped, in turn; divided by the number of frames of a clip."""
    h = embeddings(clips, True)
    if clips.valid is not None:  # padding may contain NaN
        h = h.masked_fill(~clips.valid[..., None], 0)
    total = torch.zeros((), device=h.device)
    for one, other in ((0, 1), (1, 0)):
        scores = h[:, one] @ h[:, other].mT
        real = None
        if clips.valid is not None:
            real = clips.valid[:, one, :, None] & clips.valid[:, other, None]
        cost, drop_cost = drop_costs(scores, real, keep, temperature)
        total = total + fastseq.drop_dtw(
            cost,
            drop_cost,
            lengths_x=clips.lengths(one),
            lengths_y=clips.lengths(other),
            exclusive=False,
            reduction="mean",
            **options,
        )
    return total / (2 * h.shape[2])


def drop_costs(
    scores: Tensor, real: Tensor | None, keep: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """Costs of matches (N, T, S) and of drops (N, S), as in Drop-DTW's released code.

    One more row, of the score that the share ``keep`` of all scores reaches, is the choice to drop
    a column; costs are -log softmax over the rows.
    """
    listed = scores if real is None else scores.masked_fill(~real, -torch.inf)
    count = torch.full(scores.shape[:1], scores[0].numel(), device=scores.device)
    count = count if real is None else real.sum((1, 2))
    place = ((count * keep).long() - 1).clamp(min=0)
    ordered = listed.detach().flatten(1).sort(1, descending=True).values
    baseline = ordered.gather(1, place[:, None])[:, :, None].expand(-1, 1, scores.shape[2])
    # A pair without frames has no finite score; any number will do.
    baseline = baseline.masked_fill(baseline == -torch.inf, 0)
    log_p = (torch.cat([listed, baseline], 1) / temperature).log_softmax(1)
    return -log_p[:, :-1], -log_p[:, -1]


def _lrprop(clips: Clips, **options: Any) -> Tensor:
    return fastseq.lrprop_loss(clips.h[:, 0], clips.h[:, 1], **_lengths(clips), **options)


def _lengths(clips: Clips) -> dict[str, Any]:
    return {"lengths_x": clips.lengths(0), "lengths_y": clips.lengths(1)}


ALIGNMENT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "soft_dtw": _soft_dtw,
    "lav": _lav,
    "contrastive_idm": _contrastive_idm,
    "gta": _gta,
    "ae2": _ae2,
    "vava": _vava,
    "drop_dtw": _drop_dtw,
    "lrprop": _lrprop,
}


def _pairs(valid: Tensor, *_: Any) -> Tensor:
    return valid.any(2).all(1).sum()


def _frames_of_pairs(valid: Tensor, *_: Any) -> Tensor:
    return valid[valid.any(2).all(1)].sum()


# The denominators of their means, see `Objective.counts`.
ALIGNMENT_COUNTS: dict[str, Callable[..., Tensor | float]] = {
    "soft_dtw": _pairs,
    "lav": _pairs,
    "contrastive_idm": lambda valid, *_: len(valid) * valid.shape[2],
    "gta": _pairs,
    "ae2": _pairs,
    "vava": _pairs,
    "drop_dtw": _pairs,
    "lrprop": _frames_of_pairs,
}
