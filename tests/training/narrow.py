"""ResNets of few channels: with the blocks and the names of the real ones."""

import pytest

from training.models import ResNet, resnet


def narrow_resnet(*arguments: object) -> ResNet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "WIDTHS", (16, 32, 64, 128))  # with 4, oneDNN aborts in bf16
        return ResNet(*arguments)
