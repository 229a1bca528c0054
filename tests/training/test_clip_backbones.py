"""Networks of clips: torchvision's names and values, stages, chunks, whole videos, errors."""

import copy

import pytest
import torch
from narrow import narrow_resnet3d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.models import build_model
from training.models.resnet3d import NETWORKS, ResNet3d
from training.models.s3d import S3D
from training.models.small_cnn3d import SmallCNN3d
from training.models.vclr import VCLREncoder
from training.recipe.load import ConfigError, load_config
from training.support.command import UserError


def numbers_of(shape: torch.Size, place: int) -> Tensor:
    """Fixed numbers in [0, 1) without visible order, float64."""
    count = torch.arange(place, place + shape.numel(), dtype=torch.float64)
    return count.square_().mul_(0.618033988749895).frac_().view(shape)


def fill(network: nn.Module) -> None:
    """Fixed weights and statistics by their order in the state dict."""
    for place, (name, tensor) in enumerate(network.state_dict().items()):
        if tensor.dim() == 0:  # a batch counter
            tensor.zero_()
            continue
        numbers = numbers_of(tensor.shape, place)
        if tensor.dim() > 1:
            numbers = numbers.sub_(0.5).mul_((24 / tensor[0].numel()) ** 0.5)
        elif name.endswith((".weight", ".running_var")):
            numbers = numbers + 0.5
        else:
            numbers = numbers - 0.5
        tensor.copy_(numbers)


# Root mean square of the map of `fill`'s network, and the means of its four quarters of channels:
# computed with torchvision 0.28.0 and torch 2.13.0 in fp32.
VALUES = {
    "r3d_18": (7.359603, 4.415282, 4.258363, 4.353904, 3.864877),
    "r3d_50": (1364.997, 857.2947, 891.3178, 790.3815, 795.8047),
    "r2plus1d_18": (15.02522, 8.519786, 8.544467, 9.143536, 8.804397),
    "s3d": (3.199181, 2.374472, 1.539542, 0.4900389, 1.470249),
}


def network_of(name: str, **options: str) -> ResNet3d | S3D:
    return S3D(**options) if name == "s3d" else ResNet3d(name, **options)


@pytest.mark.parametrize("name", VALUES)
def test_networks_compute_what_torchvisions_do(name):
    with torch.device("meta"):  # without drawing weights
        network = network_of(name).eval()
    fill(network.to_empty(device="cpu"))
    clip = (2 * numbers_of(torch.Size((1, 3, 8, 32, 32)), 0) - 1).float()
    with torch.no_grad():
        maps = network.maps(clip)
    got = [maps.square().mean().sqrt(), *maps.mean((0, 2, 3, 4)).view(4, -1).mean(1)]
    torch.testing.assert_close(torch.stack(got), torch.tensor(VALUES[name]), rtol=1e-4, atol=1e-5)
