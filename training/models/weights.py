"""Pre-trained weights: finds the file that a recipe names, and the backbone inside it."""

import logging
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.models.backbone import Backbone
from training.models.layouts import OWN, Layout, layouts_of, network_of
from training.models.weight_file import examples, read_run_tensors
from training.support.checkpoint_files import newest_checkpoint

logger = logging.getLogger(__name__)

# Share of the backbone's entries; if more are missing, the file belongs to another network.
MAX_MISSING = 0.1
# Names of a network's moving average (encoder_k, momentum_encoder, target_net, model_ema).
_AVERAGE = re.compile(r"(^|_)(k|key|ema|momentum|target|avg|averaged?)(_|$)")


@dataclass(frozen=True)
class WeightReport:
    """What was loaded from a file, and the unmatched names on either side."""

    path: Path
    taken: str  # the common prefix of the names, including containers; "" if there is none
    loaded: int
    missing: list[str]
    unexpected: list[str]
    layout: str = OWN.name  # of the file's names

    def __str__(self) -> str:
        tops = Counter(name.partition(".")[0] for name in self.unexpected)
        unused = ", ".join(f"{top} ({count})" for top, count in tops.items())
        layout = "" if self.layout == OWN.name else f" (names of {self.layout})"
        return (
            f"{self.loaded} entries loaded from {_shown(self.taken)} of {self.path}{layout}, "
            f"{len(self.missing)} missing, {len(self.unexpected)} not used"
            f"{f': {unused}' if unused else ''}"
        )


def find_weights(weights: str | Path, backbone: Backbone) -> Path:
    """The file that ``model.weights`` names.

    "package" stands for the file of an installed package with weights of this backbone, and a run
    directory for its newest valid checkpoint; anything else is the file itself.

    Raises:
        FileNotFoundError: there is no such file or folder, or the run has no checkpoint.
        ValueError: the folder is not a run, or no installed package has weights of this backbone.
    """
    if str(weights) == "package":
        return Path(backbone.package_weights())
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(
            f"backbone weights: {path} does not exist; set model.weights to a file that you have "
            "(written by torch.save, .safetensors or .npz), a run directory, or package; nothing "
            "is downloaded"
        )
    if not path.is_dir():
        return path
    if not (path / "config.yaml").is_file():
        raise ValueError(
            f"model.weights: {path} is a folder without config.yaml, so it is not a run. Name a "
            "file, or a run directory of python -m training.train"
        )
    found = newest_checkpoint(path / "checkpoints", keys=["model"])
    if found is None:
        raise FileNotFoundError(f"model.weights: the run {path} has no checkpoint yet")
    return found[0]


def load_backbone_weights(
    backbone: Backbone, path: str | Path, key: str | None = None
) -> WeightReport:
    """Load a checkpoint into a backbone and report what matched.

    The backbone's names (torchvision's for a ResNet) are searched under any common prefix, which
    consists of containers ("state_dict", "model", "teacher") and names ("module.", "encoder_q.",
    "backbone."). The file may also have the names of mmaction2, timm or LAV's code, see
    `training.models.layouts`. If the names are found more than once, a network is preferred to its
    moving average (MoCo's and BYOL's ``encoder_k``, ``momentum``, ``target``, ``ema``); in other
    cases ``key`` must choose. SimCLR's ``v1.weight`` is read as ``conv1.weight``. Entries are
    compared after ``backbone.adapt``, which for example interpolates positions of another image
    size.

    Heads (``fc``, a projector, queues) and stages that ``model.backbone_to`` leaves out are not
    used. Batch counters may be missing, as in old files. Up to a tenth of the other entries may be
    missing, with a warning.

    An error names the recipe key to change if the file has a network that is known.

    Args:
        path: a weights file, or anything else that `find_weights` accepts.
        key: names that the prefix must contain, such as "teacher" or "teacher.backbone".

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a plain checkpoint, nothing in it matches, several places in it
            match, or the weights belong to another architecture.
    """
    path = find_weights(path, backbone)
    tensors = read_run_tensors(path, key)
    own = backbone.state_dict()
    layout, prefixes = _layout(tensors, own, backbone)
    if not prefixes:
        raise ValueError(
            f"{path}: nothing matches the backbone. The file has keys like {examples(tensors)}; "
            f"the backbone has keys like {examples(own)}{_other_network(tensors, backbone)}"
        )
    if key is not None:
        prefixes = _asked_for(key, prefixes, path)
    found = [_Candidate(prefix, layout, tensors, own, backbone) for prefix in prefixes]
    chosen = _choose([one for one in found if not one.problem], path)
    if chosen is None:
        best = max(found, key=lambda one: len(one.matching))
        raise ValueError(f"{path}: {best.problem}")
    backbone.load_state_dict(chosen.matching, strict=False)
    report = WeightReport(
        path,
        chosen.prefix,
        len(chosen.matching),
        chosen.missing,
        list(chosen.unexpected),
        layout.name,
    )
    if report.missing:
        logger.warning("%s; left as initialised: %s", report, examples(report.missing))
    return report


def common_prefix(
    tensors: dict[str, Tensor], own: dict[str, Tensor], path: Path, key: str | None = None
) -> str:
    """The prefix of most of ``own``'s names in a file that contains ``key``."""
    prefixes = _prefixes(tensors, own)
    if key is not None:
        prefixes = _asked_for(key, prefixes, path)
    return next(iter(prefixes), "")


