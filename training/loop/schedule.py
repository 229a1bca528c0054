"""How many steps a run has, and the learning rate of each."""

import math

from omegaconf import DictConfig

WARMUP_START = 0.01  # of the rate, at the first step (VCLR's released code)


def total_steps(cfg: DictConfig, epoch_batches: int) -> int:
    if cfg.train.steps is not None:
        return cfg.train.steps
    return max(1, cfg.train.epochs * epoch_batches // cfg.train.accumulate)


def warmup_share(cfg: DictConfig, steps: int, epoch_batches: int) -> float:
    """The part of the run in which the rate rises: ``optim.warmup_steps`` or ``warmup_epochs``."""
    from_epochs = cfg.optim.warmup_epochs * epoch_batches / cfg.train.accumulate
    return (cfg.optim.warmup_steps or from_epochs) / steps


def learning_rate(cfg: DictConfig, progress: float, warmup: float = 0.0) -> float:
    """Half a cosine from ``optim.lr`` to ``optim.min_lr`` at progress 1, without restarts.

    Before it, up to progress ``warmup``, a straight line from a hundredth of ``optim.lr``.
    """
    top, least = cfg.optim.lr, cfg.optim.min_lr
    if progress < warmup:
        return top * (WARMUP_START + (1 - WARMUP_START) * progress / warmup)
    if cfg.optim.schedule == "constant":
        return top
    progress = min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0
    return least + (top - least) * 0.5 * (1 + math.cos(math.pi * progress))
