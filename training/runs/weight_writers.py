"""Writes the weights of a run to one file for other programs, under their names."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.support.command import UserError
from training.support.files import replacing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from training.models import VCLRModel, VideoEncoder

OWN = "own"
LAYOUTS = (OWN, "torchvision", "mmaction2", "timm")
# The classifier's names; the second kind of a layout is for the backbones after the colon.
_CLASSIFIERS = {
    "torchvision": "fc",
    "torchvision:s3d": "classifier.1",  # a 1x1x1 convolution
    "mmaction2": "cls_head.fc_cls",
    "timm": "fc",
    "timm:efficientnet_lite0": "classifier",
}
# The network to create, where the backbone's name does not say it. {classes} is a further
# argument of a network with a classifier.
_NETWORKS = {
    "mmaction2:r3d": (
        "ResNet3d(depth={depth}, conv1_kernel=(3, 7, 7), temporal_strides=(1, 2, 2, 2), "
        "inflate_style='3x3x3', with_pool1=False, with_pool2=False)"
    ),
    "mmaction2:resnet": "ResNet(depth={depth})",
    "mmaction2:tsm": "ResNetTSM(depth={depth}, num_segments={segments}, shift_div={shift})",
    "torchvision": "{name}({classes})",
    "torchvision:r3d_50": (
        "VideoResNet(Bottleneck, [Conv3DSimple] * 4, [3, 4, 6, 3], BasicStem, {classes})"
    ),
    "timm": 'timm.create_model("{name}", {classes})',
    "timm:efficientnet_lite0": 'timm.create_model("tf_efficientnet_lite0", {classes})',
}
# mmaction2's recognizers: a network, and the head that has the classifier.
_RECOGNIZERS = {
    "mmaction2:r3d": "Recognizer3D(backbone={}, cls_head=I3DHead({}))",
    "mmaction2:resnet": "Recognizer2D(backbone={}, cls_head=TSNHead({}))",
    "mmaction2:tsm": "Recognizer2D(backbone={}, cls_head=TSMHead({}, num_segments={segments}))",
}
# Why a backbone has no counterpart.
_REASONS = {
    "mmaction2:r2plus1d_18": (
        "its R(2+1)D has other widths between the convolutions over space and over time"
    ),
}


@dataclass(frozen=True)
class Exported:
    """Weights under another project's names.

    Attributes:
        weights: entries by their name there.
        network: the call that creates the network of that project, with the classifier if the
            model has one.
        classes: number of the classifier's classes, 0 without a classifier.
        pixels: mean and standard deviation of RGB in 0 to 1 that normalise its images.
        left_out: parts of the model without a counterpart, with their numbers of entries.
        notes: differences of that network.
    """

    weights: dict[str, torch.Tensor]
    network: str
    classes: int
    pixels: tuple[tuple[float, ...], tuple[float, ...]]
    left_out: dict[str, int]
    notes: list[str]


def export_weights(model: VideoEncoder | VCLRModel, cfg: Any, layout: str) -> Exported:
    """The backbone, and the classifier of actions if the model has one, in another layout.

    Of a VCLR model it is the trained backbone, not its moving average.

    Args:
        cfg: the run's configuration.
        layout: one of `LAYOUTS` except "own".

    Raises UserError if that project does not have the network.
    """
    from training.models import layouts
    from training.models.build import STAGES

    backbone = model.backbone
    name = backbone.name
    names = layouts.EXPORTS[layout]
    if layout == "timm" and name.startswith("timm:"):
        names = {name: layouts.OWN}
    if name not in names:
        reason = _REASONS.get(f"{layout}:{name}", "it has no such network")
        raise UserError(
            f"--layout {layout}: got a run with model.backbone={name}, which {layout} does not "
            f"have: {reason}; expected one of {', '.join(names)}. --layout own writes all weights "
            "under this project's names"
        )
    shift = cfg.model.shift
    weights = {names[name].theirs(entry): one for entry, one in backbone.state_dict().items()}
    if layout == "mmaction2":
        if shift:
            weights = {_shifted(entry, weights): one for entry, one in weights.items()}
        weights = {f"backbone.{entry}": one for entry, one in weights.items()}
    notes = []
    if name in STAGES and backbone.stages[-1] != [*STAGES[name].strides][-1]:
        notes.append(f"the run's network ends earlier: model.backbone_to={cfg.model.backbone_to}")
    if shift and layout != "mmaction2":
        notes.append(f"the run's network shifts channels over time (model.shift={shift})")
    linear = _linear(model)
    return Exported(
        weights | _classifier(model, layout, name),
        _network(layout, name, cfg, linear),
        0 if linear is None else linear.out_features,
        (backbone.pixel_mean, backbone.pixel_std),
        _left_out(model),
        notes,
    )


def _shifted(name: str, weights: Mapping[str, torch.Tensor]) -> str:
    """mmaction2's TSM wraps the first convolution of blocks, in ResNet-101 of every second one."""
    found = re.fullmatch(r"(layer\d\.(\d+)\.conv1\.conv)\.(\w+)", name)
    every = 2 if any(one.startswith("layer3.22.") for one in weights) else 1
    return f"{found[1]}.net.{found[3]}" if found and int(found[2]) % every == 0 else name


