"""The losses that a recipe combines, each with its weight, on the two clips of every item."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import fastseq
from training.loop.alignment_losses import ALIGNMENT_COUNTS, ALIGNMENT_LOSSES
from training.loop.clips import Clips, embeddings, pair, times
from training.loop.head_losses import HEAD_LOSSES, NEEDS_LABELS
from training.recipe.losses import loss_terms
from training.support.distributed import world_size
from training.support.time_split import TimeSplit


class Objective:
    """Sum of weight times loss over the losses of a recipe that have a weight.

    SCL and its baseline compare z = g(h), as in CARL; the losses of `HEAD_LOSSES` apply their head
    to h; the other losses compare h.

    Args:
        cfg: the recipe's ``loss`` section.
        heads: loss -> its head, of `training.models.heads.build_heads`; None if no loss has one.
        split: the part of every clip that this rank has; None: whole clips. With it, SCL compares
            the frames of all ranks of its group, and classification has this rank's frames.

    Attributes:
        terms: (name, weight, options) of each loss.
        names: the names of the values that a call returns: the losses, then the accuracies.
    """

    def __init__(
        self,
        cfg: Any,
        heads: Mapping[str, nn.Module] | None = None,
        split: TimeSplit | None = None,
    ) -> None:
        self.terms, self.split = loss_terms(cfg), split
        self.heads = {} if heads is None else heads
        names = [name for name, *_ in self.terms]
        self.needs_projection = any(name in ("scl", "nearest") for name in names)
        self.needs_labels = any(name in NEEDS_LABELS for name in names)
        accuracies = [HEAD_LOSSES[name].accuracy for name in names if name in HEAD_LOSSES]
        self.names = [*names, *accuracies]

    def __call__(
        self, clips: Clips, shares: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the values of `names`, losses before their weight.

        ``shares``: factor of each of these values if the clips are part of a larger batch.
        """
        shares = [1.0] * len(self.names) if shares is None else shares
        factor = dict(zip(self.names, shares, strict=True))
        values: dict[str, Tensor] = {}
        accuracies: dict[str, Tensor] = {}
        for name, _, options in self.terms:
            if name in HEAD_LOSSES:
                loss = HEAD_LOSSES[name]
                value, accuracy = loss.value(clips, self.heads[name], **options)
                accuracies[loss.accuracy] = factor[loss.accuracy] * accuracy
            else:
                across = self._across(name, options)
                shared = {} if across is None else {"group": across.group, "split": across.split}
                value = _LOSSES[name](clips, **options, **shared)
            values[name] = factor[name] * value
        return sum(weight * values[name] for name, weight, _ in self.terms), values | accuracies

    def counts(self, batch: Mapping[str, Any]) -> list[float]:
        """Denominator of the mean of each loss for the clips of a batch, see `ClipLoader`.

        With a split, the sum over the ranks of a group is that of the whole clips.
        """
        counts = [
            float(HEAD_LOSSES[name].count(batch, options))
            if name in HEAD_LOSSES
            else float(_COUNTS[name](batch["valid"], batch["actions"], options))
            for name, _, options in self.terms
        ]
        if self.split is not None and self.split.part:
            for i, (_, _, options) in enumerate(self.terms):
                if options.get("reduction") == "paper":  # of clips, which part 0 counts
                    counts[i] = 0.0
        return counts

    def shares(self, mine: Tensor, everyone: Tensor, together: Tensor | None = None) -> Tensor:
        """The factor of each value (`names`) of this rank in the mean over a batch, for each part.

        Args:
            mine: `counts` of this rank's clips, float64 (parts, losses).
            everyone: their sum over ranks.
            together: their sum over the ranks of ``split``, which have parts of the same clips.

        The shares of all ranks and parts add up to 1, except for a loss that is a sum. An accuracy
        has the share of its loss, and NaN in a batch without a counted prediction.
        """
        shares = mine / everyone.sum(0).clamp(min=1)
        for i, (name, _, options) in enumerate(self.terms):
            across = self._across(name, options)
            if across is not None:  # each of these ranks has the value of all of them
                counted = everyone if self.split is None else together
                shares[:, i] = counted[:, i] / everyone[:, i].sum().clamp(min=1) / across.ranks
            if options.get("reduction") == "sum":
                shares[:, i] = 1 if across is None else 1 / across.ranks
        with_head = [i for i, (name, *_) in enumerate(self.terms) if name in HEAD_LOSSES]
        of_accuracies = shares[:, with_head].clone()
        of_accuracies[:, everyone[:, with_head].sum(0) == 0] = torch.nan
        return torch.cat([shares, of_accuracies], 1)

    def _across(self, name: str, options: dict[str, Any]) -> "_Across | None":
        """The ranks that compute one value of a loss together; None: each rank has its own."""
        if name != "scl":
            return None
        if self.split is not None:
            return _Across(self.split.group, "frames", self.split.parts)
        if options.get("negatives") == "batch" and world_size() > 1:
            return _Across(dist.group.WORLD, "videos", world_size())
        return None


class _Across(NamedTuple):
    """Arguments of `fastseq.scl_loss` for a value of several ranks, and their number."""

    group: dist.ProcessGroup
    split: str
    ranks: int


def _scl(clips: Clips, *, group: dist.ProcessGroup | None = None, **options: Any) -> Tensor:
    """With a group the loss of the clips of its ranks, the same value on each."""
    z, steps, valid = clips.z, clips.steps, clips.valid
    if group is not None:
        # Another rank may have padding, and all have to pass the same arguments.
        valid = torch.ones_like(steps, dtype=torch.bool) if valid is None else valid
        options["group"] = group
    return fastseq.scl_loss(
        z[:, 0],
        z[:, 1],
        steps[:, 0],
        steps[:, 1],
        valid1=None if valid is None else valid[:, 0],
        valid2=None if valid is None else valid[:, 1],
        **options,
    )


