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


def _lrprop(clips: Clips, **options: Any) -> Tensor:
    return fastseq.lrprop_loss(clips.h[:, 0], clips.h[:, 1], **_lengths(clips), **options)


def _lengths(clips: Clips) -> dict[str, Any]:
    return {"lengths_x": clips.lengths(0), "lengths_y": clips.lengths(1)}


ALIGNMENT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "soft_dtw": _soft_dtw,
    "lav": _lav,
    "contrastive_idm": _contrastive_idm,
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
    "lrprop": _frames_of_pairs,
}
