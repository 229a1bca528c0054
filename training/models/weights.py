"""Backbone weights from a file, in the key layouts people have them in."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

IGNORED = ("fc.",)  # the classifier or projection that sits on a pre-trained backbone


@dataclass(frozen=True)
class WeightReport:
    """What a file gave: its layout and the names on either side that found no partner."""

    layout: str
    loaded: int
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        return (
            f"{self.layout} layout: {self.loaded} entries loaded, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected"
        )


def load_backbone_weights(backbone: nn.Module, path: str | Path) -> WeightReport:
    """Load a checkpoint into a backbone and say what matched.

    Layouts, recognised by their keys (before them a ``module.`` of DataParallel is dropped):

    - torchvision: ``conv1.weight``, ..., the state dict itself or under "state_dict" or "model";
    - MoCo: ``encoder_q.*`` under "state_dict";
    - BYOL: ``encoder.*`` under "model", where ``encoder_k.*`` is the moving average and left out;
    - SimCLR: ``encoder.*`` under "state_dict", with ``v1.weight`` for ``conv1.weight``.

    A classifier (``fc.*``) is ignored. Batch counters may be missing, as in old files.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no plain checkpoint, nothing in it matches, or shapes differ.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"backbone weights: {path} does not exist; give model.weights= a file that you have "
            "(torchvision, BYOL, MoCo or SimCLR layout), nothing is downloaded"
        )
    layout, state = _recognise(_read(path), path)
    state = {key: value for key, value in state.items() if not key.startswith(IGNORED)}
    own = backbone.state_dict()
    matching = {key: value for key, value in state.items() if key in own}
    if not any(own[key].dim() > 0 for key in matching):
        raise ValueError(
            f"{path}: nothing matches the backbone. Read as {layout} layout, keys like "
            f"{_some(state)}; the backbone has keys like {_some(own)}"
        )
    for key, value in matching.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(value.shape)}, the backbone needs "
                f"{tuple(own[key].shape)}: these are weights of another architecture"
            )
    backbone.load_state_dict(matching, strict=False)
    report = WeightReport(
        layout,
        len(matching),
        [key for key in own if key not in state and not key.endswith("num_batches_tracked")],
        [key for key in state if key not in own],
    )
    if report.missing:
        logger.warning("%s: %s; left as initialised: %s", path, report, _some(report.missing))
    return report


def _read(path: Path) -> Mapping:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as a checkpoint of plain tensors ({type(error).__name__}). "
            "If it holds other Python objects and you trust it, load it yourself and save "
            "its state dict alone with torch.save"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a dictionary, got {type(checkpoint).__name__}")
    return checkpoint


def _recognise(checkpoint: Mapping, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Name of the layout, and the tensors under the backbone's own names."""
    container = next(
        (name for name in ("state_dict", "model") if isinstance(checkpoint.get(name), Mapping)), ""
    )
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in (checkpoint[container] if container else checkpoint).items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"{path}: no tensors in it, top-level keys {_some(checkpoint)}")
    for prefix, layout in (
        ("encoder_q.", "MoCo"),
        ("encoder.", "BYOL" if container == "model" else "SimCLR"),
    ):
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if inner:
            if layout == "SimCLR" and "v1.weight" in inner:
                inner["conv1.weight"] = inner.pop("v1.weight")
            return layout, inner
    return "torchvision", tensors


def _some(keys: Mapping | list[str]) -> str:
    names = [str(key) for key in keys]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "(none)"
