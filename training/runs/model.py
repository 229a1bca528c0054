"""A run directory and how to get a model back from it.

RUN/config.yaml, RUN/environment.json, RUN/log.jsonl, RUN/tensorboard/, RUN/checkpoints/, and with
pre-trained weights RUN/initial.pt
"""

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from training.models import VCLRModel, VideoEncoder, build_model
from training.recipe.load import ConfigError, load_config
from training.runs.checkpoint import (
    INITIAL,
    CheckpointError,
    list_checkpoints,
    load_latest,
    load_weights,
    read_manifest,
)


def initial_model(cfg: DictConfig, *, load_weights: bool = True) -> VideoEncoder | VCLRModel:
    """The model as it is before the first step, a function of the configuration alone.

    The caller's random state is left as it was (that of the CPU; nothing is drawn on a GPU).

    Args:
        load_weights: False leaves out the pre-trained weights; what they would fill is random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.train.seed)
        return build_model(cfg, load_weights=load_weights)


def check_frozen(cfg: DictConfig, model: VideoEncoder | VCLRModel) -> None:
    """ConfigError where part of the backbone would stay random and nobody asked for that."""
    if model.backbone.frozen and not cfg.model.weights and not cfg.model.random_frozen:
        raise ConfigError(
            f"model.train_from={cfg.model.train_from} keeps part of {cfg.model.backbone} as it "
            "starts, which is random without model.weights. Give pre-trained weights (a file, or "
            "model.weights=package with model.backbone=efficientnet_lite0), or train all of it "
            "(model.train_from=all), or say that random is meant: model.random_frozen=true"
        )


def weights_to_keep(cfg: DictConfig, model: VideoEncoder | VCLRModel) -> dict[str, Tensor]:
    """What the model has from pre-trained weights and training is going to change.

    With it, a checkpoint and the seed the initial model is had again without the weights' file: the
    rest is frozen, and in every checkpoint.
    """
    changing = _changing(model)
    return {
        name: value
        for name, value in model.state_dict().items()
        if _pretrained(cfg, name) and name in changing
    }


def _pretrained(cfg: DictConfig, name: str) -> bool:
    return cfg.model.weights_parts == "all" or "backbone" in name.split(".")


def _changing(model: nn.Module) -> set[str]:
    """Trained parameters, buffers of what is in training mode, and all of a moving average."""
    training = model.training
    model.train()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    for place, module in model.named_modules():
        if module.training:
            names |= {
                f"{place}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)
            }
    model.train(training)
    return names | {name for name in model.state_dict() if name.startswith("momentum.")}


def load_run(
    run_dir: str | Path, *, untrained: bool = False
) -> tuple[VideoEncoder | VCLRModel, DictConfig]:
    """Model of a run on the CPU, in eval mode, and the run's full configuration.

    Args:
        untrained: give the weights from before the first step instead of the newest checkpoint's.
            Pre-trained weights come from the run too (``RUN/initial.pt`` and the newest
            checkpoint); of a run of an earlier version, or without a checkpoint, from their file.

    Raises:
        FileNotFoundError: not a run directory, no checkpoint in it yet, or no file of weights.
        CheckpointError: no checkpoint can be read, or the weights do not fit the configuration.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{run_dir} is not a run: there is no config.yaml in it. Runs are written by "
            "python -m training.train"
        )
    cfg = load_config(run_dir / "config.yaml")
    if untrained:
        return _untrained(cfg, run_dir).eval(), cfg
    state = load_latest(run_dir / "checkpoints", keys=["model"])
    if state is None:
        raise FileNotFoundError(f"{run_dir} has no checkpoint yet")
    model = build_model(cfg, load_weights=False)
    load_weights(model, state, run_dir / "checkpoints")
    return model.eval(), cfg


def _untrained(cfg: DictConfig, run_dir: Path) -> VideoEncoder | VCLRModel:
    path, folder = run_dir / INITIAL, run_dir / "checkpoints"
    has_checkpoint = bool(cfg.model.weights) and path.is_file() and list_checkpoints(folder)
    if not has_checkpoint:
        try:
            return initial_model(cfg)
        except FileNotFoundError as error:
            missing = f"no {INITIAL}" if not path.is_file() else "no checkpoint"
            raise FileNotFoundError(
                f"{error}. The run has {missing} to take the initial weights from: without "
                "the file that it was started with, its untrained model cannot be had"
            ) from error
    model = initial_model(cfg, load_weights=False)
    state = model.state_dict()
    changing = _changing(model)
    frozen = {name for name in state if _pretrained(cfg, name) and name not in changing}
    if frozen:
        state |= {
            k: v for k, v in load_latest(folder, keys=["model"])["model"].items() if k in frozen
        }
    try:
        state |= torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): put back a copy, or remove it and "
            "keep model.weights where it was"
        ) from error
    load_weights(model, {"model": state}, run_dir)
    return model


def weights_name(run_dir: str | Path) -> str:
    """Tells one set of weights from another: the newest checkpoint's name and SHA-256."""
    folder = Path(run_dir) / "checkpoints"
    manifest = read_manifest(folder)
    names = [path.name for path in list_checkpoints(folder)[-1:]]
    return " ".join(f"{name} {manifest.get(name, {}).get('sha256', '')}" for name in names)
