"""CARL: frame-level video encoder and projection head."""

import torch
from torch import Tensor, nn

from training.models.positions import KINDS, frame_positions, sine_cosine
from training.models.transformer import TransformerLayer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CarlModel(nn.Module):
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
        frames_per_chunk: frames per backbone call, 0 = all at once. Trained batch norm in the
            backbone takes its statistics per chunk; a chunk is a strided sample of the whole batch.
        positions: "vaswani", "released" or "none", see `positions.sine_cosine`.

    Attributes:
        use_positions: set to False to leave the positions out, at evaluation time.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_frames: int = 240,
        frames_per_chunk: int = 80,
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
        super().__init__()
        if positions not in KINDS:
            raise ValueError(f"CarlModel: positions must be one of {KINDS}, got {positions!r}")
        self.backbone = backbone
        self.num_frames = num_frames
        self.frames_per_chunk = frames_per_chunk
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
        self.projection = nn.Sequential(
            nn.Linear(embedding_size, projection_hidden),
            nn.BatchNorm1d(projection_hidden),
            nn.ReLU(inplace=True),
            nn.Linear(projection_hidden, projection_size),
        )
        scale = 1 / torch.tensor(IMAGENET_STD)
        self.register_buffer("pixel_scale", scale.view(3, 1, 1), persistent=False)
        shift = -torch.tensor(IMAGENET_MEAN) * scale
        self.register_buffer("pixel_shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to projected embeddings z (N, T, projection_size)."""
        return self.project(self.encode(frames, valid), valid)

    def encode(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to embeddings h (N, T, embedding_size), not normalised.

        Args:
            frames: uint8 RGB in 0 to 255, or floating point in 0 to 1.
            valid: bool (N, T), True = real frame; real frames come first. None: all are real.

        At test time give a whole video at once: (1, T, 3, H, W).
        """
        _check(frames, valid)
        n, t = frames.shape[:2]
        features = self._per_frame(frames.flatten(0, 1) if valid is None else frames[valid])
        x = self.fc_block(features)
        x = x.view(n, t, -1) if valid is None else _unpack(x, valid)
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
            x = layer(x, keys)
        h = self.embedding(x)
        return h if valid is None else h.masked_fill(~valid[..., None], 0)

    def project(self, h: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embeddings h (N, T, E) to z = g(h), which the loss compares."""
        if valid is None:
            return self.projection(h.flatten(0, 1)).view(*h.shape[:2], -1)
        return _unpack(self.projection(h[valid]), valid)

    def _per_frame(self, frames: Tensor) -> Tensor:
        """Images (M, 3, H, W) to features (M, C), ``frames_per_chunk`` at a time."""
        chunks = 1
        if self.frames_per_chunk:
            chunks = max(1, -(-len(frames) // self.frames_per_chunk))
        if chunks == 1:
            return self.backbone(self._normalise(frames))
        features = [self.backbone(self._normalise(frames[c::chunks])) for c in range(chunks)]
        index = torch.arange(len(frames), device=frames.device)
        order = torch.cat([index[c::chunks] for c in range(chunks)])
        return torch.cat(features)[order.argsort()]

    def _normalise(self, frames: Tensor) -> Tensor:
        scale = self.pixel_scale / 255 if frames.dtype == torch.uint8 else self.pixel_scale
        x = frames.to(self.pixel_scale.dtype, memory_format=torch.channels_last)
        return torch.addcmul(self.pixel_shift, x, scale)


def _unpack(rows: Tensor, valid: Tensor) -> Tensor:
    """Rows of the real frames (M, C) to (N, T, C) with zeros in the padding."""
    out = rows.new_zeros(*valid.shape, rows.shape[-1])
    out[valid] = rows
    return out


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
