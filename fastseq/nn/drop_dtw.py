"""Modules of the alignments of given costs in which frames may stay unmatched."""

from torch import Tensor

from fastseq.nn.loss import Loss
from fastseq.ops.common.lengths import Lengths
from fastseq.ops.drop_dtw.op import drop_dtw, otam
from fastseq.ops.drop_dtw.options import DropDTWOptions


class DropDTW(Loss):
    """:func:`fastseq.drop_dtw` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import DropDTW
        >>> loss = DropDTW(gamma=0.1, softmin="prob", reduction="mean")
        >>> cost = torch.rand(4, 6, 80)
        >>> loss(cost, torch.full((4, 80), 0.3), lengths_y=[80, 60, 80, 40]).shape
        torch.Size([])
    """

    tensors = ()

    def __init__(
        self,
        *,
        gamma: float = 1.0,
        softmin: str = "logsumexp",
        contiguous: bool = True,
        exclusive: bool = True,
        reduction: str = "none",
        backend: str = "auto",
    ):
        super().__init__(
            DropDTWOptions.checked,
            backend,
            gamma=gamma,
            softmin=softmin,
            contiguous=contiguous,
            exclusive=exclusive,
            reduction=reduction,
        )

    def forward(
        self,
        cost: Tensor,
        drop_cost: Tensor,
        *,
        lengths_x: Lengths = None,
        lengths_y: Lengths = None,
    ) -> Tensor:
        return drop_dtw(cost, drop_cost, lengths_x=lengths_x, lengths_y=lengths_y, **self.options)


class OTAM(Loss):
    """:func:`fastseq.otam` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import OTAM
        >>> cost = torch.rand(25, 8, 8)
        >>> loss = OTAM(gamma=0.1)
        >>> ((loss(cost) + loss(cost.mT)) / 2).shape
        torch.Size([25])
    """

    tensors = ()

    def __init__(
        self,
        *,
        gamma: float = 0.1,
        softmin: str = "logsumexp",
        reduction: str = "none",
        backend: str = "auto",
    ):
        super().__init__(
            DropDTWOptions.checked, backend, gamma=gamma, softmin=softmin, reduction=reduction
        )

    def forward(
        self, cost: Tensor, *, lengths_x: Lengths = None, lengths_y: Lengths = None
    ) -> Tensor:
        return otam(cost, lengths_x=lengths_x, lengths_y=lengths_y, **self.options)
