"""R3D-18, R3D-50 and R(2+1)D-18 with the state-dict keys of torchvision's VideoResNet."""

from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbone import Backbone, Stages

# Mean and standard deviation of RGB in torchvision's transforms of videos (VideoClassification).
KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)
STRIDES = {"stem": 2, "layer1": 2, "layer2": 4, "layer3": 8, "layer4": 16}
WIDTHS = (64, 128, 256, 512)  # channels of the stages; the stem has as many as the first


class BasicBlock3d(nn.Module):
    """Two convolutions over space and time, 3x3x3 or factorised."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, *, factorised: bool) -> None:
        super().__init__()
        between = _between(channels_in, channels) if factorised else None
        self.conv1 = nn.Sequential(
            _conv(channels_in, channels, stride, between),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(_conv(channels, channels, 1, between), nn.BatchNorm3d(channels))
        self.downsample = _downsample(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(self.conv1(x)) + shortcut)


class Bottleneck3d(nn.Module):
    """1x1x1, 3x3x3, 1x1x1; the 3x3x3 has the stride, as in torchvision."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, *, factorised: bool) -> None:
        super().__init__()
        between = _between(channels_in, channels) if factorised else None
        channels_out = channels * self.expansion
        self.conv1 = nn.Sequential(
            nn.Conv3d(channels_in, channels, 1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            _conv(channels, channels, stride, between),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )
        self.conv3 = nn.Sequential(
            nn.Conv3d(channels, channels_out, 1, bias=False), nn.BatchNorm3d(channels_out)
        )
        self.downsample = _downsample(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


# Name -> kind of block, blocks of each stage, and whether convolutions are factorised (2+1)D.
NETWORKS = {
    "r3d_18": (BasicBlock3d, (2, 2, 2, 2), False),
    "r3d_50": (Bottleneck3d, (3, 4, 6, 3), False),
    "r2plus1d_18": (BasicBlock3d, (2, 2, 2, 2), True),
}


def resnet3d_stages(name: str) -> Stages:
    return Stages(name, STRIDES)


class ResNet3d(Backbone):
    """Clips (n, 3, L, H, W) to maps (n, C, L / 8, H / 16, W / 16), sizes rounded up.

    Accepts clips of any length, also of one frame. Time has stride 1 up to layer1 and is halved by
    each later stage. Parameters have the names, shapes and initialisation of torchvision's
    VideoResNet, without its classifier: ``r3d_18``, ``r2plus1d_18``, and for ``r3d_50``
    VideoResNet with its Bottleneck, Conv3DSimple and (3, 4, 6, 3) blocks. Pixels are normalised as
    for torchvision's weights of Kinetics.

    Args:
        name: "r3d_18", "r3d_50" or "r2plus1d_18".
        train_from, end, pool: see `Backbone`, where ``end`` is called ``backbone_to``. Stages are
            "stem" and "layer1" to "layer4". "mean" is torchvision's pooling.
    """

    clips = True
    pixel_mean = KINETICS_MEAN
    pixel_std = KINETICS_STD

    def __init__(
        self,
        name: str = "r3d_18",
        train_from: str = "all",
        end: str = "last",
        pool: str = "mean",
    ) -> None:
        if name not in NETWORKS:
            raise ValueError(f"ResNet3d: name must be one of {tuple(NETWORKS)}, got {name!r}")
        super().__init__(resnet3d_stages(name), train_from, end, pool)
        block, counts, factorised = NETWORKS[name]
        self.left_out = tuple(f"{name}." for name in STRIDES if name not in self.stages)
        channels_in = WIDTHS[0]
        self.stem = _stem(channels_in, factorised)
        widths = WIDTHS[: len(self.stages) - 1]
        for stage, (channels, count) in enumerate(zip(widths, counts, strict=False)):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels_in, channels, stride, factorised=factorised))
                channels_in = channels * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_channels = channels_in
        self.draw_convolutions()
        self.choose_trained()

    def modules_of(self, name: str) -> list[nn.Module]:
        return [getattr(self, name)]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, name)(x)


def _stem(channels: int, factorised: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    if factorised:
        layers += [
            nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(45),
            nn.ReLU(inplace=True),
            nn.Conv3d(45, channels, (3, 1, 1), 1, (1, 0, 0), bias=False),
        ]
    else:
        layers.append(nn.Conv3d(3, channels, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False))
    return nn.Sequential(*layers, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


def _between(channels_in: int, channels: int) -> int:
    """Channels between the parts of a (2+1)D convolution: as many parameters as 3x3x3 has."""
    return channels_in * channels * 27 // (channels_in * 9 + 3 * channels)


def _conv(channels_in: int, channels: int, stride: int, between: int | None) -> nn.Module:
    """3x3x3, or 1x3x3 and 3x1x1 with ``between`` channels in the middle."""
    if between is None:
        return nn.Conv3d(channels_in, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv3d(channels_in, between, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(between),
        nn.ReLU(inplace=True),
        nn.Conv3d(between, channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


def _downsample(channels_in: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels:
        return None
    return nn.Sequential(
        nn.Conv3d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm3d(channels)
    )
