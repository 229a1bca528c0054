"""VCLR's model: an encoder with a head for each loss, its moving average, and queues of keys."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastseq.nn import FeatureQueue
from training.models.backbone import Backbone
from training.models.encoder import VideoEncoder

LOSSES = ("inter", "intra", "video", "order")
QUEUED = ("inter", "video")  # losses with negatives from other videos


class VCLREncoder(VideoEncoder):
    """A backbone whose pooled features are the embeddings, and a head for each loss.

    With a backbone of clips, the features of a frame are those of a clip around it.

    A head is two linear layers with a ReLU between them (VCLR, A.1). Only the losses use the heads:
    ``encode`` returns the backbone's features (N, T, F).
    """

    pooled = True

    def __init__(
        self,
        backbone: Backbone,
        losses: Sequence[str],
        *,
        hidden: int,
        size: int,
        chunk_frames: int | None,
        checkpointing: bool,
    ) -> None:
        super().__init__(backbone, chunk_frames, checkpointing)
        features = backbone.out_features
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, size)
                )
                for name in losses
            }
        )

    def encode(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to features (N, T, F), see `VideoEncoder.features`."""
        return self.features(frames)

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.encode(frames, valid)


class MomentumEncoder(AveragedModel):
    """Moving average of an encoder: theta <- m theta + (1 - m) theta_encoder (VCLR, eq. 12).

    It starts as a copy, and its first update is already an average. Only the parameters are
    averaged, as in the released code: torch's class would copy the encoder's batch-norm statistics.
    """

    def __init__(self, encoder: nn.Module, momentum: float) -> None:
        super().__init__(encoder, multi_avg_fn=get_ema_multi_avg_fn(momentum))
        self.requires_grad_(False)
        self.n_averaged.fill_(1)  # torch's class copies the parameters at 0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        own = [buffer.clone() for buffer in self.module.buffers()]
        super().update_parameters(model)
        for buffer, before in zip(self.module.buffers(), own, strict=True):
            buffer.copy_(before)


class VCLRModel(nn.Module):
    """VCLR's online encoder with its moving average, classifier and queues.

    Used as an encoder, it is the online encoder.

    Args:
        encoder: the online encoder; its heads determine which of the LOSSES are used.
        segments: number of clips of a tuple, for the classifier of temporal order.
        queue_size: number of keys of earlier steps in each queue.
        momentum: m of the moving average.

    Attributes:
        encoder: the online encoder, which is trained.
        momentum: its moving average, which encodes the keys.
        order: classifier of the four temporal orders, if that loss is used.
        queues: "inter" and "video", if these losses are used.
    """

    positions = "none"
    use_positions = False
    pooled = True

    def __init__(
        self, encoder: VCLREncoder, *, segments: int, queue_size: int, momentum: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.momentum = MomentumEncoder(encoder, momentum)
        sizes = {name: head[-1].out_features for name, head in encoder.heads.items()}
        self.order = nn.Linear(2 * segments * sizes["order"], 4) if "order" in sizes else None
        self.queues = nn.ModuleDict(
            {name: FeatureQueue(queue_size, sizes[name]) for name in QUEUED if name in sizes}
        )

    def encode(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """See `VCLREncoder.encode`."""
        return self.encoder.encode(frames, valid)

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.encode(frames, valid)

    def features(self, frames: Tensor) -> Tensor:
        """See `VideoEncoder.features`."""
        return self.encoder.features(frames)

    def clip_features(self, clips: Tensor, index: Tensor | None = None) -> Tensor:
        """See `VideoEncoder.clip_features`."""
        return self.encoder.clip_features(clips, index)

    def whole_videos_by(self, clip_frames: int, clip_stride: int) -> None:
        """See `VideoEncoder.whole_videos_by`."""
        self.encoder.whole_videos_by(clip_frames, clip_stride)

    @property
    def clip_frames(self) -> int:
        """See `VideoEncoder`."""
        return self.encoder.clip_frames

    @property
    def clip_stride(self) -> int:
        """See `VideoEncoder`."""
        return self.encoder.clip_stride

    def compile_backbone(self) -> None:
        self.encoder.compile_backbone()
        self.momentum.module.compile_backbone()

    @property
    def checkpointing(self) -> bool:
        return self.encoder.checkpointing

    def chunk_size(self) -> int:
        return self.encoder.chunk_size()

    @property
    def backbone(self) -> Backbone:
        """The online encoder's backbone."""
        return self.encoder.backbone

    @property
    def chunk_frames(self) -> int | None:
        return self.encoder.chunk_frames

    @chunk_frames.setter
    def chunk_frames(self, frames: int | None) -> None:
        self.encoder.chunk_frames = self.momentum.module.chunk_frames = frames
