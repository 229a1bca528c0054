"""Networks with few channels, but with the blocks and names of the real ones."""

import pytest

from training.models import ResNet, resnet

NARROW_CNN = (16, 16, 16, 16)
NARROW_RESNET = (16, 32, 64, 128)  # with 4, oneDNN aborts in bf16


def narrow_resnet(*arguments: object) -> ResNet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "WIDTHS", NARROW_RESNET)
        return ResNet(*arguments)
