"""Base class of the encoders: pixels, calls of the backbone, and the projection head."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from training.models.backbone import Backbone
from training.support.distributed import max_over_ranks
from training.support.time_split import TimeSplit

CHUNK_FRAMES = 80  # 40 time steps of two views, as in CARL's code
# Processor time per frame on one core, in chunks of 8 and of 80 frames: EfficientNet-Lite0 at
# 128 px 8 and 16 ms, ResNet-50 at 224 px 145 and 229 ms, ResNet-18 at 112 px 14 and 14 ms.
CPU_CHUNK_FRAMES = 8


class VideoEncoder(nn.Module):
    """Base of the encoders: frames of videos to one embedding h per frame, and z = g(h).

    Subclasses define ``encode``. This class normalises pixels by the backbone's mean and standard
    deviation, calls the backbone in chunks, and owns the projection head g.

    Args:
        chunk_frames: frames per backbone call, 0 = all at once; None: 80, but 8 on a CPU if no
            batch norm of the backbone computes statistics. Batch norms in training mode compute
            statistics per chunk; a chunk is a strided sample of the whole batch.
        checkpointing: keep only the inputs of the backbone's trained part for backward, and
            recompute that part chunk by chunk; likewise CARL's fc block and the branches of its
            Transformer. Gradients are the same, and so are the running statistics, which are
            updated only in the forward pass. A single chunk is not recomputed, because backward
            would need all of it at once anyway.

    Attributes:
        positions: kind of positional encoding, "none" if there is none.
        use_positions: set to False to omit the positions in evaluation.
        heads: loss -> the head that it trains on h, see `training.models.heads`; empty for losses
            without one.
        time_split: the part of every clip that this rank has. ``encode`` in training mode then
            accepts the frames and the mask of this part, and returns its embeddings as part of the
            whole clip's. Every rank of the group must call it, and each draws dropout separately.
            In evaluation mode it is not used, so that one rank alone can embed whole videos.
            VCLR's encoder does not support it.
        clip_frames, clip_stride: frames of the clip around a frame and their distance, in frames,
            with which `features` calls a backbone of clips.
        pooled: whether ``encode`` returns the result of `features` as it is.
    """

    positions = "none"
    use_positions = False
    time_split: TimeSplit | None = None
    clip_frames = 1
    clip_stride = 1
    pooled = False

    def __init__(self, backbone: Backbone, chunk_frames: int | None, checkpointing: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict()
        self.chunk_frames, self.checkpointing = chunk_frames, checkpointing
        scale = 1 / torch.tensor(backbone.pixel_std)
        self.register_buffer("pixel_scale", scale.view(3, 1, 1), persistent=False)
        shift = -torch.tensor(backbone.pixel_mean) * scale
        self.register_buffer("pixel_shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to projected embeddings z (N, T, projection_size)."""
        return self.project(self.encode(frames, valid), valid)

    def project(self, h: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embeddings h (N, T, E) to z = g(h), the input of the loss."""
        if valid is None:
            return self.projection(h.flatten(0, 1)).view(*h.shape[:2], -1)
        return unpack(self.projection(h[valid]), valid)

    def features(self, frames: Tensor) -> Tensor:
        """The backbone's features of each frame: (N, T, ``backbone.out_features``).

        If nothing in the backbone is trained, they have no gradient and can be stored.

        With a backbone of clips, the features of a frame are those of a clip of L = ``clip_frames``
        frames, ``clip_stride`` apart. Frame L // 2 of the clip, counted from 0, is the frame
        itself. Places before the first and after the last frame repeat that frame. Only the clips
        of one chunk exist at a time.

        Args:
            frames: (N, T, 3, H, W), uint8 RGB in 0 to 255, or floating point in 0 to 1.
        """
        check_frames(frames)
        index = self._clips_around(*frames.shape[:2]) if self.backbone.clips else None
        index = None if index is None else index.to(frames.device)
        x = self._per_frame(frames.flatten(0, 1), index, pooled=True)
        return x.view(*frames.shape[:2], -1)

    def _clips_around(self, videos: int, frames: int) -> Tensor:
        """int64 (videos * frames, L): the rows of the frames of the clip around each frame."""
        offsets = torch.arange(self.clip_frames) - self.clip_frames // 2
        places = torch.arange(frames)[:, None] + self.clip_stride * offsets
        first = frames * torch.arange(videos)[:, None, None]
        return (first + places.clamp(0, frames - 1)).flatten(0, 1)

    def whole_videos_by(self, clip_frames: int, clip_stride: int) -> None:
        """Set the clip that `features` takes around a frame of a whole video."""
        self.clip_frames, self.clip_stride = clip_frames, clip_stride

    def clip_features(self, clips: Tensor, index: Tensor | None = None) -> Tensor:
        """The backbone's features of each clip: (N, K, ``backbone.out_features``).

        A backbone of clips has one vector for a clip. For a backbone of images it is the mean of
        the vectors of its frames.

        Args:
            clips: (N, K, L, 3, H, W), uint8 RGB in 0 to 255, or floating point in 0 to 1.
            index: int64 (M, J), the clips to use, as numbers n K + k; the result is (M, J, F).
                Unlike ``clips[...]`` it copies only the clips of one chunk. None: all.
        """
        check_clips(clips)
        shape, length = clips.shape[:2] if index is None else index.shape, clips.shape[2]
        rows = None if index is None else index.flatten()
        if self.backbone.clips:
            return self._per_frame(clips.flatten(0, 1), rows, pooled=True).view(*shape, -1)
        if rows is not None:
            rows = (length * rows[:, None] + torch.arange(length, device=rows.device)).flatten()
        x = self._per_frame(clips.flatten(0, 2), rows, pooled=True)
        return x.view(*shape, length, -1).mean(2)

    def compile_backbone(self) -> None:
        """Compile both parts of the backbone with torch.compile, each as one graph."""
        self.backbone.frozen_part = torch.compile(self.backbone.frozen_part)
        self.backbone.trained_part = torch.compile(self.backbone.trained_part)

    def chunk_size(self) -> int:
        """Frames per backbone call: ``chunk_frames``, or the number that None or 0 stands for."""
        if self.chunk_frames is not None:
            return self.chunk_frames
        on_cpu = self.pixel_scale.device.type == "cpu"
        norms = (m for m in self.backbone.modules() if isinstance(m, _BatchNorm))
        return CPU_CHUNK_FRAMES if on_cpu and not any(m.training for m in norms) else CHUNK_FRAMES

    def chunk_count(self, rows: int, length: int = 1) -> int:
        """Number of backbone calls for ``rows`` frames, or clips of ``length`` frames.

        In training it is the same on every rank. Otherwise ranks that share batch-norm statistics
        would wait for each other forever.
        """
        size = self.chunk_size()
        size = max(1, size // length) if size else 0
        chunks = max(1, -(-rows // size)) if size else 1
        return max_over_ranks(chunks) if self.training else chunks

    def _per_frame(self, frames: Tensor, index: Tensor | None, *, pooled: bool) -> Tensor:
        """Pass images through the backbone, ``chunk_frames`` at a time; returns vectors or maps.

        Args:
            frames: (M, 3, H, W) uint8, or clips (M, L, 3, H, W); only one chunk at a time is
                converted to floating point.
            index: the images or clips to use, in this order; None: all. (M, L): clips, by the
                numbers of their images.
        """
        rows = len(frames) if index is None else len(index)
        length = frames.shape[1] if frames.dim() == 5 else 1
        if index is not None and index.dim() == 2:
            length = index.shape[1]
        chunks = self.chunk_count(rows, length)
        parts: list[Any] = [slice(c, None, chunks) for c in range(chunks)]
        if index is not None:
            parts = [index[part] for part in parts]
        recompute = self.checkpointing and chunks > 1
        features = [self._chunk(frames, part, pooled, recompute) for part in parts]
        if chunks == 1:
            return features[0]
        place = torch.arange(rows, device=frames.device)
        order = torch.cat([place[c::chunks] for c in range(chunks)])
        return torch.cat(features)[order.argsort()]

    def _chunk(self, frames: Tensor, part: slice | Tensor, pooled: bool, recompute: bool) -> Tensor:
        """Pass ``frames[part]`` through the backbone; ``recompute``: again in backward."""
        backbone = self.backbone

        def trained(x: Tensor) -> Tensor:
            maps = backbone.trained_part(x)
            return backbone.pool(maps) if pooled else maps

        if backbone.starts_frozen:
            with torch.no_grad():
                entering: Any = backbone.frozen_part(self._normalise(frames[part]))
            call = trained
        else:  # only the uint8 frames are kept for backward
            entering = part

            def call(part: slice | Tensor) -> Tensor:
                return trained(self._normalise(frames[part]))

        if not (recompute and torch.is_grad_enabled() and _is_trained(backbone)):
            return call(entering)
        return checkpointed(call, entering, module=backbone)

    def _normalise(self, frames: Tensor) -> Tensor:
        scale = self.pixel_scale / 255 if frames.dtype == torch.uint8 else self.pixel_scale
        if frames.dim() == 5:  # clips (n, L, 3, H, W)
            layout = {"memory_format": torch.channels_last_3d}
            x = frames.movedim(2, 1).to(self.pixel_scale.dtype, **layout)
            return torch.addcmul(self.pixel_shift[:, None], x, scale[:, None])
        x = frames.to(self.pixel_scale.dtype, memory_format=torch.channels_last)
        return torch.addcmul(self.pixel_shift, x, scale)


def checkpointed(call: Callable[[Any], Tensor], x: Any, *, module: nn.Module) -> Tensor:
    """``call(x)``, which runs ``module``; only x is kept for backward, which recomputes the rest.

    Running statistics are updated once, and dropout draws the same values both times.
    """
    random = any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in module.modules())
    return checkpoint(
        call,
        x,
        use_reentrant=False,
        preserve_rng_state=random,  # True reads the generator, which a CUDA graph must not
        context_fn=lambda: (nullcontext(), _StatisticsAtRest(module)),
    )


class _StatisticsAtRest:
    """Context in which batch norms normalise as usual but keep their running statistics.

    It sets momentum 0 instead of ``track_running_stats = False``, because a recomputation must save
    the same tensors as the forward pass, including the running statistics.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
        self.before: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        self.before = [(m.momentum, m.num_batches_tracked) for m in self.norms]
        for norm in self.norms:
            counter = norm.num_batches_tracked  # a copy is incremented and dropped
            norm.momentum = 0.0
            norm.num_batches_tracked = None if counter is None else counter.clone()

    def __exit__(self, *error: object) -> None:
        for norm, before in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = before


def check_frames(frames: Tensor) -> None:
    """ValueError or TypeError for anything but (N, T, 3, H, W), uint8 or floating point."""
    if frames.dim() != 5 or frames.shape[2] != 3:
        raise ValueError(f"frames must be (N, T, 3, H, W), got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise TypeError(f"frames must be uint8 or floating point, got {frames.dtype}")


def check_clips(clips: Tensor) -> None:
    """ValueError or TypeError for anything but (N, K, L, 3, H, W), uint8 or floating point."""
    if clips.dim() != 6 or clips.shape[3] != 3:
        raise ValueError(f"clips must be (N, K, L, 3, H, W), got {tuple(clips.shape)}")
    if clips.dtype != torch.uint8 and not clips.is_floating_point():
        raise TypeError(f"clips must be uint8 or floating point, got {clips.dtype}")


def check_valid(frames: Tensor, valid: Tensor | None) -> None:
    """ValueError for a mask that is not bool (N, T)."""
    if valid is not None and (valid.dtype != torch.bool or valid.shape != frames.shape[:2]):
        raise ValueError(
            f"valid must be bool of shape {tuple(frames.shape[:2])}, "
            f"got {valid.dtype} {tuple(valid.shape)}"
        )


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def projection_head(embedding_size: int, hidden: int, size: int) -> nn.Sequential:
    """CARL's g, which only the loss uses (section 3.4)."""
    return nn.Sequential(
        nn.Linear(embedding_size, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, size),
    )


def unpack(rows: Tensor, valid: Tensor) -> Tensor:
    """Rows (M, C) of the real frames to (N, T, C), with zeros in the padding."""
    out = rows.new_zeros(*valid.shape, rows.shape[-1])
    out[valid] = rows
    return out
