"""Batch norm over the rows of all ranks, also on a CPU (torch.nn.SyncBatchNorm needs a GPU)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.support.command import UserError


def sync_batch_norms(module: nn.Module, device: torch.device) -> None:
    """Replace the batch norms that are in training mode, in place; frozen ones stay.

    Parameters, buffers and their names stay the same. Every rank must call each batch norm equally
    often; a rank without rows passes a tensor with 0 rows.

    Raises UserError, before any is replaced, for a subclass that also computes something else, such
    as timm's BatchNormAct2d: the replacement would omit it.
    """
    for child in module.modules():
        takes_statistics = isinstance(child, _BatchNorm) and child.training
        if takes_statistics and type(child) not in _REPLACEABLE:
            backbone = getattr(getattr(module, "backbone", None), "name", None)
            raise UserError(
                f"model.backbone={backbone}: {type(child).__name__} cannot share statistics "
                "between ranks; set model.train_from=none, or train in one process"
            )
    _replace(module, device)


def _replace(module: nn.Module, device: torch.device) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and child.training:
            if device.type == "cuda":
                synced = nn.SyncBatchNorm.convert_sync_batchnorm(child)
                synced.__class__ = _SyncBatchNormGPU
            else:
                synced = SyncBatchNorm.taking_over(child)
            setattr(module, name, synced)
        else:
            _replace(child, device)


class _SyncBatchNormGPU(nn.SyncBatchNorm):
    """Sends fp32 also from a rank without rows, where torch's class sends the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.numel() else x.float()).to(x.dtype)


class SyncBatchNorm(_BatchNorm):
    """Training: mean and variance over the rows of all ranks. Evaluation: as any batch norm.

    x is (n, C, ...) of any floating dtype and is computed at least in fp32; n may differ between
    ranks and may be 0. Running statistics are the same on every rank.
    """

    @classmethod
    def taking_over(cls, other: _BatchNorm) -> "SyncBatchNorm":
        """A module with the same parameters and buffers, not copies of them."""
        made = cls(
            other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats
        )
        made._parameters, made._buffers = other._parameters, other._buffers
        return made.train(other.training)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"SyncBatchNorm: expected (n, C, ...), got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        self._check_input_dim(x)
        # (n, C, ...) to rows (M, C) and back; neither copies in the channels-last layout.
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).movedim(1, -1)
        flat = rows.reshape(-1, x.shape[1])
        out, mean, var, count = _Normalise.apply(flat, self.weight, self.bias, self.eps)
        if self.track_running_stats and count > 0:
            with torch.no_grad():
                if self.num_batches_tracked is not None:  # None while a chunk is recomputed
                    self.num_batches_tracked += 1
                share = self.momentum
                if share is None:  # a plain average
                    share = 1 / float(self.num_batches_tracked)
                unbiased = var * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return out.view(rows.shape).movedim(-1, 1).to(x.dtype)


_REPLACEABLE = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(SyncBatchNorm, _SyncBatchNormGPU),
)


class _Normalise(torch.autograd.Function):
    """(row - mean) / sqrt(var + eps) * weight + bias of rows (M, C), with mean, var, count."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        mean, squares, count = _statistics(rows)
        var = squares / count.clamp(min=1)
        scale = (var + eps).rsqrt()
        normal = (rows - mean) * scale
        ctx.save_for_backward(normal, weight, scale, count)
        ctx.has_bias = bias is not None
        out = normal.clone() if weight is None else normal * weight  # may be changed later
        out = out if bias is None else out + bias
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        normal, weight, scale, count = ctx.saved_tensors
        grad_bias, grad_weight = grad.sum(0), (grad * normal).sum(0)  # of this rank, as DDP expects
        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums)
        mean, slope = sums / count.clamp(min=1)
        grad_x = (grad - mean - normal * slope) * scale
        if weight is not None:
            grad_x = grad_x * weight
        return (
            grad_x,
            None if weight is None else grad_weight.to(weight.dtype),
            grad_bias if ctx.has_bias else None,
            None,
        )


def _statistics(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations from it, and number of all ranks' rows (M, C).

    The ranks' statistics are merged after Chan, Golub and LeVeque, because E[x^2] - E[x]^2 cancels
    for a large mean. They are merged in order of rank, so that all ranks get the same bits.
    """
    channels = rows.shape[1]
    mean = rows.mean(0) if len(rows) else rows.new_zeros(channels)
    squares = (rows - mean).square().sum(0)
    mine = torch.cat([mean, squares, mean.new_tensor([float(len(rows))])])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    means, all_squares, counts = torch.stack(parts).split([channels, channels, 1], 1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count.clamp(min=1)
    squares = (all_squares + counts * (means - mean).square()).sum(0)
    return mean, squares, count