def _linear(model: VideoEncoder | VCLRModel) -> nn.Linear | None:
    """The classifier of actions, which follows a dropout in the head of loss.action."""
    heads = getattr(model, "heads", {})
    return heads["action"][-1] if "action" in heads else None


def _classifier(model: VideoEncoder | VCLRModel, layout: str, name: str) -> dict[str, torch.Tensor]:
    linear = _linear(model)
    if linear is None:
        return {}
    place = _CLASSIFIERS.get(f"{layout}:{name}", _CLASSIFIERS[layout])
    state = linear.state_dict()
    if name == "s3d":
        state["weight"] = state["weight"][:, :, None, None, None]
    return {f"{place}.{entry}": value for entry, value in state.items()}


def _network(layout: str, name: str, cfg: Any, linear: nn.Linear | None) -> str:
    shift = cfg.model.shift
    family = "tsm" if shift and layout == "mmaction2" else name.rstrip("0123456789").rstrip("_")
    kinds = [f"{layout}:{name}", f"{layout}:{family}", layout]
    found = next(_NETWORKS[kind] for kind in kinds if kind in _NETWORKS)
    classes = "" if linear is None else f"num_classes={linear.out_features}"
    depth = re.search(r"\d+$", name)
    values = {
        "name": name.removeprefix("timm:"),
        "depth": depth[0] if depth else "",
        "shift": shift,
        "segments": cfg.data.segments,
        "classes": classes,
    }
    network = found.format(**values).replace(", )", ")")
    if layout != "mmaction2" or linear is None:
        return network
    head = f"{classes}, in_channels={linear.in_features}"
    return _RECOGNIZERS[f"{layout}:{family}"].format(network, head, **values)


def _left_out(model: VideoEncoder | VCLRModel) -> dict[str, int]:
    inside = {id(value) for value in model.backbone.state_dict(keep_vars=True).values()}
    linear = _linear(model)
    if linear is not None:
        inside |= {id(value) for value in linear.state_dict(keep_vars=True).values()}
    state = model.state_dict(keep_vars=True)
    return dict(Counter(name.partition(".")[0] for name, v in state.items() if id(v) not in inside))


def write_run(out: Path, weights: Mapping[str, torch.Tensor], cfg: Any) -> None:
    """Write a run directory with a checkpoint of step 0 and model.safetensors, whole or not at all.

    cfg: the configuration; its train.run_dir is set to ``out``.
    """
    from omegaconf import OmegaConf

    from training.runs.checkpoint import save_checkpoint

    cfg.train.run_dir = str(out)
    out.mkdir(parents=True)
    try:
        OmegaConf.save(cfg, out / "config.yaml", resolve=True)
        save_checkpoint(out / "checkpoints", 0, {"model": dict(weights)})
        write_safetensors(out / "model.safetensors", weights, cfg)
    except BaseException:  # a full disk, or Ctrl-C: a part of a run would look like one
        shutil.rmtree(out, ignore_errors=True)
        raise


@contextlib.contextmanager
def written_whole(out: Path, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Turns the errors of PyTorch and safetensors on a full disk into a UserError."""
    from safetensors import SafetensorError

    from training.runs.checkpoint import CheckpointError

    try:
        yield
    except (SafetensorError, RuntimeError, CheckpointError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        needed = sum(value.nbytes for value in weights.values()) / 1e6
        free = shutil.disk_usage(out.absolute().parent).free / 1e6
        raise UserError(
            f"{out} could not be written completely, probably because the disk is full: the "
            f"weights have {needed:,.1f} MB, and {free:,.1f} MB are free in "
            f"{out.absolute().parent}. Free space, or write to another disk "
            f"({error.__cause__ or error})"
        ) from error


def write_safetensors(
    path: Path, weights: Mapping[str, torch.Tensor], cfg: Any, classes: Sequence[str] = ()
) -> None:
    """Write a .safetensors file of the weights.

    Its metadata has the configuration and, as a JSON list, the classes in the order of the scores.
    """
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    metadata = {"config": OmegaConf.to_yaml(cfg, resolve=True)}
    if classes:
        metadata["classes"] = json.dumps([*classes])
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata=metadata)


def write_state_dict(
    path: Path, weights: Mapping[str, torch.Tensor], cfg: Any, classes: Sequence[str] = ()
) -> None:
    """Write the weights alone with torch.save."""
    import torch

    with replacing(path) as partial:
        torch.save({name: value.contiguous() for name, value in weights.items()}, partial)


def write_mmaction2(
    path: Path, weights: Mapping[str, torch.Tensor], cfg: Any, classes: Sequence[str] = ()
) -> None:
    """Write the weights under "state_dict", as mmengine and mmcv read a checkpoint.

    The classes are where mmengine has them, under "meta".
    """
    import torch

    contiguous = {name: value.contiguous() for name, value in weights.items()}
    content: dict[str, Any] = {"state_dict": contiguous}
    if classes:
        content["meta"] = {"dataset_meta": {"classes": [*classes]}}
    with replacing(path) as partial:
        torch.save(content, partial)


WRITERS = {".safetensors": write_safetensors, ".pt": write_state_dict, ".pth": write_state_dict}


def writers(layout: str) -> dict[str, Any]:
    """Ending of a file's name -> its writer."""
    return dict.fromkeys((".pth", ".pt"), write_mmaction2) if layout == "mmaction2" else WRITERS
