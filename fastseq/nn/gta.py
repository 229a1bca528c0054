"""Modules of GTA's and AE2's losses."""

from torch import Tensor

from fastseq.nn.loss import Loss
from fastseq.ops.common.lengths import Lengths
from fastseq.ops.gta.ae2 import ae2_loss
from fastseq.ops.gta.op import gta_loss
from fastseq.ops.gta.options import AE2Options, GTAOptions


class GTALoss(Loss):
    """:func:`fastseq.gta_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import GTALoss
        >>> loss = GTALoss(label_smoothing=0.1)
        >>> x, y = torch.randn(2, 4, 20, 128)
        >>> loss(x, y, lengths_x=[20, 12, 20, 7]).shape
        torch.Size([])
    """

    tensors = ()

    def __init__(
        self,
        *,
        gamma: float = 0.1,
        temperature: float = 0.1,
        softmin: str = "prob",
        consistency: bool = True,
        label_smoothing: float = 0.1,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__(
            GTAOptions.checked,
            backend,
            gamma=gamma,
            temperature=temperature,
            softmin=softmin,
            consistency=consistency,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        lengths_x: Lengths = None,
        lengths_y: Lengths = None,
        valid_x: Tensor | None = None,
        valid_y: Tensor | None = None,
    ) -> Tensor:
        return gta_loss(
            x,
            y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **self.options,
        )


class AE2Loss(Loss):
    """:func:`fastseq.ae2_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import AE2Loss
        >>> loss = AE2Loss(ratio=2.0)
        >>> x, y = torch.randn(2, 4, 32, 128)
        >>> loss(x, y, subset_x=torch.rand(4, 32) < 0.5, subset_y=torch.rand(4, 32) < 0.5).shape
        torch.Size([])
    """

    tensors = ()

    def __init__(
        self,
        *,
        gamma: float = 0.1,
        temperature: float = 0.1,
        softmin: str = "prob",
        margin: float = 0.0,
        ratio: float = 1.0,
        scale: float = 0.01,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__(
            AE2Options.checked,
            backend,
            gamma=gamma,
            temperature=temperature,
            softmin=softmin,
            margin=margin,
            ratio=ratio,
            scale=scale,
            reduction=reduction,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        subset_x: Tensor | None = None,
        subset_y: Tensor | None = None,
        lengths_x: Lengths = None,
        lengths_y: Lengths = None,
        valid_x: Tensor | None = None,
        valid_y: Tensor | None = None,
    ) -> Tensor:
        return ae2_loss(
            x,
            y,
            subset_x=subset_x,
            subset_y=subset_y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **self.options,
        )
