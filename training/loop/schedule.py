"""The number of steps of a run, and the learning rate of each step."""

import math
from collections.abc import Sequence

from omegaconf import DictConfig

WARMUP_START = 0.01  # share of the rate at the first step (VCLR's released code)


def total_steps(cfg: DictConfig, epoch_batches: int) -> int:
    if cfg.train.steps is not None:
        return cfg.train.steps
    return max(1, cfg.train.epochs * epoch_batches // cfg.train.accumulate)


def warmup_share(cfg: DictConfig, steps: int, epoch_batches: int) -> float:
    """Share of the run in which the rate rises (``optim.warmup_steps`` or ``warmup_epochs``)."""
    from_epochs = cfg.optim.warmup_epochs * epoch_batches / cfg.train.accumulate
    return (cfg.optim.warmup_steps or from_epochs) / steps


def milestone_shares(cfg: DictConfig, steps: int, epoch_batches: int) -> list[float]:
    """The progress at each of ``optim.milestones``, which are epochs; above 1: never reached."""
    epoch_steps = epoch_batches / cfg.train.accumulate
    return [epochs * epoch_steps / steps for epochs in cfg.optim.milestones]


def learning_rate(
    cfg: DictConfig, progress: float, warmup: float = 0.0, milestones: Sequence[float] = ()
) -> float:
    """The learning rate at a progress from 0 to 1.

    Up to progress ``warmup`` it rises linearly from ``optim.lr`` / 100 to ``optim.lr``. Then
    ``optim.schedule`` applies: "constant" stays there, "cosine" follows half a cosine to
    ``optim.min_lr`` at progress 1, without restarts, and "step" is ``optim.lr`` times
    ``optim.gamma`` to the power of the number of ``milestones`` that have been reached.
    """
    top, least = cfg.optim.lr, cfg.optim.min_lr
    if progress < warmup:
        return top * (WARMUP_START + (1 - WARMUP_START) * progress / warmup)
    if cfg.optim.schedule == "constant":
        return top
    if cfg.optim.schedule == "step":
        # Epochs may be fractions, so the step of a milestone may be off by rounding.
        return top * cfg.optim.gamma ** sum(progress > share - 1e-9 for share in milestones)
    progress = min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0
    return least + (top - least) * 0.5 * (1 + math.cos(math.pi * progress))
