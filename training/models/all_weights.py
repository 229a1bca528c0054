"""Loads all layers of a model from the weights of another run, not only the backbone."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from training.models.released import Released, find_released
from training.models.weight_file import examples, read_run_tensors
from training.models.weights import WeightReport, common_prefix, is_counter

if TYPE_CHECKING:
    from training.recipe.schema import Config

logger = logging.getLogger(__name__)

# Not loaded: VCLR's queues hold keys of the other run's videos, and the counter its steps.
_STAYS = re.compile(r"queues\.|momentum\.n_averaged$")
_MOCO_V3 = re.compile(r"(^|\.)base_encoder\.")
# The heads of losses, see `training.models.heads`; VCLR's are in its encoder.
_HEAD = re.compile(r"heads\.(\w+)\.")

# Part of a model -> keys that set its sizes, and keys that set which layers it has.
_KEYS = [
    (r"(.*\.)?backbone\.", [], ["model.backbone", "model.backbone_to"]),
    (r"fc_block\.", ["model.fc_size", "model.hidden_size"], ["model.fc_layers"]),
    (r"layers\.", ["model.hidden_size", "model.ff_size"], ["model.layers"]),
    (r"convolutions\.", ["model.conv3d_size"], ["model.conv3d_layers"]),
    (
        r"embedding\.",
        ["model.embedding_size", "model.hidden_size", "model.fc_size"],
        ["model.encoder", "model.fc_layers"],
    ),
    (
        r"projection\.",
        ["model.embedding_size", "model.projection_hidden", "model.projection_size"],
        ["model.encoder"],
    ),
    (
        r".*\.heads\.",
        ["model.projection_hidden", "model.projection_size"],
        ["the weights under loss.vclr"],
    ),
    (r"order\.", ["model.projection_size", "data.segments"], ["loss.vclr.order"]),
]

_FEATURES = ["model.backbone", "model.pool", "augmentation.size"]


def load_all_weights(
    model: nn.Module, path: Path, config: "Config", key: str | None = None
) -> WeightReport:
    """Load every layer of a model from a run's checkpoint or export, or a converted one of CARL.

    Names must be those of the model's state dict, under any common prefix: none may be missing or
    left over, and all shapes must be equal. VCLR's queues are not loaded, because they hold keys of
    the other run's videos. A head of a loss may differ: it then keeps its initial values, which the
    log tells. The file's heads of other losses are not used.

    A model of VCLR also accepts a checkpoint of VCLR's or SeCo's code, or of MoCo v2, and a conv3d
    encoder one of LAV's code. Heads that such a file lacks, or has in another shape, keep their
    initial values.

    Args:
        key: names that the prefix must contain, as in `load_backbone_weights`.

    Raises:
        ValueError: an entry does not fit; the message names the first one and the key to change.
    """
    tensors = read_run_tensors(path, key)
    own = {name: value for name, value in model.state_dict().items() if not _STAYS.match(name)}
    released = find_released(tensors, own, key)
    if released is None and any(map(_MOCO_V3.search, tensors)):
        raise ValueError(
            f"{path}: this is a file of MoCo v3, from which only the backbone can be loaded: set "
            "model.weights_parts=backbone"
        )
    if released is not None:
        prefix = ""  # the names in errors are those of this project
        own, inside = _without_unlike(released.tensors, own, released, path)
    else:
        prefix = common_prefix(tensors, own, path, key)
        inside = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix) and not _STAYS.match(name.removeprefix(prefix))
        }
    fresh = _unlike_heads(inside, own)
    for head in sorted(fresh):
        logger.info(
            "head of loss.%s: starts from random values, as %s has none like it", head, path
        )
    own = {name: value for name, value in own.items() if _head_of(name) not in fresh}
    for name, value in own.items():
        theirs = inside.get(name)
        if theirs is None and not is_counter(name):
            raise _misfit(path, f"it has no {prefix}{name}", name, None, value, config)
        if theirs is not None and theirs.shape != value.shape:
            shapes = f"{tuple(theirs.shape)}, this model needs {tuple(value.shape)}"
            what = f"{prefix}{name} has shape {shapes}"
            raise _misfit(path, what, name, theirs, value, config)
    left = [name for name in inside if name not in own and not _HEAD.match(name)]
    if left:
        what = f"{len(left)} entries have no place in this model ({examples(left)})"
        raise _misfit(path, what, left[0], inside[left[0]], None, config)
    taken = {name: inside[name] for name in own if name in inside}
    model.load_state_dict(taken, strict=False)
    if released is not None:
        used = {id(value) for value in taken.values()}
        rest = [name for name, value in tensors.items() if id(value) not in used]
        return WeightReport(path, released.place, len(taken), [], rest, released.source)
    return WeightReport(path, prefix, len(taken), [], [])


def _without_unlike(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], released: Released, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's and the file's entries without the heads that differ, which are logged whole."""

    def head(name: str) -> str:
        """The head of an entry, without the number of the layer: "encoder.heads.inter"."""
        return name.rpartition(".")[0].rstrip(".0123456789")

    def optional(names: Iterable[str]) -> set[str]:
        return {name for name in names if re.match(released.may_lack, name)}

    unlike = {
        head(name)
        for name in optional(ours) | optional(theirs)
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    }
    logger.info("%s is a file of %s: %s", path, released.source, released.note)
    for name in sorted(unlike & {head(one) for one in ours}):
        logger.info("%s starts from random values, as %s has none like it", name, path)
    return tuple(
        {
            name: value
            for name, value in side.items()
            if not (re.match(released.may_lack, name) and head(name) in unlike)
        }
        for side in (ours, theirs)
    )


def _head_of(name: str) -> str | None:
    """The loss whose head an entry belongs to."""
    found = _HEAD.match(name)
    return found[1] if found else None


def _unlike_heads(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> set[str]:
    """The losses of whose heads the file lacks an entry or has one of another shape."""
    return {
        head
        for name, value in ours.items()
        if (head := _head_of(name)) and (name not in theirs or theirs[name].shape != value.shape)
    }


def _misfit(
    path: Path,
    what: str,
    name: str,
    theirs: Tensor | None,
    ours: Tensor | None,
    config: Any,
) -> ValueError:
    sizes, layers = next(
        ((sizes, layers) for part, sizes, layers in _KEYS if re.match(part, name)),
        ([], ["model.encoder"]),
    )
    changes = layers
    if theirs is not None and ours is not None:
        changes = _sizes(sizes, theirs, ours, config) or _FEATURES
    return ValueError(
        f"{path}: {what}. model.weights_parts=all needs a model with the same layers: change "
        f"{' or '.join(changes)}, or load the backbone alone with model.weights_parts=backbone"
    )


def _sizes(keys: list[str], theirs: Tensor, ours: Tensor, config: Any) -> list[str]:
    """Recipe keys that set the size that differs, with the value that the file needs."""
    found = []
    for own, needed in zip(ours.shape, theirs.shape, strict=False):
        for key in keys:
            section, _, name = key.partition(".")
            value = getattr(getattr(config, section), name)
            times = 3 if own == 3 * value else 1  # queries, keys and values are one matrix
            if own != needed and own == times * value and f"{key}={needed // times}" not in found:
                found.append(f"{key}={needed // times}")
    return found
