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
from training.support.time_split import TimeSplit, join_valid, sum_time


class CarlModel(VideoEncoder):
    """Frames of a video to one embedding per frame (CARL, section 3.3).

    Backbone per frame -> ``fc_layers`` x (dropout, linear, batch norm, ReLU) -> linear -> plus
    sine-cosine positions -> ``layers`` pre-norm Transformer layers -> linear. Only the loss uses
    the projection head g (linear, batch norm, ReLU, linear).

    Padded frames are ignored: they do not pass through the backbone, do not enter batch-norm
    statistics and are masked in attention; their outputs are zero. (The released code includes
    copies of the last frame in the statistics; the paper calls padded frames empty.)

    Args:
        backbone: images (n, 3, H, W) to features (n, ``backbone.out_features``).
        num_frames: frames of a training clip; positions in clips of other lengths are rescaled to
            this length.
        centre: subtract the mean over the clip's real frames from the backbone's features. This
            removes what stays the same throughout the clip (the place, the person); the features of
            a clip with one frame become zeros.
        backbone_share: stored for `training.evaluation.encoders`, which concatenates the features
            with the embeddings; ``encode`` returns the trained embeddings only.
        chunk_frames, checkpointing: options of the backbone's calls, see `VideoEncoder`.
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
            stored: ``frames`` are the result of `features`, floating point (N, T, F); the backbone
                is not called.

        With ``time_split``, in training mode, T is this rank's part of the clips; positions,
        ``centre`` and attention are those of the whole clips.

        At test time pass a whole video at once: (1, T, 3, H, W).
        """
        if stored:
            _check_features(frames, self.backbone.out_features)
        else:
            check_frames(frames)
        check_valid(frames, valid)
        n, t = frames.shape[:2]
        split = self.time_split if self.training else None
        everyone, whole, first = valid, t, 0  # the mask, T and first frame in the whole clip
        if split is not None:
            everyone = join_valid(valid, frames, split)
            whole, first = t * split.parts, t * split.part
        lengths = (
            torch.full((n,), whole, device=frames.device) if everyone is None else everyone.sum(1)
        )
        recompute = self.checkpointing and torch.is_grad_enabled()
        if stored:
            x = frames.flatten(0, 1) if valid is None else frames[valid]
        else:
            real = None if valid is None else valid.flatten().nonzero().squeeze(1)
            x = self._per_frame(frames.flatten(0, 1), real, pooled=True)
        if self.centre:
            x = _centred(x.to(torch.promote_types(x.dtype, torch.float32)), lengths, valid, split)
        x = checkpointed(self.fc_block, x, module=self.fc_block) if recompute else self.fc_block(x)
        x = x.view(n, t, -1) if valid is None else unpack(x, valid)
        if self.use_positions and self.positions != "none":
            place = frame_positions(whole, self.num_frames, lengths, self.training)
            place = place[:, first : first + t]
            x = x + sine_cosine(place, x.shape[-1], self.positions).to(x.dtype)
        x = self.dropout(x)
        keys = None
        if everyone is not None:
            # A sequence without real frames attends to all: without keys some kernels return NaN.
            keys = (everyone | ~everyone.any(1, keepdim=True))[:, None, None, :]
        for layer in self.layers:
            x = layer(x, keys, recompute=recompute, split=split)
        h = self.embedding(x)
        return h if valid is None else h.masked_fill(~valid[..., None], 0)


def _centred(
    rows: Tensor, lengths: Tensor, valid: Tensor | None, split: TimeSplit | None
) -> Tensor:
    """Rows of the real frames of the clips, minus the mean over each clip's ``lengths`` frames."""
    x = rows.unflatten(0, (len(lengths), -1)) if valid is None else unpack(rows, valid)
    total = x.sum(1) if split is None else sum_time(x.sum(1), split)
    x = x - (total / lengths.clamp(min=1)[:, None])[:, None]
    return x.flatten(0, 1) if valid is None else x[valid]


def _check_features(features: Tensor, size: int) -> None:
    if features.dim() != 3 or features.shape[2] != size or not features.is_floating_point():
        raise ValueError(
            f"stored features must be floating point (N, T, {size}), as features(frames) returns "
            f"them, got {features.dtype} {tuple(features.shape)}"
        )
