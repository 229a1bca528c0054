"""A small convolutional network that keeps positions in the frame: the demo's backbone."""

from torch import Tensor, nn

from training.models.backbone import Backbone, Stages

WIDTHS = (16, 32, 64, 128)
CHANNELS_OUT = 32
STAGES = Stages("small_cnn", {"layers": 16})


class SmallCNN(Backbone):
    """Images (n, 3, S, S) to feature vectors (n, 32 (S/16)^2), S a multiple of 16.

    Four stride-2 3x3 convolutions (16, 32, 64, 128 channels) with batch norm and ReLU, a 1x1
    convolution to 32 channels, and the flattened map: 4x4 at 64 px. Global pooling would lose the
    position of a limb, which distinguishes one phase of an action from the next. So ``model.pool``
    and ``model.backbone_to`` have no effect here.

    Args:
        image_size: S in pixels.
        train_from: "all", "none" (keep the initial weights) or "batch_norm".
    """

    def __init__(self, image_size: int = 64, train_from: str = "all") -> None:
        if image_size <= 0 or image_size % 16:
            raise ValueError(f"SmallCNN: image_size must be a multiple of 16, got {image_size}")
        super().__init__(STAGES, train_from)
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
        self._fields = (image_size // 16) ** 2
        self.choose_trained()

    @property
    def out_features(self) -> int:
        return self.out_channels * self._fields

    def modules_of(self, name: str) -> list[nn.Module]:
        return [self.layers]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        """Images to the map (n, 32, S / 16, S / 16)."""
        return self.layers(x)

    def pool(self, maps: Tensor) -> Tensor:
        return maps.flatten(1)
