"""A small 3-D convolutional network for short clips: tests and generated videos."""

from torch import Tensor, nn

from training.models.backbone import Backbone, Stages

WIDTHS = (16, 32, 64)
TIME_STRIDES = (1, 2, 2)
CHANNELS_OUT = 16
STAGES = Stages("small_cnn3d", {"layers": 8})


class SmallCNN3d(Backbone):
    """Clips (n, 3, L, S, S) to feature vectors (n, 16 (S/8)^2), S a multiple of 8, L at least 1.

    Three 3x3x3 convolutions (16, 32, 64 channels) with batch norm and ReLU; each halves the sides,
    and the second and third halve the number of frames. A 1x1x1 convolution to 16 channels follows.
    The vector is the mean of the map over time, flattened: 4x4 fields at 32 px. Pooling over space
    would lose the positions of limbs. So ``model.pool`` and ``model.backbone_to`` have no effect.

    Args:
        image_size: S in pixels.
        train_from: "all", "none" (keep the initial weights) or "batch_norm".
    """

    clips = True

    def __init__(self, image_size: int = 32, train_from: str = "all") -> None:
        if image_size <= 0 or image_size % 8:
            raise ValueError(f"SmallCNN3d: image_size must be a multiple of 8, got {image_size}")
        super().__init__(STAGES, train_from)
        layers: list[nn.Module] = []
        for channels_in, channels, stride in zip((3, *WIDTHS), WIDTHS, TIME_STRIDES, strict=False):
            layers += [
                nn.Conv3d(channels_in, channels, 3, (stride, 2, 2), padding=1, bias=False),
                nn.BatchNorm3d(channels),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv3d(WIDTHS[-1], CHANNELS_OUT, 1))
        self.layers = nn.Sequential(*layers)
        self.out_channels = CHANNELS_OUT
        self._fields = (image_size // 8) ** 2
        self.choose_trained()

    @property
    def out_features(self) -> int:
        return self.out_channels * self._fields

    def modules_of(self, name: str) -> list[nn.Module]:
        return [self.layers]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        """Clips to the map (n, 16, ceil(L / 4), S / 8, S / 8)."""
        return self.layers(x)

    def pool(self, maps: Tensor) -> Tensor:
        return maps.mean(2).flatten(1)
