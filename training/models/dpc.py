"""DPC's model: a network of blocks, a recurrent network over them, and predictions of the next."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbone import Backbone
from training.models.encoder import VideoEncoder, check_clips

if TYPE_CHECKING:
    from training.recipe.schema import Config


class ConvGRUCell(nn.Module):
    """A gated recurrent unit with 1x1 convolutions: every place of the map has its own state.

    With input x and state s, of C channels each::

        u = sigmoid(conv([x, s])),  r = sigmoid(conv([x, s])),  c = tanh(conv([x, r s]))
        s <- (1 - u) s + u c
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.update, self.reset, self.candidate = (
            nn.Conv2d(2 * channels, channels, 1) for _ in range(3)
        )
        _orthogonal(self)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Input and state (N, C, h, w) to the next state."""
        both = torch.cat([x, state], 1)
        update, reset = torch.sigmoid(self.update(both)), torch.sigmoid(self.reset(both))
        made = torch.tanh(self.candidate(torch.cat([x, state * reset], 1)))
        return state * (1 - update) + made * update


class DPCModel(VideoEncoder):
    """Dense predictive coding (DPC, https://arxiv.org/abs/1909.04656).

    A network of clips encodes each block to a map, the mean over the map's time. A `ConvGRUCell`
    goes over the maps of the first blocks. From its state two 1x1 convolutions predict the map of
    the next block; the prediction enters the cell in place of that map, and so on. The inputs of
    the cell pass through a ReLU. The loss compares maps and predictions without it.

    Used as an encoder it is the backbone alone, see `VideoEncoder.features`.

    Args:
        backbone: a network of clips.
        predict: P, number of blocks at the end that are predicted.
        dropout: share of the state's values that are dropped after each block.
    """

    pooled = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        predict: int,
        dropout: float,
        chunk_frames: int | None,
        checkpointing: bool,
    ) -> None:
        super().__init__(backbone, chunk_frames, checkpointing)
        channels = backbone.out_channels
        self.predict, self.dropout = predict, nn.Dropout(dropout)
        self.cell = ConvGRUCell(channels)
        self.predictor = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )
        _orthogonal(self.predictor)

    def block_maps(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, B, C, h, w) of the blocks and their pooled features (N, B, F).

        Args:
            blocks: (N, B, L, 3, H, W), uint8 RGB in 0 to 255, or floating point in 0 to 1.
        """
        check_clips(blocks)
        n, b = blocks.shape[:2]
        maps = self._per_frame(blocks.flatten(0, 1), None, pooled=False)
        features = self.backbone.pool(maps.detach()).view(n, b, -1)
        return maps.mean(2).unflatten(0, (n, b)), features

    def predictions(self, maps: Tensor) -> Tensor:
        """Predicted maps (N, P, C, h, w) of the blocks after those of ``maps`` (N, B - P, ...)."""
        state = torch.zeros_like(maps[:, 0])
        for x in maps.unbind(1):
            state = self.dropout(self.cell(F.relu(x), state))
        predicted = []
        for _ in range(self.predict):
            predicted.append(self.predictor(state))
            state = self.dropout(self.cell(F.relu(predicted[-1]), state))
        return torch.stack(predicted, 1)

    def encode(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to features (N, T, F), see `VideoEncoder.features`."""
        return self.features(frames)

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.encode(frames, valid)


def build_dpc(config: "Config", backbone: Backbone) -> DPCModel:
    """The model of a recipe with ``model.encoder=dpc``."""
    return DPCModel(
        backbone,
        predict=config.loss.dpc.predict,
        dropout=config.loss.dpc.dropout,
        chunk_frames=config.train.chunk_frames,
        checkpointing=config.train.checkpointing,
    )


def _orthogonal(module: nn.Module) -> None:
    """Orthogonal weights and no biases at the start, as in DPC's released code."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)
