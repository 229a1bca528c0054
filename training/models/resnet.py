"""ResNet-18 and ResNet-50 with torchvision's state-dict keys, without the classifier."""

from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbone import POOLS, Backbone

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
DEPTHS = (18, 50)
ENDS = ("layer4", "layer3", "conv4c")
WIDTHS = (64, 128, 256, 512)  # channels of the stages; the stem has the first one's
TRAIN_FROM = ("all", "layer3", "layer4", "none", "batch_norm")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18)."""

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
    """1x1, 3x3, 1x1; the 3x3 carries the stride, as in torchvision (ResNet-50)."""

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


class ResNet(Backbone):
    """Images (n, 3, H, W) to feature vectors (n, C): the last map, pooled over space.

    CARL trains the last stage and keeps the rest as pre-trained (section 3.3). Frozen stages have
    no gradients, keep their batch-norm statistics, and stay in eval mode under ``train()``.

    Args:
        depth: 18 or 50.
        train_from: first stage that is trained: "all", "layer3", "layer4" or "none"; or
            "batch_norm": all batch norms and nothing else (TCC's "only_bn").
        end: last stage, "layer4" or "layer3"; "conv4c": layer3 up to its third block (LAV, TCC).
        pool: "max", as CARL's released encoder does, or "mean", as torchvision and VCLR do.
    """

    def __init__(
        self, depth: int = 50, train_from: str = "layer4", end: str = "layer4", pool: str = "max"
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"ResNet: pool must be one of {POOLS}, got {pool!r}")
        self.pooled_by = pool
        if end not in ENDS:
            raise ValueError(f"ResNet: end must be one of {ENDS}, got {end!r}")
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {DEPTHS}, got {depth}")
        block, counts = (BasicBlock, (2, 2, 2, 2)) if depth == 18 else (Bottleneck, (3, 4, 6, 3))
        channels_in = WIDTHS[0]
        self.conv1 = nn.Conv2d(3, channels_in, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.stages = STAGES if end == "layer4" else STAGES[:-1]
        self.left_out = ("layer4.",) if end != "layer4" else ()
        if end == "conv4c":
            self.left_out += tuple(f"layer3.{block}." for block in range(3, counts[2]))
            counts = (*counts[:2], min(3, counts[2]), counts[3])
        widths = WIDTHS[: len(self.stages) - 1]
        for stage, (channels, count) in enumerate(zip(widths, counts, strict=False)):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels_in, channels, stride))
                channels_in = channels * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_features = self.out_channels = channels_in
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

        if train_from not in TRAIN_FROM:
            raise ValueError(f"ResNet: train_from must be one of {TRAIN_FROM}, got {train_from!r}")
        self._first_trained = {"layer3": 3, "layer4": 4, "none": len(STAGES)}.get(train_from, 0)
        self._only_batch_norm = train_from == "batch_norm"
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self._only_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.requires_grad_(False)

    def _frozen_modules(self) -> list[nn.Module]:
        frozen = self.stages[: self._first_trained]
        stem = [self.conv1, self.bn1] if frozen else []
        return stem + [getattr(self, name) for name in frozen[1:]]

    @property
    def frozen(self) -> bool:
        """Whether any convolution keeps the weights it started with."""
        return self._first_trained > 0 or self._only_batch_norm

    def train(self, mode: bool = True) -> "ResNet":
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _stem(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)

    @property
    def starts_frozen(self) -> bool:
        return self._first_trained > 0

    def frozen_part(self, x: Tensor) -> Tensor:
        return self._run(x, self.stages[: self._first_trained])

    def trained_part(self, x: Tensor) -> Tensor:
        """What follows, up to the last stage's map (n, C, H / 32, W / 32), or / 16."""
        return self._run(x, self.stages[self._first_trained :])

    def _run(self, x: Tensor, stages: tuple[str, ...]) -> Tensor:
        for name in stages:
            x = self._stem(x) if name == "stem" else getattr(self, name)(x)
        return x

    def pool(self, maps: Tensor) -> Tensor:
        if self.pooled_by == "mean":
            return maps.mean((2, 3))
        return F.adaptive_max_pool2d(maps, 1).flatten(1)


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)


def _downsample(channels_in: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels:
        return None
    return nn.Sequential(_conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))
