"""ResNet-18, 34, 50 and 101 with torchvision's state-dict keys, without the classifier."""

from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbone import Backbone, Stages

STRIDES = {"stem": 4, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
CUTS = {"conv4c": "layer3"}  # up to the third block of that stage (LAV, TCC)
WIDTHS = (64, 128, 256, 512)  # channels of the stages; the stem has as many as the first


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; the 3x3 has the stride, as in torchvision (ResNet-50 and 101)."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, channels * 4, 1)
        self.bn3 = nn.BatchNorm2d(channels * 4)
        self.downsample = _downsample(channels_in, channels * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


# Depth -> the kind of block, and the number of blocks in each stage.
DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def resnet_stages(depth: int) -> Stages:
    return Stages(f"resnet{depth}", STRIDES, CUTS)


class ResNet(Backbone):
    """Images (n, 3, H, W) to maps (n, C, H / 32, W / 32), or to maps of an earlier stage.

    Args:
        depth: 18, 34, 50 or 101.
        train_from, end, pool: see `Backbone`, where ``end`` is called ``backbone_to``. Stages are
            "stem" and "layer1" to "layer4". ``end`` may also be "conv4c", which is layer3 up to its
            third block (LAV, TCC).
    """

    def __init__(
        self, depth: int = 50, train_from: str = "layer4", end: str = "layer4", pool: str = "max"
    ) -> None:
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {tuple(DEPTHS)}, got {depth}")
        super().__init__(resnet_stages(depth), train_from, end, pool)
        block, counts = DEPTHS[depth]
        self.left_out = tuple(f"{name}." for name in STRIDES if name not in self.stages)
        if end == "conv4c":
            self.left_out += tuple(f"layer3.{block}." for block in range(3, counts[2]))
            counts = (*counts[:2], min(3, counts[2]), counts[3])
        channels_in = WIDTHS[0]
        self.conv1 = nn.Conv2d(3, channels_in, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        widths = WIDTHS[: len(self.stages) - 1]
        for stage, (channels, count) in enumerate(zip(widths, counts, strict=False)):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels_in, channels, stride))
                channels_in = channels * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_channels = channels_in
        self.draw_convolutions()
        self.choose_trained()

    def modules_of(self, name: str) -> list[nn.Module]:
        return [self.conv1, self.bn1] if name == "stem" else [getattr(self, name)]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        if name != "stem":
            return getattr(self, name)(x)
        return F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)


def _downsample(channels_in: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels:
        return None
    return nn.Sequential(_conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))
