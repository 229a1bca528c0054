"""Writes the weights of a run to one file for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.support.files import replacing

if TYPE_CHECKING:
    import torch


def write_safetensors(path: Path, weights: Mapping[str, torch.Tensor], cfg: Any) -> None:
    """Write a .safetensors file of the weights, with the configuration in its metadata."""
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    metadata = {"config": OmegaConf.to_yaml(cfg, resolve=True)}
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata=metadata)


def write_state_dict(path: Path, weights: Mapping[str, torch.Tensor], cfg: Any) -> None:
    """Write the weights alone with torch.save."""
    import torch

    with replacing(path) as partial:
        torch.save({name: value.contiguous() for name, value in weights.items()}, partial)


WRITERS = {".safetensors": write_safetensors, ".pt": write_state_dict, ".pth": write_state_dict}