def _nearest(clips: Clips, *, temperature: float, reach: float) -> Tensor:
    """CARL's contrastive baseline (A.4): the positive of a frame is the one nearest in time.

    Cross-entropy over the other view of the video in both directions, averaged over real frames. As
    in SCL, a frame without any frame within ``reach`` in the other view contributes 0 to the mean.
    """
    if temperature <= 0 or reach < 0:
        raise ValueError(
            f"nearest: expected temperature > 0 and reach >= 0, got {temperature} and {reach}"
        )
    z = F.normalize(clips.z.float(), dim=-1)
    n, _, t = clips.steps.shape
    valid = clips.valid if clips.valid is not None else clips.steps.new_ones(n, 2, t).bool()
    total = z.new_zeros(())
    for view, other in ((0, 1), (1, 0)):
        gaps = (clips.steps[:, view, :, None] - clips.steps[:, other, None, :]).abs().float()
        gaps = gaps.masked_fill(~valid[:, other, None, :], torch.inf)
        gap, positive = gaps.min(-1)
        scores = (z[:, view] @ z[:, other].mT) / temperature
        # Not -inf: a row without any real column would become NaN before it is masked below.
        scores = scores.masked_fill(~valid[:, other, None, :], -1e30)
        rows = F.cross_entropy(scores.flatten(0, 1), positive.flatten(), reduction="none")
        counted = valid[:, view] & (gap <= reach)
        total = total + rows.view(n, t).masked_fill(~counted, 0).sum()
    return total / valid.sum().clamp(min=1)


def _tcc(clips: Clips, *, normalize: bool, pairs: str, **options: Any) -> Tensor:
    if pairs == "given":
        return fastseq.tcc_loss(*pair(clips, normalize), **times(clips), **options)
    if pairs != "all":
        raise ValueError(f"tcc: pairs is {pairs!r}; expected 'given' or 'all'")
    return _tcc_all_pairs(clips, embeddings(clips, normalize), **options)


def _tcc_all_pairs(clips: Clips, h: Tensor, **options: Any) -> Tensor:
    """All ordered pairs of the batch's 2N clips of the same action; every cycle has weight 1."""
    n, _, t, _ = h.shape
    actions = [""] * n if clips.actions is None else list(clips.actions)
    if len(actions) != n:
        raise ValueError(f"tcc: {len(actions)} actions for {n} items; expected one for each")
    total, cycles = torch.zeros((), device=h.device), 0
    for action in dict.fromkeys(actions):
        items = torch.tensor([i for i in range(n) if actions[i] == action], device=h.device)
        lengths = None
        if clips.valid is not None:
            lengths = clips.valid[items].flatten(0, 1).sum(-1)
        total = total + fastseq.tcc_loss(
            h[items].flatten(0, 1),
            tx=clips.steps[items].flatten(0, 1),
            duration_x=clips.num_frames[items].flatten(),
            lengths_x=lengths,
            reduction="sum",
            **options,
        )
        count = 2 * len(items)
        frames = count * t if lengths is None else lengths.sum()
        cycles = cycles + (count - 1) * frames
    return total / torch.as_tensor(cycles).clamp(min=1)


def _tcn(clips: Clips, *, normalize: bool, reg_lambda: float) -> Tensor:
    """The even frames of a clip are anchors, the odd frames positives (data.sampling=anchors)."""
    h = embeddings(clips, normalize)
    anchors, positives = h[:, :, 0::2].flatten(0, 1), h[:, :, 1::2].flatten(0, 1)
    if clips.valid is None:
        return fastseq.tcn_loss(anchors, positives, reg_lambda=reg_lambda)
    # Negatives are the clip's other frames: shorter clips have fewer, so clips go one by one.
    pairs = clips.valid[:, :, 1::2].sum(-1).flatten().tolist()
    each = [
        count * fastseq.tcn_loss(a[:count], p[:count], reg_lambda=reg_lambda)
        for a, p, count in zip(anchors, positives, pairs, strict=True)
    ]
    return torch.stack(each).sum() / max(sum(pairs), 1)


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "scl": _scl,
    "nearest": _nearest,
    "tcc": _tcc,
    "tcn": _tcn,
    **ALIGNMENT_LOSSES,
}


def _frames(valid: Tensor, *_: Any) -> Tensor:
    return valid.sum()


def _scl_count(valid: Tensor, _: Any, options: dict[str, Any]) -> Tensor:
    return valid.any(2).any(1).sum() if options.get("reduction") == "paper" else valid.sum()


def _tcc_count(valid: Tensor, actions: Sequence[str] | None, options: dict[str, Any]) -> float:
    lengths = valid.sum(2)
    if options["pairs"] == "given":
        return float((lengths.sum(1) * lengths.all(1)).sum())
    actions = [""] * len(valid) if actions is None else list(actions)
    cycles = 0.0
    for action in dict.fromkeys(actions):
        items = [i for i in range(len(valid)) if actions[i] == action]
        cycles += (2 * len(items) - 1) * float(lengths[items].sum())
    return cycles


_COUNTS: dict[str, Callable[..., Tensor | float]] = {
    "scl": _scl_count,
    "nearest": _frames,
    "tcc": _tcc_count,
    "tcn": lambda valid, *_: valid[:, :, 1::2].sum(),
    **ALIGNMENT_COUNTS,
}
