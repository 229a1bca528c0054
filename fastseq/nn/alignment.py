"""Modules of the losses between two sequences: Soft-DTW, TCC, LAV, LRProp; and Contrastive-IDM."""

from torch import Tensor

from fastseq.nn.loss import Loss
from fastseq.ops.common.lengths import Durations, Lengths
from fastseq.ops.common.validate import renamed
from fastseq.ops.contrastive_idm.op import contrastive_idm
from fastseq.ops.contrastive_idm.options import CIDMOptions
from fastseq.ops.lav.op import lav_loss
from fastseq.ops.lav.options import LAVOptions
from fastseq.ops.lrprop.op import lrprop_loss
from fastseq.ops.lrprop.options import LRPropOptions
from fastseq.ops.soft_dtw.op import soft_dtw
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from fastseq.ops.tcc.op import tcc_loss
from fastseq.ops.tcc.options import TCCOptions


class SoftDTW(Loss):
    """:func:`fastseq.soft_dtw` as a module; see there for the formula, shapes and defaults.

    A tensor ``gamma`` of shape () becomes a buffer of the module, which a schedule may change in
    place. Only the function accepts a gamma or a bandwidth for each pair.

    Example:
        >>> import torch
        >>> from fastseq.nn import SoftDTW
        >>> loss = SoftDTW(gamma=0.1, cost="cosine", end="free", reduction="mean")
        >>> x, y = torch.randn(4, 80, 128), torch.randn(4, 60, 128)
        >>> loss(x, y, lengths_x=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    tensors = ("gamma",)
    learned = ()

    def __init__(
        self,
        *,
        gamma: float | Tensor = 1.0,
        cost: str = "sqeuclidean",
        temperature: float = 0.1,
        softmin: str = "logsumexp",
        bandwidth: int | None = None,
        begin: str = "fixed",
        end: str = "fixed",
        warp_penalty: float = 0.0,
        divergence: bool = False,
        reduction: str = "none",
        backend: str = "auto",
    ):
        super().__init__(
            SoftDTWOptions.checked,
            backend,
            gamma=gamma,
            cost=cost,
            temperature=temperature,
            softmin=softmin,
            bandwidth=bandwidth,
            begin=begin,
            end=end,
            warp_penalty=warp_penalty,
            divergence=divergence,
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
        return soft_dtw(
            x,
            y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **self.options,
        )


class TCCLoss(Loss):
    """:func:`fastseq.tcc_loss` as a module; see there for the formula, shapes and defaults.

    A ``temperature`` that is an ``nn.Parameter`` becomes a parameter of the module; another tensor
    becomes a buffer.

    Example:
        >>> import torch
        >>> from fastseq.nn import TCCLoss
        >>> loss = TCCLoss(loss_type="classification")
        >>> x = torch.randn(4, 80, 128)
        >>> loss(x, lengths_x=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        loss_type: str = "regression_mse_var",
        similarity: str = "l2",
        temperature: float | Tensor = 0.1,
        variance_lambda: float = 0.001,
        label_smoothing: float = 0.1,
        huber_delta: float = 0.1,
        normalize_indices: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__(
            TCCOptions.checked,
            backend,
            loss_type=loss_type,
            similarity=similarity,
            temperature=temperature,
            variance_lambda=variance_lambda,
            label_smoothing=label_smoothing,
            huber_delta=huber_delta,
            normalize_indices=normalize_indices,
            reduction=reduction,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        tx: Tensor | None = None,
        ty: Tensor | None = None,
        *,
        duration_x: Durations = None,
        duration_y: Durations = None,
        lengths_x: Lengths = None,
        lengths_y: Lengths = None,
        valid_x: Tensor | None = None,
        valid_y: Tensor | None = None,
    ) -> Tensor:
        return tcc_loss(
            x,
            y,
            tx,
            ty,
            duration_x=duration_x,
            duration_y=duration_y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **self.options,
        )


class ContrastiveIDM(Loss):
    """:func:`fastseq.contrastive_idm` as a module; see there for the formula, shapes and defaults.

    Only the function accepts a window for each sequence.

    Example:
        >>> import torch
        >>> from fastseq.nn import ContrastiveIDM
        >>> loss = ContrastiveIDM(window=1.0)
        >>> loss(torch.randn(4, 80, 128), torch.arange(80) / 30, lengths=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        window: float = 10.0,
        margin: float = 2.0,
        kind: str = "contrastive",
        weights: str = "paper",
        distance: str = "sqeuclidean",
        reduction: str = "mean",
        backend: str = "auto",
        form: str | None = None,
    ):
        if form is not None:
            kind = renamed("ContrastiveIDM", "form", form, "kind", kind, "contrastive")
        super().__init__(
            CIDMOptions.checked,
            backend,
            window=window,
            margin=margin,
            kind=kind,
            weights=weights,
            distance=distance,
            reduction=reduction,
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor | None = None,
        *,
        lengths: Lengths = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        return contrastive_idm(z, t, lengths=lengths, valid=valid, **self.options)


class LAVLoss(Loss):
    """:func:`fastseq.lav_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import LAVLoss
        >>> loss = LAVLoss(form="code")
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 4, 20, 128), dim=-1)
        >>> tx = torch.arange(20) * 12
        >>> loss(x, y, tx, tx, duration_x=240, duration_y=240).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        gamma: float = 0.1,
        alpha: float = 0.5,
        window: float = 10.0,
        margin: float = 2.0,
        form: str = "paper",
        cost: str = "sqeuclidean",
        divergence: bool = False,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__(
            LAVOptions.checked,
            backend,
            gamma=gamma,
            alpha=alpha,
            window=window,
            margin=margin,
            form=form,
            cost=cost,
            divergence=divergence,
            reduction=reduction,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        tx: Tensor | None = None,
        ty: Tensor | None = None,
        *,
        duration_x: Durations = None,
        duration_y: Durations = None,
        lengths_x: Lengths = None,
        lengths_y: Lengths = None,
        valid_x: Tensor | None = None,
        valid_y: Tensor | None = None,
    ) -> Tensor:
        return lav_loss(
            x,
            y,
            tx,
            ty,
            duration_x=duration_x,
            duration_y=duration_y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **self.options,
        )


class LRPropLoss(Loss):
    """:func:`fastseq.lrprop_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import LRPropLoss
        >>> loss = LRPropLoss(variance=3.0)
        >>> loss(torch.randn(4, 30, 128), torch.randn(4, 20, 128)).shape
        torch.Size([])
    """

    tensors = ()

    def __init__(
        self,
        *,
        variance: float = 10.0,
        temperature: float = 0.1,
        normalize: bool = True,
        bandwidth: int | None = None,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__(
            LRPropOptions.checked,
            backend,
            variance=variance,
            temperature=temperature,
            normalize=normalize,
            bandwidth=bandwidth,
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
        return lrprop_loss(
            x,
            y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **self.options,
        )
