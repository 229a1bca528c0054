"""Converts a checkpoint of CARL_code to a run directory whose weights are plain tensors."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.carl_code.recipe import Converted, convert_config
from training.models.layouts import CHILDREN
from training.support.command import UserError

# layer4 is not among the children of the released backbone.
_BACKBONE = {place: child for place, child in CHILDREN.items() if child != "layer4"}
_LAYER = r"embed\.video_encoder\.enc_layers\.(\d+)\."
# Regular expression of a released name -> our name; the rest of the name stays.
_NAMES = [
    (re.compile(r"res_finetune\."), "backbone.layer4."),
    (re.compile(r"embed\.fc_layers\."), "fc_block."),
    (re.compile(r"embed\.embedding_layer\."), "embedding."),
    (re.compile(r"ssl_projection\.net\."), "projection."),
    (re.compile(r"classifier\.fc_layers\."), "heads.classification."),
    (re.compile(_LAYER + r"res_layer0\.norm\."), r"layers.\1.attention_norm."),
    (re.compile(_LAYER + r"res_layer1\.norm\."), r"layers.\1.ff_norm."),
    (re.compile(_LAYER + r"self_att\.linear_d2Q\."), r"layers.\1.out."),
    (re.compile(_LAYER + r"feed_forward\.fc([12])\."), r"layers.\1.ff\2."),
]
_REFUSED = re.compile(r"\bGLOBAL ([\w.]+)")
_PART_OF_QKV = re.compile(_LAYER + r"self_att\.linear_([QKV])2d\.(weight|bias)")


def read_checkpoint(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """(state dict, configuration); only tensors, EasyDict and Namespace are unpickled.

    Raises UserError for anything else.
    """
    # easydict need not be installed: an OrderedDict accepts the same items.
    allowed = [(OrderedDict, "easydict.EasyDict"), argparse.Namespace]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except Exception as error:
        refused = _REFUSED.search(str(error))
        reason = (
            f"it would run {refused[1]}, which is not a plain value"
            if refused
            else "it is not a file of torch.save, or is cut off"
        )
        raise UserError(f"{path} cannot be read as a checkpoint of CARL_code: {reason}") from error
    if not isinstance(content, Mapping) or not {"model_state", "cfg"} <= content.keys():
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise UserError(f"{path} holds {keys}; a checkpoint of CARL_code has model_state and cfg")
    return content["model_state"], content["cfg"]


def convert_checkpoint(path: Path) -> tuple[Converted, dict[str, Tensor]]:
    """The recipe of a released checkpoint, and its weights under this project's names.

    A checkpoint with MODEL.PROJECTION false has no weights of the projection head.

    Raises UserError for the convolutional encoder, or if names or shapes differ from the release.
    """
    state, config = read_checkpoint(path)
    converted = convert_config(config)
    if converted.recipe["model"].get("encoder") == "conv3d":
        raise UserError(
            f"{path}: got a checkpoint of the conv encoder; only the transformer encoder can be "
            "converted"
        )
    if converted.recipe["model"].get("train_from", "layer4") != "layer4":
        raise UserError(f"{path}: only checkpoints with MODEL.BASE_MODEL.LAYER 3 can be converted")
    linear = 4 * converted.recipe["model"]["fc_layers"]
    out: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    left = []
    for name, value in state.items():
        name = name.removeprefix("module.")
        if found := _PART_OF_QKV.fullmatch(name):
            layer, which, kind = found.groups()
            parts.setdefault((layer, kind), {})[which] = value
        elif new := _renamed(name, linear):
            out[new] = value
        else:
            left.append(name)
    for (layer, kind), three in parts.items():
        if three.keys() != set("QKV"):
            raise UserError(f"{path}: attention of layer {layer} lacks {set('QKV') - three.keys()}")
        out[f"layers.{layer}.qkv.{kind}"] = torch.cat([three[which] for which in "QKV"])
    if left:
        raise UserError(f"{path}: unknown weights {', '.join(left[:5])} ({len(left)} in total)")
    if "heads.classification.1.weight" in out:
        classes = len(out["heads.classification.1.weight"])
        converted.recipe["loss"]["classification"]["classes"] = classes
    return converted, out


def _renamed(name: str, linear: int) -> str | None:
    if name.startswith("backbone."):
        _, child, rest = name.split(".", 2)
        return f"backbone.{_BACKBONE[child]}.{rest}" if child in _BACKBONE else None
    if name.startswith("embed.video_emb."):
        return name.replace("embed.video_emb.", f"fc_block.{linear}.")
    for pattern, ours in _NAMES:
        if pattern.match(name):
            return pattern.sub(ours, name, count=1)
    return None
