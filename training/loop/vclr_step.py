"""VCLR's optimizer step: keys from the momentum encoder, four losses, then encoder and queues."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fastseq
from fastseq.video.tuples import anchors, order_labels
from training.loop.precision import autocast
from training.loop.random_batch import random_tuples
from training.loop.step import (
    GradientStep,
    ItemFrames,
    StepResult,
    doubling,
    words_of_clips,
)
from training.models.vclr import VCLRModel
from training.support.distributed import gather_rows, rank, world_size


def loss_options(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of `fastseq.vclr_loss` in the recipe's section of VCLR or SeCo."""
    return {"temperature": cfg.temperature, "form": cfg.form, "backend": cfg.backend}


def _queries(steps: Tensor) -> Tensor:
    """Numbers (N, S) of the clips of the anchor tuples among the N (2 S + 1) clips of a batch."""
    items, clips = steps.shape[:2]
    return torch.arange(items * clips).view(items, clips)[:, : clips // 2]


def _others(steps: Tensor) -> Tensor:
    """Numbers (N, 2 S) of all clips but q's anchor: rest of q, k, second view of the anchor."""
    kept = torch.arange(steps.shape[1]) != anchors(steps)[:, None]
    return kept.flatten().nonzero().view(len(steps), -1)


class _Losses(nn.Module):
    """Clips of a batch and keys to the losses: the module DistributedDataParallel wraps.

    All its parameters are trained, and each gets a gradient.
    """

    def __init__(self, model: VCLRModel, cfg: DictConfig) -> None:
        super().__init__()
        self.encoder, self.order = model.encoder, model.order
        self.options = loss_options(cfg)

    def forward(
        self,
        clips: Tensor,
        queries: Tensor,
        keys: dict[str, Tensor],
        queues: dict[str, Tensor],
        anchor: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The losses, one for each head, and the features of the ``queries`` (N, S, F)."""
        features = self.encoder.clip_features(clips, queries)
        item = torch.arange(len(anchor), device=anchor.device)
        entering = {
            "inter": features[item, anchor],
            "intra": features[item, anchor],
            "video": features.mean(1),
            "order": features,
        }
        losses = []
        for name, head in self.encoder.heads.items():
            q, k = head(entering[name]), keys[name]
            if name == "intra":
                given = (q, k[:, 0], k[:, 1:])
            elif name == "order":
                given = (q, k, labels, self.order)
            else:
                given = (q, k, queues[name])
            losses.append(fastseq.vclr_loss(**{name: given}, **self.options))
        return torch.stack(losses), features


class VCLRStep(GradientStep):
    """Steps of a `VCLRModel` on batches of `SegmentTuples`.

    Queries are the S clips of the anchor tuple; one of them is the anchor of the losses between
    clips. Keys are a second augmentation of the anchor, the other clips of the anchor tuple, and
    the positive tuple. All clips of a network pass through it together. (The released code passes
    the anchor through the query encoder twice, and each kind of key through the key encoder
    separately.)

    Batch norm normalises the clips of one rank. With several ranks, keys are shuffled between the
    ranks before the momentum encoder and restored after it (Shuffle-BN, A.1), so a query and its
    keys share no statistics. They are not shuffled if all batch norms are frozen, and they cannot
    be on a single rank.

    After a successful step the momentum encoder is updated and the keys enter the queues. A step
    without a finite loss changes nothing.
    """

    section = "loss.vclr"
    terms: type[nn.Module] = _Losses

    def __init__(
        self,
        cfg: DictConfig,
        model: VCLRModel,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        options, names = OmegaConf.select(cfg, self.section), list(model.encoder.heads)
        super().__init__(
            cfg,
            model,
            optimizer,
            device,
            precision,
            module=self.terms(model, options),
            names=names,
        )
        self.weights = torch.tensor(
            [options.weight * options[name] for name in names], device=device
        )
        self.shuffles = False
        self.new_keys: list[dict[str, Tensor]] = []  # keys of the parts of this step

    @staticmethod
    def check(cfg: DictConfig, device: torch.device, dtype: torch.dtype) -> None:
        z = torch.ones(1, cfg.data.segments, 4, device=device, dtype=dtype)
        labels = torch.zeros(1, dtype=torch.int64, device=device)
        fastseq.vclr_loss(
            inter=(z[:, 0], z, z[0].float()),
            intra=(z[:, 0], z[:, 0], z),
            order=(z, z, labels, lambda x: x[:, :4]),
            **loss_options(cfg.loss.vclr),
        )

    @staticmethod
    def describe(cfg: DictConfig) -> ItemFrames:
        """Two tuples and the second view of the anchor; keys are not kept for backward."""
        clips, length = 2 * cfg.data.segments + 1, cfg.data.tuple_frames
        words = words_of_clips(clips, length)
        return ItemFrames(clips * length, cfg.data.segments * length, words)

    def examples(self, items: int) -> Iterator[dict[str, Any]]:
        return (random_tuples(self.cfg, number) for number in doubling(items))

    def distribute(self) -> None:
        super().distribute()
        self.shuffles = world_size() > 1 and any(
            isinstance(m, _BatchNorm) and m.training for m in self.model.momentum.modules()
        )

    def __call__(
        self, batches: Sequence[dict[str, Any]], rate: float, requests: Callable[[], list[int]]
    ) -> StepResult:
        self.new_keys.clear()
        return super().__call__(batches, rate, requests)

    def _loss(
        self, batch: dict[str, Any], shares: Sequence[float]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        queries, others, *rest = (
            x.to(self.device, non_blocking=True) for x in self._numbers(batch["steps"])
        )
        clips = batch["frames"].to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            keys = self._keys(clips, others)
            queues = {name: queue.features for name, queue in self.model.queues.items()}
            losses, features = self.module(clips, queries, keys, queues, *rest)
        self.new_keys.append({name: keys[name] for name in queues})
        losses = losses * losses.new_tensor(shares)
        total = (self.weights.to(losses.dtype) * losses).sum()
        return total, list(losses), features.detach().flatten(0, 1)

    @staticmethod
    def _numbers(steps: Tensor) -> tuple[Tensor, ...]:
        """Numbers of the queries and of the keys' clips, then the last arguments of the losses."""
        return _queries(steps), _others(steps), anchors(steps), order_labels(steps)

    @torch.no_grad()
    def _keys(self, clips: Tensor, others: Tensor) -> dict[str, Tensor]:
        """The momentum encoder's heads on the clips of `_others` (N, 2 S).

        "inter", "intra": (N, S, D), first the second view of the anchor, then the others; "video":
        (N, D); "order": (N, S, D).
        """
        count, encoder = others.shape[1], self.model.momentum.module
        features = self._features(clips, others)
        same = torch.cat([features[:, -1:], features[:, : count // 2 - 1]], 1)
        positive = features[:, count // 2 - 1 : -1]
        entering = {"inter": same, "intra": same, "video": positive.mean(1), "order": positive}
        return {name: head(entering[name]) for name, head in encoder.heads.items()}

    def _features(self, clips: Tensor, index: Tensor) -> Tensor:
        """The momentum encoder's features of clips, see `VideoEncoder.clip_features`."""
        encode = self.model.momentum.module.clip_features
        if not self.shuffles:
            return encode(clips, index)
        rows = clips.flatten(0, 1)[index.flatten()]
        everyone = gather_rows(rows)
        # momentum.n_averaged counts steps: the same on all ranks, and after a resume.
        drawn = [self.cfg.train.seed, int(self.model.momentum.n_averaged), len(self.new_keys)]
        order = np.random.default_rng(drawn).permutation(len(everyone)).reshape(world_size(), -1)
        mine = torch.from_numpy(order[rank()]).to(clips.device)
        features = gather_rows(encode(everyone[None], mine[None])[0])
        back = torch.from_numpy(np.argsort(order.reshape(-1))).to(clips.device)
        return features[back].view(world_size(), *index.shape, -1)[rank()]

    def _stepped(self) -> None:
        self.model.momentum.update_parameters(self.model.encoder)
        for keys in self.new_keys:  # part by part, in the same order for any number of ranks
            for name, queue in self.model.queues.items():
                queue.enqueue(keys[name])
