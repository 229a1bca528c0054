"""The encoder of TCC and LAV: convolutions over a frame and a few earlier ones."""

import torch
from torch import Tensor, nn

from fastseq.video import context_frames
from training.models.backbone import Backbone
from training.models.encoder import (
    CHUNK_FRAMES,
    VideoEncoder,
    check_valid,
    projection_head,
    unpack,
)


class ContextEncoder(VideoEncoder):
    """Frames of a video, each with its context, to one embedding per frame (TCC, LAV).

    Backbone map per frame -> ``conv_layers`` x (3x3x3 convolution over context, height and width,
    batch norm, ReLU) -> maximum over all three -> ``fc_layers`` x (dropout, linear, ReLU) ->
    linear. There are no positions: an embedding depends only on its frame and the context.

    Args:
        backbone: images (n, 3, H, W) to maps (n, ``backbone.out_channels``, h, w) by ``maps``.
        num_context: frames per embedding; the last one is the frame itself.
        context_stride: distance between these frames, in frames.
        chunk_frames, checkpointing: options of the backbone's calls, see `VideoEncoder`. Whole
            videos are also embedded ``chunk_frames`` frames at a time (None: 80), each with its
            context.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_context: int = 2,
        context_stride: int = 15,
        chunk_frames: int | None = None,
        checkpointing: bool = True,
        conv_layers: int = 2,
        conv_size: int = 512,
        fc_layers: int = 2,
        fc_size: int = 512,
        fc_dropout: float = 0.1,
        embedding_size: int = 128,
        projection_hidden: int = 128,
        projection_size: int = 128,
    ) -> None:
        super().__init__(backbone, chunk_frames, checkpointing)
        self.num_context, self.context_stride = num_context, context_stride
        convolutions: list[nn.Module] = []
        channels = backbone.out_channels
        for _ in range(conv_layers):
            convolutions += [
                nn.Conv3d(channels, conv_size, 3, padding=1),
                nn.BatchNorm3d(conv_size),
                nn.ReLU(inplace=True),
            ]
            channels = conv_size
        self.convolutions = nn.Sequential(*convolutions)
        head: list[nn.Module] = []
        for _ in range(fc_layers):
            head += [nn.Dropout(fc_dropout), nn.Linear(channels, fc_size), nn.ReLU(inplace=True)]
            channels = fc_size
        self.embedding = nn.Sequential(*head, nn.Linear(channels, embedding_size))
        self.projection = projection_head(embedding_size, projection_hidden, projection_size)

    def encode(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames to embeddings h (N, T, embedding_size), not normalised.

        Args:
            frames: uint8 RGB in 0 to 255, or floating point in 0 to 1. (N, T, C, 3, H, W): each
                frame with its context, oldest first, the frame itself last. (N, T, 3, H, W): whole
                videos or parts of them, frame after frame, which also contain the context.
            valid: bool (N, T), True = real frame. None: all are.
        """
        context = self.num_context
        shape = tuple(frames.shape[2:-2])  # of one frame, without height and width
        if (frames.dim(), shape) not in ((5, (3,)), (6, (context, 3))):
            raise ValueError(
                f"frames must be (N, T, 3, H, W) or (N, T, {context}, 3, H, W), got "
                f"{tuple(frames.shape)}"
            )
        check_valid(frames, valid)
        if self.training and context == 1 and frames.dim() == 5:
            frames = frames[:, :, None]  # a frame is its whole context
        if frames.dim() == 5:
            if self.training and self.time_split is not None:
                raise ValueError(
                    "ContextEncoder: a part of a clip lacks the context of its first frames, got "
                    f"{tuple(frames.shape)}; pass each frame with its context: "
                    f"(N, T, {context}, 3, H, W)"
                )
            h = self._whole_videos(frames)
            return h if valid is None else h.masked_fill(~valid[..., None], 0)
        index = None
        if valid is not None:
            real = valid.flatten().nonzero()
            index = (real * context + torch.arange(context, device=real.device)).flatten()
        maps = self._per_frame(frames.flatten(0, 2), index, pooled=False)
        h = self._embed(maps.unflatten(0, (-1, context)))
        return h.view(*frames.shape[:2], -1) if valid is None else unpack(h, valid)

    def _whole_videos(self, frames: Tensor) -> Tensor:
        """Embed a chunk of frames at a time; a frame passes the backbone once per chunk."""
        n, t = frames.shape[:2]
        index = context_frames(torch.arange(t).numpy(), self.num_context, self.context_stride)
        size = CHUNK_FRAMES if self.chunk_frames is None else self.chunk_frames
        size = t if self.training or not size else size
        out = []
        for start in range(0, t, max(size, 1)):
            needed, place = torch.from_numpy(index[start : start + size]).unique(
                return_inverse=True
            )
            used = frames[:, needed.to(frames.device)]
            maps = self._per_frame(used.flatten(0, 1), None, pooled=False)
            maps = maps.unflatten(0, used.shape[:2])[:, place.to(frames.device)]
            out.append(self._embed(maps.flatten(0, 1)).unflatten(0, (n, -1)))
        return torch.cat(out, 1)

    def _embed(self, maps: Tensor) -> Tensor:
        """Maps (M, C, channels, h, w) of frames with their context to embeddings (M, E)."""
        return self.embedding(self.convolutions(maps.transpose(1, 2)).amax((2, 3, 4)))
