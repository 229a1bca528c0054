"""The memory bank of momentum contrast: keys of earlier batches, first in, first out."""

import numbers

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """A queue of embeddings, the negatives of :func:`fastseq.queue_nce` (MoCo, VCLR).

    Contents and pointer are buffers: they follow ``to()``, are saved with the model and survive a
    resume. The initial rows are random directions of norm 1, like the keys, drawn from torch's
    generator (VCLR's released queue starts from norms around 1 and does not save its pointer).

    Args:
        size: number of rows, K. 131,072: VCLR, appendix A.1.
        dim: number of channels, D. 128: VCLR's heads.
        normalize: divide keys by their L2 norms before they are stored; no effect on keys of
            norm 1.

    ``features`` (K, D) is the queue. With several processes (``torch.distributed``) every rank
    stores the keys of all ranks, in rank order, so that all queues are equal once the first
    ``size`` keys are stored. For equal queues from the start, seed all ranks alike first.

    Raises:
        ValueError: size or dim below 1, or keys of another shape.

    Example:
        >>> import torch, fastseq
        >>> queue = fastseq.nn.FeatureQueue(8, 4)
        >>> q, keys = torch.randn(2, 3, 4)
        >>> loss = fastseq.queue_nce(q, keys, queue.features)
        >>> queue.enqueue(keys)
        >>> int(queue.pointer)
        3
    """

    features: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, *, normalize: bool = True):
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if not isinstance(value, numbers.Integral) or isinstance(value, bool):
                raise TypeError(f"FeatureQueue: {name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"FeatureQueue: {name} must be at least 1, got {value}")
        self.size, self.dim, self.normalize = int(size), int(dim), bool(normalize)
        directions = nn.functional.normalize(torch.randn(self.size, self.dim), dim=1)
        self.register_buffer("features", directions)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Store keys (B, D), or (..., D), of this step in place of the oldest ones.

        B may be any number, and differ between ranks. If it exceeds the queue's size, the last keys
        are stored. Call this on every rank, also without keys, after the loss has been computed
        with the queue of the earlier steps; the backward may follow later. A single process never
        waits for its GPU. Several processes exchange their numbers of keys, and their hosts wait
        for that.
        """
        if not isinstance(keys, Tensor) or not keys.is_floating_point():
            what = keys.dtype if isinstance(keys, Tensor) else type(keys).__name__
            raise TypeError(f"FeatureQueue.enqueue: keys must be floats in a Tensor, got {what}")
        if keys.dim() < 2 or keys.shape[-1] != self.dim:
            raise ValueError(
                f"FeatureQueue.enqueue: keys must have shape (B, {self.dim}), got "
                f"{tuple(keys.shape)}"
            )
        keys = keys.detach().reshape(-1, self.dim)
        if self.normalize:
            # In float32 at least: the norm of float16 or bfloat16 keys overflows or rounds.
            keys = nn.functional.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)))
        keys = gather(keys.to(self.features))
        last = keys[-self.size :]
        # On the device: the host does not wait for the pointer.
        place = self.pointer + (len(keys) - len(last))
        place = (place + torch.arange(len(last), device=last.device)) % self.size
        self.features.index_copy_(0, place, last)
        self.pointer.add_(len(keys)).remainder_(self.size)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, normalize={self.normalize}"


def gather(keys: Tensor) -> Tensor:
    """The rows of all ranks, in rank order; ranks may have different numbers of rows."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return keys
    ranks = dist.get_world_size()
    count = torch.tensor([len(keys)], device=keys.device)
    counts = [torch.empty_like(count) for _ in range(ranks)]
    dist.all_gather(counts, count)
    counts = torch.cat(counts).tolist()
    # Collectives need one shape on all ranks.
    padded = keys.new_zeros(max(counts), keys.shape[1])
    padded[: len(keys)] = keys
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
