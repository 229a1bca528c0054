"""Checks of recipes that classify the actions of videos."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from training.recipe.errors import ConfigError

SHIFTED = ("resnet18", "resnet34", "resnet50", "resnet101")  # backbones with model.shift


def check_action(config: DictConfig, losses: Sequence[str]) -> None:
    """The loss of actions, its clips and its encoder are used together and with nothing else."""
    needed = {"data.clips": "segments", "model.encoder": "tsn"}
    have = {key: OmegaConf.select(config, key) == value for key, value in needed.items()}
    if "action" not in losses:
        for key, value in needed.items():
            if have[key]:
                raise ConfigError(
                    f"{key}={value} works only with loss.action, got loss.{losses[0]}"
                )
        if config.model.shift:
            raise ConfigError(
                f"model.shift={config.model.shift} works only with model.encoder=tsn, got "
                f"{config.model.encoder}; set model.shift=0"
            )
        return
    others = [name for name in losses if name != "action"]
    if others:
        raise ConfigError(f"loss.action cannot be combined with loss.{others[0]}")
    for key, value in needed.items():
        if not have[key]:
            got = OmegaConf.select(config, key)
            raise ConfigError(f"loss.action needs {key}={value}, got {got}")
    if config.data.num_context > 1:
        raise ConfigError(
            "data.num_context: data.clips=segments has no context frames, expected 1, got "
            f"{config.data.num_context}"
        )
    if config.data.cache == "features":
        raise ConfigError(
            "data.cache=features keeps a vector for each frame of a whole video, and "
            "data.clips=segments reads clips: set data.cache=none or ram"
        )
    _check_shift(config)


def _check_shift(config: DictConfig) -> None:
    """Check that the frames of a temporal shift are those of the segments of a ResNet."""
    shift = config.model.shift
    if not shift:
        return
    if shift == 1:
        raise ConfigError(
            "model.shift: expected 0 or at least 2, because the channels of the next and of the "
            "previous frame must fit beside each other, got 1; TSM uses 8"
        )
    if config.model.backbone not in SHIFTED:
        raise ConfigError(
            f"model.shift={shift} needs model.backbone to be one of {', '.join(SHIFTED)}, got "
            f"{config.model.backbone}; set model.shift=0"
        )
    if config.data.tuple_frames > 1 or config.data.segments < 2:
        raise ConfigError(
            f"model.shift={shift} shifts between the frames of the segments: expected "
            f"data.tuple_frames=1 and data.segments of at least 2, got {config.data.tuple_frames} "
            f"and {config.data.segments}"
        )
