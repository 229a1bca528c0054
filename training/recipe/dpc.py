"""Checks of recipes that train DPC."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from training.models.build import CLIP_BACKBONES
from training.recipe.errors import ConfigError


def check_dpc(config: DictConfig, losses: Sequence[str]) -> None:
    """DPC's loss, blocks and encoder are used together and with nothing else."""
    needed = {"data.clips": "blocks", "model.encoder": "dpc"}
    got = {key: OmegaConf.select(config, key) for key in needed}
    if "dpc" not in losses:
        for key, value in needed.items():
            if got[key] == value:
                raise ConfigError(f"{key}={value} works only with loss.dpc, got loss.{losses[0]}")
        return
    others = [name for name in losses if name != "dpc"]
    if others:
        raise ConfigError(f"loss.dpc cannot be combined with loss.{others[0]}")
    for key, value in needed.items():
        if got[key] != value:
            raise ConfigError(f"loss.dpc needs {key}={value}, got {got[key]}")
    if config.model.backbone not in CLIP_BACKBONES:
        raise ConfigError(
            f"loss.dpc needs a network of clips: model.backbone must be one of "
            f"{', '.join(CLIP_BACKBONES)}, got {config.model.backbone}"
        )
    predict, blocks = config.loss.dpc.predict, config.data.segments
    if predict >= blocks:
        raise ConfigError(
            f"loss.dpc.predict: the last {predict} blocks are predicted from at least one before "
            f"them, so data.segments must be at least {predict + 1}, got {blocks}"
        )
    if config.data.num_context > 1:
        raise ConfigError(
            "data.num_context: data.clips=blocks has no context frames, expected 1, got "
            f"{config.data.num_context}"
        )
    if config.data.cache == "features":
        raise ConfigError(
            "data.cache=features keeps a vector for each frame of a whole video, and "
            "data.clips=blocks reads clips: set data.cache=none or ram"
        )
