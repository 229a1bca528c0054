"""CARL: frame-level video encoder and projection head."""

import torch
from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.encoder import (
    VideoEncoder,
    check_frames,
    check_valid,
    checkpointed,
    projection_head,
    unpack,
)
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
        centre: take the mean over the clip's real frames off the backbone's features. What stays
            the same through the clip (the place, the person) is then gone; a clip of one frame
            gives zeros.
        backbone_share: kept for `training.evaluation.encoders`, which puts the features beside the
            embeddings; ``encode`` gives what is trained alone.
        chunk_frames, checkpointing: how the backbone is called, see `VideoEncoder`.
        positions: "vaswani", "released" or "none", see `positions.sine_cosine`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_frames: int = 240,
        centre: bool = False,
        backbone_share: float = 0.0,
        chunk_frames: int | None = None,
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
        self.num_frames, self.centre = num_frames, centre
        self.backbone_share = backbone_share
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

    def encode(
        self, frames: Tensor, valid: Tensor | None = None, *, stored: bool = False
    ) -> Tensor:
        """Frames (N, T, 3, H, W) to embeddings h (N, T, embedding_size), not normalised.

        Args:
            frames: uint8 RGB in 0 to 255, or floating point in 0 to 1.
            valid: bool (N, T), True = real frame; real frames come first. None: all are real.
            stored: ``frames`` is what `features` gives, floating point (N, T, F); the backbone is
                not called.

        At test time give a whole video at once: (1, T, 3, H, W).
        """
        if stored:
            _check_features(frames, self.backbone.out_features)
        else:
            check_frames(frames)
        check_valid(frames, valid)
        n, t = frames.shape[:2]
        recompute = self.checkpointing and torch.is_grad_enabled()
        if stored:
            x = frames.flatten(0, 1) if valid is None else frames[valid]
        else:
            real = None if valid is None else valid.flatten().nonzero().squeeze(1)
            x = self._per_frame(frames.flatten(0, 1), real, pooled=True)
        if self.centre:
            x = _centred(x.float(), n, valid)
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


def _centred(rows: Tensor, clips: int, valid: Tensor | None) -> Tensor:
    """Rows of the real frames of ``clips`` clips, each less the mean over its clip's."""
    if valid is None:
        x = rows.unflatten(0, (clips, -1))
        return (x - x.mean(1, keepdim=True)).flatten(0, 1)
    x = unpack(rows, valid)
    mean = x.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
    return (x - mean[:, None])[valid]


def _check_features(features: Tensor, size: int) -> None:
    if features.dim() != 3 or features.shape[2] != size or not features.is_floating_point():
        raise ValueError(
            f"stored features must be floating point (N, T, {size}), as features(frames) gives "
            f"them, got {features.dtype} {tuple(features.shape)}"
        )
