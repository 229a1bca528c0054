"""scl_loss over ranks by all-gather, without the ring: what a training loop can do instead.

As in ``scl_loss(group=)`` every rank has the same number of frames of each video (here without
padding), the value is the same on all ranks, and what is differentiated is the sum of the ranks'
values, whose upstream gradients are equal.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastseq
from fastseq.ops.scl.options import SCLOptions
from fastseq.ops.scl.ring.options import Side, Weights
from fastseq.ops.scl.ring.torch import add_gradient, finish, statistics

OPTIONS = SCLOptions.checked("scl_loss", 10.0, 0.1, True, "kl", "cross", "mean", "gauss")


def ring(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    return fastseq.scl_loss(z1, z2, t1, t2, group=dist.group.WORLD)


def own_rows(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """Columns of all ranks, rows of this one, by the ring's functions: only communication and
    memory differ from the ring."""
    return _OwnRows.apply(z1, z2, t1, t2)


def whole_loss(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """The loss of all frames, on every rank."""
    return fastseq.scl_loss(_Gathered.apply(z1), _Gathered.apply(z2), joined(t1), joined(t2))


def joined(x: Tensor) -> Tensor:
    """(N, T / R, ...) of every rank, along T."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, 1)


class _Gathered(torch.autograd.Function):
    """Every rank computes the same loss, so the ranks' gradients are equal and need not be sent."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.frames = z.shape[1]
        return joined(z)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        ranks, rank = dist.get_world_size(), dist.get_rank()
        return ranks * grad[:, rank * ctx.frames : (rank + 1) * ctx.frames]


class _OwnRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        every = joined(z1), joined(z2), joined(t1), joined(t2)
        rows, columns = _sides(z1, z2, t1, t2), _sides(*every)[::-1]
        found = [_statistics(*pair) for pair in zip(rows, columns, strict=True)]
        loss = sum((lse - log_g - mean).sum() for lse, log_g, mean in found)
        dist.all_reduce(loss)
        kept = [x for lse, log_g, _ in found for x in (lse, (-log_g).exp())]
        ctx.save_for_backward(z1, z2, t1, t2, *every, *kept)
        return loss / (columns[0].z[..., 0].numel() + columns[1].z[..., 0].numel())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        rows, columns = _sides(*saved[:4]), _sides(*saved[4:8])[::-1]
        own = [Weights(lse, torch.ones_like(lse), g) for lse, g in (saved[8:10], saved[10:])]
        every = [Weights(joined(w.lse), joined(w.weight), joined(w.target)) for w in own][::-1]
        top = grad * dist.get_world_size()
        top = top / (columns[0].z[..., 0].numel() + columns[1].z[..., 0].numel())
        grads = []
        for side, others, *weights in zip(rows, columns, own, every, strict=True):
            total = torch.zeros(side.z.shape, dtype=grad.dtype)
            add_gradient(total, side, others, *weights, None, None, OPTIONS, True, False)
            grads.append(finish(total, side, top, OPTIONS))
        return *grads, None, None


def _sides(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> tuple[Side, Side]:
    return Side(z1, t1, None), Side(z2, t2, None)


def _statistics(rows: Side, columns: Side) -> tuple[Tensor, Tensor, Tensor]:
    return statistics(rows, columns, None, None, OPTIONS, True)


WAYS = {"ring": ring, "all-gather, own rows": own_rows, "all-gather, whole loss": whole_loss}
