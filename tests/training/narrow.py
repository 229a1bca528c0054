"""Networks with few channels, but with the blocks and names of the real ones."""

import pytest

from training.models import ResNet, resnet, resnet3d
from training.models.resnet3d import ResNet3d

NARROW_CNN = (16, 16, 16, 16)
NARROW_RESNET = (16, 32, 64, 128)  # with 4, oneDNN aborts in bf16


def narrow_resnet(*arguments: object) -> ResNet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "WIDTHS", NARROW_RESNET)
        return ResNet(*arguments)


def narrow_resnet3d(*arguments: object) -> ResNet3d:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet3d, "WIDTHS", NARROW_RESNET)
        return ResNet3d(*arguments)
