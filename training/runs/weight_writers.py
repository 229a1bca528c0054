"""The weights of a run as one file that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.support.files import replacing

if TYPE_CHECKING:
    import torch


def write_safetensors(path: Path, weights: Mapping[str, torch.Tensor], cfg: Any) -> None:
    """Replace a .safetensors file by weights and, in its metadata, the configuration."""
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    metadata = {"config": OmegaConf.to_yaml(cfg, resolve=True)}
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata=metadata)


def write_state_dict(path: Path, weights: Mapping[str, torch.Tensor], cfg: Any) -> None:
    """Replace a file of torch.save by the weights alone."""
    import torch

    with replacing(path) as partial:
        torch.save({name: value.contiguous() for name, value in weights.items()}, partial)


WRITERS = {".safetensors": write_safetensors, ".pt": write_state_dict, ".pth": write_state_dict}