class _Candidate:
    """The names under one prefix, compared with those of the backbone."""

    def __init__(
        self,
        prefix: str,
        layout: Layout,
        tensors: dict[str, Tensor],
        own: dict[str, Tensor],
        backbone: Backbone,
    ) -> None:
        self.prefix = prefix
        theirs = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        inside = {layout.ours(name): value for name, value in theirs.items()}
        self._in_file = {layout.ours(name): name for name in theirs}
        if "v1.weight" in inside and "conv1.weight" in own and "conv1.weight" not in inside:
            inside["conv1.weight"] = inside.pop("v1.weight")
        inside = backbone.adapt(inside)
        self.matching = {name: value for name, value in inside.items() if name in own}
        self.missing = [name for name in own if name not in inside and not is_counter(name)]
        self.unexpected = [name for name in inside if name not in own and not is_counter(name)]
        other = _other_network(inside, backbone) or _other_network(tensors, backbone)
        self.problem = self._problem(own, inside, backbone, other)

    def _problem(
        self, own: dict[str, Tensor], inside: dict[str, Tensor], backbone: Backbone, other: str
    ) -> str:
        """The reason why these are not the backbone's weights; "" if they may be."""
        of_another = f"these are weights of another architecture{other}"
        for name, value in self.matching.items():
            shown = f"{self.prefix}{self._in_file.get(name, name)}"
            if value.shape != own[name].shape:
                return (
                    f"{shown} has shape {tuple(value.shape)}, the backbone needs "
                    f"{tuple(own[name].shape)}: {of_another}"
                )
            if value.is_floating_point() != own[name].is_floating_point():
                return (
                    f"{shown} is {value.dtype}, the backbone needs {own[name].dtype}: "
                    "convert quantised or otherwise encoded weights first"
                )
        parts = {_without_number(name) for name in own}
        extra = [
            name
            for name in self.unexpected
            if _without_number(name) in parts and not name.startswith(backbone.left_out)
        ]
        if extra:
            return (
                f"{len(extra)} entries under {_shown(self.prefix)} have no place in the backbone "
                f"({examples(extra)}): {of_another}"
            )
        needed = sum(not is_counter(name) for name in own)
        if len(self.missing) > MAX_MISSING * needed:
            return (
                f"{len(self.missing)} of the backbone's {needed} entries are not under "
                f"{_shown(self.prefix)} ({examples(self.missing)}): these are weights of another "
                f"architecture, or part of one{other or _earlier_end(inside, self.missing)}"
            )
        return ""


def _other_network(tensors: dict[str, Tensor], backbone: Backbone) -> str:
    """The key that selects the network of these entries; "" if it is the backbone or unknown."""
    network = network_of(tensors)
    return "" if network in (None, backbone.name) else f"; set model.backbone={network}"


def _earlier_end(inside: dict[str, Tensor], missing: list[str]) -> str:
    """The key that selects the part of a ResNet that a file has, if it has the first stages."""
    stages = {name[:6] for name in missing if name.startswith("layer")}
    blocks = {name[:8] for name in inside if name.startswith("layer3.")}
    if stages == {"layer4"}:
        return "; set model.backbone_to=layer3"
    if stages == {"layer3", "layer4"} and len(blocks) == 3:
        return "; set model.backbone_to=conv4c"
    return ""


def _layout(
    tensors: dict[str, Tensor], own: dict[str, Tensor], backbone: Backbone
) -> tuple[Layout, dict[str, int]]:
    """The layout in which most of the backbone's names are in a file, and their prefixes."""
    found = (
        (layout, _prefixes(tensors, {layout.theirs(name) for name in own}))
        for layout in layouts_of(backbone.name)
    )
    return max(found, key=lambda one: max(one[1].values(), default=0))


def _prefixes(tensors: dict[str, Tensor], own: Container[str]) -> dict[str, int]:
    """Each prefix of a name of the model and how often it occurs, the most frequent first."""
    counts: Counter[str] = Counter()
    for place in tensors:
        start = 0
        while True:
            if place[start:] in own and not is_counter(place):
                counts[place[:start]] += 1
            start = place.find(".", start) + 1
            if not start:
                break
    return dict(counts.most_common())


def _asked_for(key: str, prefixes: dict[str, int], path: Path) -> dict[str, int]:
    asked = {p: count for p, count in prefixes.items() if f".{key.strip('.')}." in f".{p}"}
    if not asked:
        most = max(prefixes.values(), default=0)
        there = [_shown(prefix) for prefix, count in prefixes.items() if 2 * count >= most]
        raise ValueError(
            f"{path}: model.weights_key={key} is not in any prefix of the model's names; they are "
            f"under {' and '.join(there)}"
        )
    return asked


def _choose(fitting: list[_Candidate], path: Path) -> _Candidate | None:
    trained = [one for one in fitting if not any(map(_AVERAGE.search, one.prefix.split(".")))]
    fitting = trained or fitting
    if any(not _same(fitting[0], other) for other in fitting[1:]):
        names = " and ".join(_shown(one.prefix) for one in fitting)
        raise ValueError(
            f"{path}: the file has the backbone's names more than once, under {names}; choose with "
            f"model.weights_key={fitting[0].prefix.strip('.') or fitting[1].prefix.strip('.')}"
        )
    return fitting[0] if fitting else None


def _same(one: _Candidate, other: _Candidate) -> bool:
    """Whether two places hold the same values, as for a module with two names."""
    return one.matching.keys() == other.matching.keys() and all(
        torch.equal(value, other.matching[name]) for name, value in one.matching.items()
    )


def is_counter(name: str) -> bool:
    """Whether an entry is a batch norm's batch counter, which old files do not have."""
    return name.endswith("num_batches_tracked")


def _without_number(name: str) -> str:
    """The part of a network that a name belongs to: "layer" for "layer4.0.conv1.weight"."""
    return name.partition(".")[0].rstrip("0123456789")


def _shown(prefix: str) -> str:
    return f"{prefix}*" if prefix else "the file's top level"
