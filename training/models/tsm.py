"""ResNets of clips with temporal shifts: TSM (https://arxiv.org/abs/1811.08383)."""

import torch
from torch import Tensor, nn

from training.models.resnet import ResNet
from training.support.command import UserError

DEEP = 23  # blocks in layer3 from which only every second block shifts (TSM's released code)


def temporal_shift(x: Tensor, frames: int, share: int) -> Tensor:
    """Maps (n * frames, C, h, w) with 1 / share of the channels moved by one frame in each way.

    The first C / share channels are those of the next frame, the following C / share those of the
    previous frame, the others do not move. Zeros stand beyond the first and the last frame of a
    clip. This is the order of TSM's released code.
    """
    x = x.unflatten(0, (-1, frames))
    fold = x.shape[2] // share
    zeros = x.new_zeros(len(x), 1, fold, *x.shape[3:])
    ahead = torch.cat([x[:, 1:, :fold], zeros], 1)
    back = torch.cat([zeros, x[:, :-1, fold : 2 * fold]], 1)
    return torch.cat([ahead, back, x[:, :, 2 * fold :]], 2).flatten(0, 1)


class _ShiftedConv(nn.Conv2d):
    """A convolution of shifted maps; its parameters and their names are those of the convolution.

    Attributes:
        frames: number of frames of a clip, which `ShiftedResNet` sets before each call.
    """

    frames = 1
    share = 8

    @classmethod
    def taking_over(cls, conv: nn.Conv2d, share: int) -> "_ShiftedConv":
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            bias=conv.bias is not None,
        )
        made.load_state_dict(conv.state_dict())
        made.requires_grad_(conv.weight.requires_grad)
        made.share = share
        return made

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(temporal_shift(x, self.frames, self.share))


class ShiftedResNet(ResNet):
    """Clips (n, 3, L, H, W) to maps (n, C, L, H / 32, W / 32): `ResNet` with temporal shifts.

    The input of the first convolution of every residual block is shifted, the shortcut is not
    (TSM's residual shift). ResNet-101 shifts in every second block, as released. There are no
    further parameters, so weights of a ResNet fit.

    Args:
        share: 1 / share of the channels comes from the next frame, and as much from the previous
            one. Default 8: TSM, section 4.2.
        The others are those of `ResNet`.
    """

    clips = True

    def __init__(
        self,
        depth: int = 50,
        train_from: str = "all",
        end: str = "layer4",
        pool: str = "mean",
        *,
        share: int = 8,
    ) -> None:
        if share < 2:
            raise UserError(
                f"model.shift: expected at least 2, because the shares of the next and the "
                f"previous frame must fit into the channels, got {share}"
            )
        super().__init__(depth, train_from, end, pool)
        stages = [getattr(self, name) for name in self.stages if name != "stem"]
        every = 2 if len(stages) > 2 and len(stages[2]) >= DEEP else 1
        for stage in stages:
            for block in stage[::every]:
                block.conv1 = _ShiftedConv.taking_over(block.conv1, share)

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        clips, frames = len(x), x.shape[2]
        for module in self.modules_of(name):
            for conv in module.modules():
                if isinstance(conv, _ShiftedConv):
                    conv.frames = frames
        # The memory of frames is channels last, and remains so.
        maps = super().run_stage(name, x.movedim(2, 1).flatten(0, 1))
        return maps.unflatten(0, (clips, frames)).movedim(1, 2)
