"""The memory bank of momentum contrast: keys of earlier batches, first in, first out."""

import numbers

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """A queue of embeddings, the negatives of :func:`fastseq.queue_nce` (MoCo, VCLR).

    Contents and pointer are buffers: they follow ``to()``, are saved with the model and survive a
    resume. At the start the rows are random directions drawn from torch's generator, of norm 1 as
    the keys are (VCLR's released queue starts from norms around 1, and its pointer is not saved).

    Args:
        size: rows, K. 131072: VCLR, appendix A.1.
        dim: channels, D. 128: VCLR's heads.
        normalize: divide keys by their L2 norms as they are stored; without effect on keys of
            norm 1.

    ``features`` (K, D) is the queue. Between processes (``torch.distributed``) every rank stores
    the keys of all ranks, in the order of ranks, so that all queues stay equal once the first
    ``size`` keys are in; to start equal too, seed all ranks alike before this constructor.

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

        B is any number, also another on each rank, and may exceed the queue's size: the last ones
        stay. Call it on every rank, with nothing to store as well, after the loss has been computed
        with the queue of the earlier steps. The backward may follow later. One process never waits
        for its GPU; several tell each other how many keys they have, which the host waits for.
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
            # In float32 at least: the norm of a half overflows or rounds.
            keys = nn.functional.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)))
        keys = gather(keys.to(self.features))
        last = keys[-self.size :]
        # On the device: nothing waits for the pointer.
        place = self.pointer + (len(keys) - len(last))
        place = (place + torch.arange(len(last), device=last.device)) % self.size
        self.features.index_copy_(0, place, last)
        self.pointer.add_(len(keys)).remainder_(self.size)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, normalize={self.normalize}"


def gather(keys: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks, each rank having its own number of them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return keys
    ranks = dist.get_world_size()
    count = torch.tensor([len(keys)], device=keys.device)
    counts = [torch.empty_like(count) for _ in range(ranks)]
    dist.all_gather(counts, count)
    counts = torch.cat(counts).tolist()
    # Collectives want one shape on all ranks.
    padded = keys.new_zeros(max(counts), keys.shape[1])
    padded[: len(keys)] = keys
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
