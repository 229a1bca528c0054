"""The names that other projects have for the layers of a backbone, in both directions."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from training.models import efficientnet_lite
from training.models.resnet import DEPTHS, BasicBlock, Bottleneck

Rename = Callable[[str], str]
Rules = list[tuple[str, str]]

# The children of torchvision's ResNet that have weights, by their place: LAV's and CARL's code
# build a network from the list of these children, and its names have the places.
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Layout:
    """One project's names of a backbone.

    Attributes:
        name: "own", or the project's name, for logs.
        ours: their name of an entry to this project's.
        theirs: the reverse.
    """

    name: str
    ours: Rename
    theirs: Rename


def _same(name: str) -> str:
    return name


def _by_rules(rules: Rules) -> Rename:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename


OWN = Layout("own", _same, _same)

_CHILD_OF = {child: place for place, child in CHILDREN.items()}
CHILD_NUMBERS = Layout(
    "numbered children",
    lambda name: re.sub(r"^\d+(?=\.)", lambda place: CHILDREN.get(place[0], place[0]), name),
    lambda name: re.sub(r"^\w+(?=\.)", lambda child: _CHILD_OF.get(child[0], child[0]), name),
)

# mmaction2 has a convolution and its norm in one module (mmcv's ConvModule: conv, bn); its TSM
# wraps the convolution (conv.net).
_SHORTCUT_TO = [
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"\.downsample\.1\.", ".downsample.bn."),
]
_SHORTCUT_FROM = [
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
]
MMACTION2 = Layout(
    "mmaction2",
    _by_rules(
        [
            (r"(^|\.)conv(\d)\.conv\.(?:net\.)?", r"\1conv\2."),
            (r"(^|\.)conv(\d)\.bn\.", r"\1bn\2."),
            *_SHORTCUT_FROM,
        ]
    ),
    _by_rules(
        [
            (r"(^|\.)conv(\d)\.", r"\1conv\2.conv."),
            (r"(^|\.)bn(\d)\.", r"\1conv\2.bn."),
            *_SHORTCUT_TO,
        ]
    ),
)
MMACTION2_3D = Layout(
    "mmaction2",
    _by_rules(
        [
            (r"^conv1\.conv\.", "stem.0."),
            (r"^conv1\.bn\.", "stem.1."),
            (r"\.conv(\d)\.conv\.", r".conv\1.0."),
            (r"\.conv(\d)\.bn\.", r".conv\1.1."),
            *_SHORTCUT_FROM,
        ]
    ),
    _by_rules(
        [
            (r"\.conv(\d)\.0\.", r".conv\1.conv."),
            (r"\.conv(\d)\.1\.", r".conv\1.bn."),
            (r"^stem\.0\.", "conv1.conv."),
            (r"^stem\.1\.", "conv1.bn."),
            *_SHORTCUT_TO,
        ]
    ),
)


def _timm_lite() -> Layout:
    """EfficientNet-Lite0: timm counts blocks within each stage, and names layers by their order."""
    stem = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    narrow = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
    narrow |= {"_bn2": "bn2"}
    wide = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
    wide |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    theirs, block = dict(stem), 0
    for stage, (expand, _, count, _, _) in enumerate(efficientnet_lite.BLOCKS.values()):
        for index in range(count):
            for own, timms in (wide if expand > 1 else narrow).items():
                theirs[f"_blocks.{block}.{own}"] = f"blocks.{stage}.{index}.{timms}"
            block += 1
    ours = {timms: own for own, timms in theirs.items()}

    def renamed(names: dict[str, str], name: str) -> str:
        module, _, entry = name.rpartition(".")
        # Blocks of a larger network keep their place, under a name that the loader refuses.
        other = name if names is theirs else re.sub(r"^blocks\.", "_blocks.", name)
        return f"{names[module]}.{entry}" if module in names else other

    return Layout("timm", lambda name: renamed(ours, name), lambda name: renamed(theirs, name))


TIMM_LITE = _timm_lite()

_R3D = ("r3d_18", "r3d_50")
_VIDEO = (*_R3D, "r2plus1d_18", "s3d")
_RESNETS = tuple(f"resnet{depth}" for depth in DEPTHS)
# Layout of an export -> backbone -> the names.
EXPORTS: dict[str, dict[str, Layout]] = {
    "torchvision": dict.fromkeys((*_RESNETS, *_VIDEO), OWN),
    "mmaction2": dict.fromkeys(_RESNETS, MMACTION2) | dict.fromkeys(_R3D, MMACTION2_3D),
    "timm": dict.fromkeys(_RESNETS, OWN) | {"efficientnet_lite0": TIMM_LITE},
}


def layouts_of(backbone: str) -> list[Layout]:
    """All layouts in which a weights file may have this backbone (``model.backbone``)."""
    found = [OWN]
    if backbone in _RESNETS:
        found.append(CHILD_NUMBERS)
    others = [names[backbone] for names in EXPORTS.values() if backbone in names]
    return found + [one for one in others if one is not OWN]


def network_of(names: Mapping[str, Tensor]) -> str | None:
    """``model.backbone`` of the network whose entries these are, None if it is not known.

    It is found by the blocks of each stage, so a file without the last stages also has an answer.

    Args:
        names: entries of a file, under any prefix.
    """
    places = {name.removesuffix(mark) for mark in _MARKS for name in names if name.endswith(mark)}
    for place in sorted(places, key=len):
        inside = {name.removeprefix(place) for name in names if name.startswith(place)}
        if found := _network(inside):
            return found
    return None


_MARKS = ("layer1.0.conv1.weight", "layer1.0.conv1.0.weight", "layer1.0.conv1.0.0.weight")
_MARKS += ("features.0.0.0.weight", "patch_embed.proj.weight", "_conv_stem.weight")


def _network(names: set[str]) -> str | None:
    if "_conv_stem.weight" in names:
        return "efficientnet_lite0"
    if "features.0.0.0.weight" in names and "features.5.branch0.0.weight" in names:
        return "s3d"
    if "patch_embed.proj.weight" in names:
        return "timm:NAME (a vision transformer)"
    blocks = tuple(
        len({name.split(".")[1] for name in names if name.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    run = tuple(count for count in blocks if count)
    if "stem.0.weight" in names:
        if "stem.3.weight" in names:
            return "r2plus1d_18" if run == (2, 2, 2, 2)[: len(run)] else None
        deep = "layer1.0.conv3.0.weight" in names
        depth = {(True, (3, 4, 6, 3)): "50", (False, (2, 2, 2, 2)): "18"}.get((deep, blocks))
        return f"r3d_{depth}" if depth else None
    if "conv1.weight" not in names or any("downsample.2" in name for name in names):
        return None
    kind = Bottleneck if "layer1.0.conv3.weight" in names else BasicBlock
    depths = DEPTHS | {152: (Bottleneck, (3, 8, 36, 3))}
    for depth, (block, counts) in depths.items():
        if block is kind and run and (*run[:-1],) == counts[: len(run) - 1] and _ends(run, counts):
            return f"resnet{depth}" if depth in DEPTHS else f"timm:resnet{depth}"
    return None


def _ends(run: tuple[int, ...], counts: tuple[int, ...]) -> bool:
    """Whether the last stage in a file is whole, or layer3 up to its third block (conv4c)."""
    last = counts[len(run) - 1]
    return run[-1] == last or (len(run) == 3 and run[-1] == 3)
