"""What every backbone has: a part that is never trained, a part that is, and a pool."""

from torch import Tensor, nn

POOLS = ("max", "mean", "grid")


class Backbone(nn.Module):
    """Images (n, 3, H, W) to maps (n, ``out_channels``, h, w) and vectors (n, ``out_features``).

    The two parts are called one by one in training: memory then holds what lies between them, and
    nothing of what either computes on the way.
    """

    out_channels: int
    out_features: int
    frozen: bool  # whether any convolution keeps the weights it started with
    left_out: tuple[str, ...] = ()  # what names begin with that the whole network has beyond this

    @property
    def starts_frozen(self) -> bool:
        """Whether `frozen_part` does anything."""
        raise NotImplementedError

    def frozen_part(self, x: Tensor) -> Tensor:
        """Images to what the first trained layer takes; the images themselves if that is first."""
        raise NotImplementedError

    def trained_part(self, x: Tensor) -> Tensor:
        """The rest, up to the map; nothing at all where everything is frozen."""
        raise NotImplementedError

    def pool(self, maps: Tensor) -> Tensor:
        """Maps to vectors."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> Tensor:
        return self.trained_part(self.frozen_part(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.maps(x))
