"""A small convolutional network that keeps where things are: the demo's backbone."""

from torch import Tensor, nn

from training.models.backbone import Backbone

WIDTHS = (16, 32, 64, 128)
CHANNELS_OUT = 32


class SmallCNN(Backbone):
    """Images (n, 3, S, S) to feature vectors (n, 32 (S/16)^2), S a multiple of 16.

    Four stride-2 3x3 convolutions (16, 32, 64, 128 channels) with batch norm and ReLU, a 1x1
    convolution to 32 channels, and the map flattened: 4x4 at 64 px. A global pool would drop
    where a limb is, which is what tells one phase of an action from the next.

    Args:
        image_size: S in pixels.
        train_from: "all", or "none" to keep the initial weights.
    """

    def __init__(self, image_size: int = 64, train_from: str = "all") -> None:
        super().__init__()
        if image_size <= 0 or image_size % 16:
            raise ValueError(f"SmallCNN: image_size must be a multiple of 16, got {image_size}")
        if train_from not in ("all", "none"):
            raise ValueError(f"SmallCNN: train_from must be 'all' or 'none', got {train_from!r}")
        layers: list[nn.Module] = []
        for channels_in, channels in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [
                nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(WIDTHS[-1], CHANNELS_OUT, 1))
        self.layers = nn.Sequential(*layers)
        self.out_channels = CHANNELS_OUT
        self.out_features = CHANNELS_OUT * (image_size // 16) ** 2
        self.frozen = train_from == "none"
        self.requires_grad_(not self.frozen)

    def train(self, mode: bool = True) -> "SmallCNN":
        return super().train(mode and not self.frozen)

    @property
    def starts_frozen(self) -> bool:
        return self.frozen

    def frozen_part(self, x: Tensor) -> Tensor:
        return self.layers(x) if self.frozen else x

    def trained_part(self, x: Tensor) -> Tensor:
        """Up to the map (n, 32, S / 16, S / 16)."""
        return x if self.frozen else self.layers(x)

    def pool(self, maps: Tensor) -> Tensor:
        return maps.flatten(1)
