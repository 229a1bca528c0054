"""Whole networks from files of released code: VCLR's, SeCo's and LAV's, and MoCo v2 for VCLR."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from training.models.layouts import CHILD_NUMBERS

# The heads of VCLR's code (fc_NAME) -> the losses of VCLREncoder.heads.
VCLR_HEADS = {"inter": "inter", "intra": "intra", "tsn": "video", "order": "order"}
_VCLR_NAME = re.compile(r"(?:module\.)?(fc_(inter|intra|tsn|order)|fc_order_classifier)\.(.*)")

# LAV's ConvEmbedder -> ContextEncoder; the layers without weights have numbers of their own here.
_LAV_LAYERS = {
    "conv1": "convolutions.0",
    "bn1": "convolutions.1",
    "conv2": "convolutions.3",
    "bn2": "convolutions.4",
    "fc1": "embedding.1",
    "fc2": "embedding.4",
    "embedding_layer": "embedding.6",
}


@dataclass(frozen=True)
class Released:
    """A file's tensors under this project's names.

    Attributes:
        source: whose file it is, for logs.
        place: common prefix of the entries in the file, for logs; of two "model.* and model_ema.".
        tensors: entries by their name in the model.
        may_lack: pattern of the model's entries that such a file may lack, or have in another
            shape. They keep their initial values.
        note: what of the file is not used, for logs.
    """

    source: str
    place: str
    tensors: dict[str, Tensor]
    may_lack: str
    note: str


def find_released(
    tensors: dict[str, Tensor], own: Collection[str], key: str | None = None
) -> Released | None:
    """The tensors of a file of released code for a model with the names ``own``.

    None if the file is not of one of these projects, or the model not of this kind.

    Args:
        tensors: the file's entries by their dotted path, as `read_tensors` returns them.
        key: ``model.weights_key``: the network to use of a file of VCLR or SeCo, such as
            "model_ema". Default: the trained one.
    """
    if any(name.startswith("encoder.backbone.") for name in own):
        return _vclr(tensors, key or "model") or (_moco(tensors) if key is None else None)
    if "convolutions.0.weight" in own:
        return _lav(tensors)
    return None


def _vclr(tensors: dict[str, Tensor], network: str) -> Released | None:
    """VCLR's and SeCo's current.pth: ``model`` and its moving average ``model_ema``."""
    online = _vclr_network(tensors, f"{network}.")
    if "heads.inter.0.weight" not in online:
        return None
    order = {k: online.pop(k) for k in [*online] if k.startswith("order.")}
    average = _vclr_network(tensors, "model_ema.")
    places = dict.fromkeys([f"{network}.", "model_ema."] if average else [f"{network}."])
    average = average or dict(online)
    average = {name: value for name, value in average.items() if not name.startswith("order.")}
    return Released(
        "VCLR's code" if "heads.video.0.weight" in online else "SeCo's code",
        "* and ".join(places),
        {f"encoder.{name}": value for name, value in online.items()}
        | {f"momentum.module.{name}": value for name, value in average.items()}
        | order,
        r"(encoder|momentum\.module)\.heads\.|order\.",
        "its queues are not used, because the file does not say which key is the oldest",
    )


def _vclr_network(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        if not name.startswith(prefix):
            continue
        inside = name.removeprefix(prefix)
        layer = _VCLR_NAME.fullmatch(inside)
        if layer is None:
            found[f"backbone.{inside.removeprefix('module.')}"] = value
        elif layer[2] is None:
            found[f"order.{layer[3]}"] = value
        else:
            found[f"heads.{VCLR_HEADS[layer[2]]}.{layer[3]}"] = value
    return found


def _moco(tensors: dict[str, Tensor]) -> Released | None:
    """MoCo v2 as VCLR's code starts from it: its head initialises all four, and both networks."""
    prefix = "state_dict.module.encoder_q."
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if "fc.2.weight" not in inside:
        return None
    found = {}
    for network in ("encoder", "momentum.module"):
        for name, value in inside.items():
            if not name.startswith("fc."):
                found[f"{network}.backbone.{name}"] = value
                continue
            for head in VCLR_HEADS.values():
                found[f"{network}.heads.{head}.{name.removeprefix('fc.')}"] = value
    return Released(
        "MoCo v2",
        prefix,
        found,
        r"(encoder|momentum\.module)\.heads\.|order\.",
        "its head initialises all heads; its moving average and its queue are not used",
    )


def _lav(tensors: dict[str, Tensor]) -> Released | None:
    """LAV's Lightning file: base_cnn, the numbered layers of a ResNet-50, and emb."""
    base, found = "base_cnn.base_model.", {}
    places = [name.removesuffix(f"{base}0.weight") for name in tensors if f"{base}0.w" in name]
    for name, value in tensors.items():
        if not places or not name.startswith(places[0]):
            continue
        inside = name.removeprefix(places[0])
        if inside.startswith(base):
            found[f"backbone.{CHILD_NUMBERS.ours(inside.removeprefix(base))}"] = value
        elif inside.startswith("emb."):
            layer, _, entry = inside.removeprefix("emb.").partition(".")
            found[f"{_LAV_LAYERS.get(layer, layer)}.{entry}"] = value
    if "backbone.conv1.weight" not in found or "convolutions.0.weight" not in found:
        return None
    return Released("LAV's code", places[0], found, r"projection\.", "it has no projection head")
