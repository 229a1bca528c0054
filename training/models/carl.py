"""CARL: frame-level video encoder and projection head."""

import torch
from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.encoder import VideoEncoder, checkpointed, projection_head, unpack
from training.models.positions import KINDS, frame_positions, sine_cosine
from training.models.transformer import TransformerLayer


class CarlModel(VideoEncoder):
    """Frames of a video to one embedding per frame (CARL, section 3.3).

    Backbone per frame -> ``fc_layers`` x (dropout, linear, batch norm, ReLU) -> linear -> plus
    sine-cosine positions -> ``layers`` pre-norm Transformer layers -> linear. The projection head g
    (linear, batch norm, ReLU, linear) serves the loss alone.

    Padded frames are left out altogether: they are not run through the backbone, enter no
    batch-norm statistics and are hidden from attention; their outputs are zero. (The released code
    lets copies of the last frame into the statistics; the paper calls padded frames empty.)

    Args:
        backbone: images (n, 3, H, W) to features (n, ``backbone.out_features``).
        num_frames: frames of a training clip; positions of other lengths are stretched to it.
        chunk_frames, checkpointing: how the backbone is called, see `VideoEncoder`.
        positions: "vaswani", "released" or "none", see `positions.sine_cosine`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_frames: int = 240,
        chunk_frames: int = 80,
        checkpointing: bool = True,
        fc_layers: int = 2,
        fc_size: int = 512,
        fc_dropout: float = 0.1,
        layers: int = 3,
        hidden_size: int = 256,
        heads: int = 8,
        ff_size: int = 1024,
        dropout: float = 0.1,
        positions: str = "vaswani",
        embedding_size: int = 128,
        projection_hidden: int = 128,
        projection_size: int = 128,
    ) -> None:
        super().__init__(backbone, chunk_frames, checkpointing)
        if positions not in KINDS:
            raise ValueError(f"CarlModel: positions must be one of {KINDS}, got {positions!r}")
        self.num_frames = num_frames
        self.positions = positions
        self.use_positions = positions != "none"
        block: list[nn.Module] = []
        features = backbone.out_features
        for _ in range(fc_layers):
            block += [
                nn.Dropout(fc_dropout),
                nn.Linear(features, fc_size),
                nn.BatchNorm1d(fc_size),
                nn.ReLU(inplace=True),
            ]
            features = fc_size
        self.fc_block = nn.Sequential(*block, nn.Linear(features, hidden_size))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_size, heads, ff_size, dropout) for _ in range(layers)
        )
        self.embedding = nn.Linear(hidden_size, embedding_size)
        self.projection = projection_head(embedding_size, projection_hidden, projection_size)

    def encode(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to embeddings h (N, T, embedding_size), not normalised.

        Args:
            frames: uint8 RGB in 0 to 255, or floating point in 0 to 1.
            valid: bool (N, T), True = real frame; real frames come first. None: all are real.

        At test time give a whole video at once: (1, T, 3, H, W).
        """
        _check(frames, valid)
        n, t = frames.shape[:2]
        real = None if valid is None else valid.flatten().nonzero().squeeze(1)
        recompute = self.checkpointing and torch.is_grad_enabled()
        x = self._per_frame(frames.flatten(0, 1), real, pooled=True)
        x = checkpointed(self.fc_block, x, module=self.fc_block) if recompute else self.fc_block(x)
        x = x.view(n, t, -1) if valid is None else unpack(x, valid)
        if self.use_positions and self.positions != "none":
            lengths = torch.full((n,), t, device=x.device) if valid is None else valid.sum(1)
            place = frame_positions(t, self.num_frames, lengths, self.training)
            x = x + sine_cosine(place, x.shape[-1], self.positions).to(x.dtype)
        x = self.dropout(x)
        keys = None
        if valid is not None:
            # A sequence without a real frame attends everywhere: some kernels give NaN for nothing.
            keys = (valid | ~valid.any(1, keepdim=True))[:, None, None, :]
        for layer in self.layers:
            x = layer(x, keys, recompute=recompute)
        h = self.embedding(x)
        return h if valid is None else h.masked_fill(~valid[..., None], 0)


def _check(frames: Tensor, valid: Tensor | None) -> None:
    if frames.dim() != 5 or frames.shape[2] != 3:
        raise ValueError(f"frames must be (N, T, 3, H, W), got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise TypeError(f"frames must be uint8 or floating point, got {frames.dtype}")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != frames.shape[:2]):
        raise ValueError(
            f"valid must be bool of shape {tuple(frames.shape[:2])}, "
            f"got {valid.dtype} {tuple(valid.shape)}"
        )
