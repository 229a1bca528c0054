"""What every encoder shares: pixels, backbone calls, and the projection head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoEncoder(nn.Module):
    """Base of the encoders: frames of videos to one embedding h per frame, and z = g(h).

    Subclasses define ``encode``; this class normalises pixels by ImageNet's mean and standard
    deviation, calls the backbone in chunks, and owns the projection head g.

    Attributes:
        positions: kind of positional encoding, "none" where there is none.
        use_positions: set to False to leave the positions out, at evaluation time.
    """

    positions = "none"
    use_positions = False

    def __init__(
        self,
        backbone: nn.Module,
        frames_per_chunk: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.frames_per_chunk = frames_per_chunk
        scale = 1 / torch.tensor(IMAGENET_STD)
        self.register_buffer("pixel_scale", scale.view(3, 1, 1), persistent=False)
        shift = -torch.tensor(IMAGENET_MEAN) * scale
        self.register_buffer("pixel_shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to projected embeddings z (N, T, projection_size)."""
        return self.project(self.encode(frames, valid), valid)

    def project(self, h: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embeddings h (N, T, E) to z = g(h), which the loss compares."""
        if valid is None:
            return self.projection(h.flatten(0, 1)).view(*h.shape[:2], -1)
        return unpack(self.projection(h[valid]), valid)

    def _per_frame(self, frames: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        """Images (M, 3, H, W) through a function of the backbone, ``frames_per_chunk`` at a time.

        A chunk is a strided sample of all of them: trained batch norm takes its statistics there.
        """
        chunks = 1
        if self.frames_per_chunk:
            chunks = max(1, -(-len(frames) // self.frames_per_chunk))
        if chunks == 1:
            return call(self._normalise(frames))
        features = [call(self._normalise(frames[c::chunks])) for c in range(chunks)]
        index = torch.arange(len(frames), device=frames.device)
        order = torch.cat([index[c::chunks] for c in range(chunks)])
        return torch.cat(features)[order.argsort()]

    def _normalise(self, frames: Tensor) -> Tensor:
        scale = self.pixel_scale / 255 if frames.dtype == torch.uint8 else self.pixel_scale
        x = frames.to(self.pixel_scale.dtype, memory_format=torch.channels_last)
        return torch.addcmul(self.pixel_shift, x, scale)


def projection_head(embedding_size: int, hidden: int, size: int) -> nn.Sequential:
    """CARL's g, which serves the loss alone (section 3.4)."""
    return nn.Sequential(
        nn.Linear(embedding_size, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, size),
    )


def unpack(rows: Tensor, valid: Tensor) -> Tensor:
    """Rows of the real frames (M, C) to (N, T, C) with zeros in the padding."""
    out = rows.new_zeros(*valid.shape, rows.shape[-1])
    out[valid] = rows
    return out
