"""The optimizer of a recipe: its kind, its groups of parameters and their learning rates."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from training.support.command import UserError

if TYPE_CHECKING:
    from training.models import VCLRModel, VideoEncoder
    from training.recipe.schema import Config, OptimConfig


class Kind(NamedTuple):
    """An optimizer's name in text, and its state: tensors of the size of the parameters."""

    name: str
    moments: int


KINDS = {"adam": Kind("Adam", 2), "adamw": Kind("AdamW", 2), "sgd": Kind("SGD", 1)}


def check_optimizer(optim: "OptimConfig") -> None:
    """Raise ValueError for options of the optimizer and its schedule that contradict each other."""
    milestones = [*optim.milestones]
    if optim.schedule == "step" and not milestones:
        raise ValueError(
            "optim.milestones: empty, and optim.schedule=step needs at least one epoch, such as "
            "optim.milestones=[100,200]"
        )
    epochs = f"[{', '.join(f'{epoch:g}' for epoch in milestones)}]"
    if optim.schedule != "step" and milestones:
        raise ValueError(
            f"optim.milestones works only with optim.schedule=step, got {epochs} with "
            f"optim.schedule={optim.schedule}; set optim.milestones=[]"
        )
    if not all(a < b for a, b in zip([0.0, *milestones], milestones, strict=False)):
        raise ValueError(
            f"optim.milestones: expected rising numbers of epochs above 0, got {epochs}"
        )
    if optim.backbone_lr is not None and not optim.lr:
        raise ValueError(
            f"optim.backbone_lr: {optim.backbone_lr} needs optim.lr above 0, because the rate of "
            "the backbone follows the schedule of optim.lr in proportion"
        )


def check_backbone_rate(cfg: "Config", model: "VideoEncoder | VCLRModel") -> None:
    """Raise UserError if ``optim.backbone_lr`` is set and no parameter of the backbone is trained.

    To be called before features of the backbone are computed.
    """
    rate = cfg.optim.backbone_lr
    if rate is not None and not any(p.requires_grad for p in model.backbone.parameters()):
        raise UserError(
            f"optim.backbone_lr: {rate} is the rate of the backbone, but "
            f"model.train_from={cfg.model.train_from} trains no parameter of it; set "
            "optim.backbone_lr=null, or train a part of the backbone, such as "
            "model.train_from=layer4"
        )


def make_optimizer(cfg: "Config", model: "VideoEncoder | VCLRModel") -> torch.optim.Optimizer:
    """The optimizer ``optim.name`` for the trained parameters of a model.

    With ``optim.backbone_lr`` it has two groups: all other parameters, then those of the backbone.
    Their rates are set before each step, see `group_rates`; errors are those of
    `check_backbone_rate`.
    """
    optim = cfg.optim
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": trained}]
    if optim.backbone_lr is not None:
        check_backbone_rate(cfg, model)
        backbone = {p for p in model.backbone.parameters() if p.requires_grad}
        groups = [
            {"params": [p for p in trained if p not in backbone]},
            {"params": [p for p in trained if p in backbone]},
        ]
    if optim.name == "sgd":
        return torch.optim.SGD(
            groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
    adam = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return adam(groups, lr=optim.lr, betas=tuple(optim.betas), weight_decay=optim.weight_decay)


def group_rates(optim: "OptimConfig", rate: float) -> dict[str, float]:
    """The learning rate of each group of `make_optimizer` by its name in the log.

    ``rate`` is that of the schedule; the backbone's is always the same share of it.
    """
    rates = {"lr": rate}
    if optim.backbone_lr is not None:
        rates["lr_backbone"] = rate * optim.backbone_lr / optim.lr
    return rates
