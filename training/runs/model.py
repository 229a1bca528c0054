"""Loads a model from a run directory.

A run directory RUN contains config.yaml, environment.json, training_videos.json, log.jsonl,
tensorboard/, checkpoints/ and, with pre-trained weights, initial.pt. Commands that embed its videos
add embeddings/.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from training.support.checkpoint_files import newest_checkpoint, sha256

LATEST, BEST = "latest", "best"


@dataclass(frozen=True)
class Restored:
    """A model of a run, and where its weights are from.

    Attributes:
        model: the model in eval mode, on the CPU when `restore` returns it.
        cfg: the run's full configuration.
        checkpoint: name of the checkpoint without ending; empty for weights before the first step.
        step: number of training steps, None if the checkpoint has no such entry.
    """

    model: VideoEncoder | VCLRModel
    cfg: DictConfig
    checkpoint: str = ""
    step: int | None = None


def initial_model(cfg: DictConfig, *, load_weights: bool = True) -> VideoEncoder | VCLRModel:
    """The model before the first step, which depends only on the configuration.

    The caller's random state on the CPU is restored; nothing is drawn on a GPU.

    Args:
        load_weights: False skips the pre-trained weights; the layers that they fill are random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.train.seed)
        return build_model(cfg, load_weights=load_weights)


def check_frozen(cfg: DictConfig, model: VideoEncoder | VCLRModel) -> None:
    """ConfigError if part of the backbone would stay random without random_frozen=true."""
    if model.backbone.frozen and not cfg.model.weights and not cfg.model.random_frozen:
        raise ConfigError(
            f"model.train_from={cfg.model.train_from} freezes part of {cfg.model.backbone}, which "
            "is random without model.weights. Set model.weights to pre-trained weights (a file, or "
            "model.weights=package with model.backbone=efficientnet_lite0), or train the whole "
            "backbone (model.train_from=all), or allow random weights: model.random_frozen=true"
        )


def weights_to_keep(cfg: DictConfig, model: VideoEncoder | VCLRModel) -> dict[str, Tensor]:
    """The pre-trained tensors of the model that training will change.

    Together with a checkpoint and the seed they restore the initial model without the weights file:
    all other tensors are frozen and part of every checkpoint.
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
    """Trained parameters, buffers of modules in training mode, and all of a moving average."""
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
    run_dir: str | Path, *, untrained: bool = False, checkpoint: str | None = None
) -> tuple[VideoEncoder | VCLRModel, DictConfig]:
    """The model of a run on the CPU, in eval mode, and the run's full configuration.

    Arguments and errors are those of `restore`.
    """
    found = restore(run_dir, untrained=untrained, checkpoint=checkpoint)
    return found.model, found.cfg


def restore(
    run_dir: str | Path, *, untrained: bool = False, checkpoint: str | None = None
) -> Restored:
    """The model of a run with the weights of a checkpoint, or with those before training.

    Args:
        untrained: load the weights before the first step instead of a checkpoint. Pre-trained
            weights are read from the run (``RUN/initial.pt`` and the newest checkpoint). A run of
            an earlier version, or one without a checkpoint, needs the weights file.
        checkpoint: "latest" (default), "best", or the name of a checkpoint, such as
            "step_00001000" or "step_1000".

    Raises:
        FileNotFoundError: ``run_dir`` is not a run, or it has no checkpoint yet, or the weights
            file is missing.
        CheckpointError: the run does not have the checkpoint, it cannot be read, or the weights do
            not fit the configuration.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{run_dir} is not a run: it contains no config.yaml. python -m training.train writes "
            "runs"
        )
    cfg = load_config(run_dir / "config.yaml")
    if untrained:
        return Restored(_untrained(cfg, run_dir).eval(), cfg)
    path, state = _read_checkpoint(run_dir, checkpoint)
    model = build_model(cfg, load_weights=False)
    load_weights(model, state, path.parent, averaged=True)
    return Restored(model.eval(), cfg, path.stem, state.get("step"))


def _read_checkpoint(run_dir: Path, checkpoint: str | None) -> tuple[Path, dict[str, Any]]:
    folder = run_dir / "checkpoints"
    if checkpoint in (None, LATEST):
        found = newest_checkpoint(folder, keys=["model"])
        if found is None:
            raise FileNotFoundError(f"{run_dir} has no checkpoint yet")
        return found
    path = folder / f"{checkpoint_name(checkpoint)}.pt"
    if not path.is_file():
        best = [BEST] if (folder / f"{BEST}.pt").is_file() else []
        others = ", ".join([LATEST, *best, *(one.stem for one in list_checkpoints(folder))])
        never = " (train.keep_best keeps one while a run trains)" if checkpoint == BEST else ""
        raise CheckpointError(
            f"{run_dir} has no checkpoint {path.stem}{never}; choose one of {others}"
        )
    entry = read_manifest(folder).get(path.name)
    try:
        if entry is not None and sha256(path) != entry["sha256"]:
            raise ValueError("its SHA-256 is not that of the manifest")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "model" not in state:
            raise ValueError("it contains no model")
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); choose another one") from error
    return path, state


def checkpoint_name(checkpoint: str | None) -> str:
    """The name of a checkpoint's file without ending: "latest", "best" or "step_00001000"."""
    if checkpoint in (None, LATEST, BEST):
        return checkpoint or LATEST
    step = re.fullmatch(r"(?:step_)?(\d+)(?:\.pt)?", checkpoint)
    if step is None:
        raise CheckpointError(
            f"{checkpoint!r} is no name of a checkpoint; expected latest, best or step_N with the "
            "number of steps"
        )
    return f"step_{int(step[1]):08d}"


def _untrained(cfg: DictConfig, run_dir: Path) -> VideoEncoder | VCLRModel:
    path, folder = run_dir / INITIAL, run_dir / "checkpoints"
    has_checkpoint = bool(cfg.model.weights) and path.is_file() and list_checkpoints(folder)
    if not has_checkpoint:
        try:
            return initial_model(cfg)
        except FileNotFoundError as error:
            missing = f"no {INITIAL}" if not path.is_file() else "no checkpoint"
            raise FileNotFoundError(
                f"{error}. The run has {missing} with the initial weights: without the weights "
                "file that it was started with, its untrained model cannot be restored"
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
            f"{path} cannot be read ({type(error).__name__}): restore it from a copy, or remove it "
            "and keep model.weights where it was"
        ) from error
    load_weights(model, {"model": state}, run_dir)
    return model


def weights_name(run_dir: str | Path, checkpoint: str) -> str:
    """An identifier of the weights of a checkpoint: its name and SHA-256.

    checkpoint: its name without ending, see `Restored.checkpoint`.
    """
    path = Path(run_dir) / "checkpoints" / f"{checkpoint}.pt"
    digest = read_manifest(path.parent).get(path.name, {}).get("sha256", "")
    if not digest and path.is_file():
        digest = sha256(path)
    return f"{path.name} {digest}"
