"""S3D with torchvision's state-dict keys, without the classifier."""

import torch
from torch import Tensor, nn

from training.models.backbone import Backbone, Stages
from training.models.resnet3d import KINETICS_MEAN, KINETICS_STD

# Stage -> its last layer in torchvision's ``features``; max pools start a stage.
ENDS = {"conv1": 0, "conv2": 3, "mixed3": 6, "mixed4": 12, "mixed5": 15}
CHANNELS = {"conv1": 64, "conv2": 192, "mixed3": 480, "mixed4": 832, "mixed5": 1024}
STAGES = Stages("s3d", {"conv1": 2, "conv2": 4, "mixed3": 8, "mixed4": 16, "mixed5": 32})
# Channels of the branches of an inception block: 1x1x1; 1x1x1 and 3x3x3, twice; pool and 1x1x1.
INCEPTION = {
    5: (192, 64, (96, 128), (16, 32), 32),
    6: (256, 128, (128, 192), (32, 96), 64),
    8: (480, 192, (96, 208), (16, 48), 64),
    9: (512, 160, (112, 224), (24, 64), 64),
    10: (512, 128, (128, 256), (24, 64), 64),
    11: (512, 112, (144, 288), (32, 64), 64),
    12: (528, 256, (160, 320), (32, 128), 128),
    14: (832, 256, (160, 320), (32, 128), 128),
    15: (832, 384, (192, 384), (48, 128), 128),
}
# The last pool has no padding and needs two frames and 2 x 2 pixels of the map before it.
LEAST_FRAMES, LEAST_PIXELS = 5, 17


def least_clip(stages: tuple[str, ...]) -> tuple[int, int]:
    """Frames and pixels per side of the smallest clip that these stages accept."""
    return (LEAST_FRAMES, LEAST_PIXELS) if "mixed5" in stages else (1, 1)


class Inception3d(nn.Module):
    """Four branches, concatenated; their 3x3x3 convolutions are 1x3x3 and 3x1x1."""

    def __init__(
        self,
        channels_in: int,
        first: int,
        second: tuple[int, int],
        third: tuple[int, int],
        fourth: int,
    ) -> None:
        super().__init__()
        self.branch0 = _unit(channels_in, first)
        self.branch1 = nn.Sequential(_unit(channels_in, second[0]), _separable(*second, 3))
        self.branch2 = nn.Sequential(_unit(channels_in, third[0]), _separable(*third, 3))
        self.branch3 = nn.Sequential(
            nn.MaxPool3d(3, stride=1, padding=1), _unit(channels_in, fourth)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch0, self.branch1, self.branch2, self.branch3)
        return torch.cat([branch(x) for branch in branches], 1)


class S3D(Backbone):
    """Clips (n, 3, L, H, W) to maps (n, 1024, L / 8, H / 32, W / 32), sizes rounded down.

    Parameters have the names, shapes and initialisation of torchvision's ``s3d`` without its
    classifier, and batch norms its epsilon and momentum (0.001). Pixels are normalised as for
    torchvision's weights of Kinetics. Clips need at least 5 frames of 17 px if all stages run.

    Args:
        train_from, end, pool: see `Backbone`, where ``end`` is called ``backbone_to``. Stages are
            "conv1", "conv2", "mixed3", "mixed4" and "mixed5" (S3D's blocks). "mean" is the plain
            mean over time and space; torchvision's classifier sees means of 2 x 7 x 7 windows.
    """

    clips = True
    pixel_mean = KINETICS_MEAN
    pixel_std = KINETICS_STD

    def __init__(self, train_from: str = "all", end: str = "last", pool: str = "mean") -> None:
        super().__init__(STAGES, train_from, end, pool)
        layers, stop = _layers(), ENDS[self.stages[-1]] + 1
        self.left_out = tuple(f"features.{n}." for n in range(stop, len(layers)))
        self.features = nn.Sequential(*layers[:stop])
        self.out_channels = CHANNELS[self.stages[-1]]
        self.choose_trained()

    def modules_of(self, name: str) -> list[nn.Module]:
        before = [end for end in ENDS.values() if end < ENDS[name]]
        return [*self.features[max(before, default=-1) + 1 : ENDS[name] + 1]]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        for module in self.modules_of(name):
            x = module(x)
        return x


def _layers() -> list[nn.Module]:
    blocks = {number: Inception3d(*channels) for number, channels in INCEPTION.items()}
    return [
        _separable(3, 64, 7, 2),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        _unit(64, 64),
        _separable(64, 192, 3),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        blocks[5],
        blocks[6],
        nn.MaxPool3d(3, 2, 1),
        *(blocks[number] for number in range(8, 13)),
        nn.MaxPool3d(2, 2),
        blocks[14],
        blocks[15],
    ]


def _unit(
    channels_in: int,
    channels: int,
    kernel: tuple[int, int, int] = (1, 1, 1),
    stride: tuple[int, int, int] = (1, 1, 1),
) -> nn.Sequential:
    padding = tuple(size // 2 for size in kernel)
    return nn.Sequential(
        nn.Conv3d(channels_in, channels, kernel, stride, padding, bias=False),
        nn.BatchNorm3d(channels, eps=0.001, momentum=0.001),
        nn.ReLU(inplace=True),
    )


def _separable(channels_in: int, channels: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution over space, then one over time."""
    return nn.Sequential(
        _unit(channels_in, channels, (1, size, size), (1, stride, stride)),
        _unit(channels, channels, (size, 1, 1), (stride, 1, 1)),
    )
