"""Modules of the contrastive losses: CARL, time-contrastive network, VCLR."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastseq.nn.loss import Loss
from fastseq.ops.common.lengths import Lengths
from fastseq.ops.common.validate import check_nonnegative
from fastseq.ops.queue_nce.op import queue_nce
from fastseq.ops.queue_nce.options import QueueNCEOptions
from fastseq.ops.scl.op import scl_loss
from fastseq.ops.scl.options import SCLOptions
from fastseq.ops.tcn.op import tcn_loss
from fastseq.ops.vclr.op import vclr_loss
from fastseq.ops.vclr.options import VCLROptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SCLLoss(Loss):
    """:func:`fastseq.scl_loss` as a module; see there for the formula, shapes and defaults.

    A ``temperature`` that is an ``nn.Parameter`` becomes a parameter of the module; another tensor
    becomes a buffer, and so does a tensor ``variance``.

    Example:
        >>> import torch
        >>> from fastseq.nn import SCLLoss
        >>> loss = SCLLoss(temperature=0.1)
        >>> z1, z2 = torch.randn(2, 4, 80, 128).unbind()
        >>> loss(z1, z2, lengths1=[80, 60, 80, 7], lengths2=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    tensors = ("variance", "temperature")

    def __init__(
        self,
        *,
        variance: float | Tensor = 10.0,
        temperature: float | Tensor = 0.1,
        normalize: bool = True,
        objective: str = "kl",
        negatives: str = "cross",
        reduction: str = "mean",
        target: str = "gauss",
        backend: str = "auto",
    ):
        super().__init__(
            SCLOptions.checked,
            backend,
            variance=variance,
            temperature=temperature,
            normalize=normalize,
            objective=objective,
            negatives=negatives,
            reduction=reduction,
            target=target,
        )

    def forward(
        self,
        z1: Tensor,
        z2: Tensor,
        t1: Tensor | None = None,
        t2: Tensor | None = None,
        *,
        lengths1: Lengths = None,
        lengths2: Lengths = None,
        valid1: Tensor | None = None,
        valid2: Tensor | None = None,
        group: "ProcessGroup | None" = None,
        split: str = "frames",
    ) -> Tensor:
        return scl_loss(
            z1,
            z2,
            t1,
            t2,
            lengths1=lengths1,
            lengths2=lengths2,
            valid1=valid1,
            valid2=valid2,
            group=group,
            split=split,
            **self.options,
        )


class TCNLoss(nn.Module):
    """:func:`fastseq.tcn_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import TCNLoss
        >>> z = torch.randn(4, 80, 128)
        >>> TCNLoss()(z[:, 0::2], z[:, 1::2]).shape
        torch.Size([])
    """

    def __init__(self, *, reg_lambda: float = 0.002):
        super().__init__()
        self.reg_lambda = check_nonnegative("TCNLoss", "reg_lambda", reg_lambda)

    def forward(self, anchors: Tensor, positives: Tensor) -> Tensor:
        return tcn_loss(anchors, positives, reg_lambda=self.reg_lambda)

    def extra_repr(self) -> str:
        return f"reg_lambda={self.reg_lambda!r}"


class QueueNCE(Loss):
    """:func:`fastseq.queue_nce` as a module; see there for the formula, shapes and defaults.

    A ``temperature`` that is an ``nn.Parameter`` becomes a parameter of the module; another tensor
    becomes a buffer.

    Example:
        >>> import torch
        >>> from fastseq.nn import FeatureQueue, QueueNCE
        >>> queue = FeatureQueue(4096, 128)
        >>> q, keys = torch.randn(8, 128), torch.randn(8, 3, 128)
        >>> QueueNCE()(q, keys, queue.features).shape
        torch.Size([])
        >>> queue.enqueue(keys)
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.1,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__(
            QueueNCEOptions.checked,
            backend,
            temperature=temperature,
            normalize=normalize,
            reduction=reduction,
        )

    def forward(self, q: Tensor, positives: Tensor, queue: Tensor) -> Tensor:
        return queue_nce(q, positives, queue, **self.options)


class VCLRLoss(Loss):
    """:func:`fastseq.vclr_loss` as a module; see there for the formula, shapes and defaults.

    A ``temperature`` that is an ``nn.Parameter`` becomes a parameter of the module; another tensor
    becomes a buffer.

    Example:
        >>> import torch
        >>> from fastseq.nn import FeatureQueue, VCLRLoss
        >>> q, queue = torch.randn(8, 128), FeatureQueue(4096, 128)
        >>> classifier = torch.nn.Linear(2 * 3 * 16, 4)
        >>> order = (*torch.randn(2, 8, 3, 16), torch.zeros(8, dtype=torch.long), classifier)
        >>> VCLRLoss()(inter=(q, q, queue.features), order=order).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        temperature: float | Tensor = 0.1,
        normalize: bool = True,
        form: str = "paper",
        backend: str = "auto",
    ):
        super().__init__(
            VCLROptions.checked,
            backend,
            weights=weights,
            temperature=temperature,
            normalize=normalize,
            form=form,
        )

    def forward(
        self,
        *,
        inter: tuple[Tensor, Tensor, Tensor] | None = None,
        intra: tuple[Tensor, Tensor, Tensor] | None = None,
        video: tuple[Tensor, Tensor, Tensor] | None = None,
        order: tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        return vclr_loss(inter=inter, intra=intra, video=video, order=order, **self.options)
