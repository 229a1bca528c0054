"""nn.Module twins of the losses: options in the constructor, tensors in the call."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastseq.ops.common.lengths import Durations, Lengths
from fastseq.ops.common.validate import check_nonnegative, check_scalar, renamed
from fastseq.ops.contrastive_idm.op import contrastive_idm
from fastseq.ops.contrastive_idm.options import CIDMOptions
from fastseq.ops.lav.op import lav_loss
from fastseq.ops.lav.options import LAVOptions
from fastseq.ops.queue_nce.feature_queue import FeatureQueue
from fastseq.ops.queue_nce.op import queue_nce
from fastseq.ops.queue_nce.options import QueueNCEOptions
from fastseq.ops.scl.op import scl_loss
from fastseq.ops.scl.options import SCLOptions
from fastseq.ops.soft_dtw.op import soft_dtw
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from fastseq.ops.tcc.op import tcc_loss
from fastseq.ops.tcc.options import TCCOptions
from fastseq.ops.tcn.op import tcn_loss
from fastseq.ops.vclr.op import vclr_loss
from fastseq.ops.vclr.options import VCLROptions

__all__ = [
    "ContrastiveIDM",
    "FeatureQueue",
    "LAVLoss",
    "QueueNCE",
    "SCLLoss",
    "SoftDTW",
    "TCCLoss",
    "TCNLoss",
    "VCLRLoss",
]


class _Loss(nn.Module):
    """Checks the options of a loss when it is made, and shows them in its representation.

    Those in ``tensors`` may be 0-dim tensors: an ``nn.Parameter`` becomes one of the module,
    another tensor a buffer.
    """

    tensors: tuple[str, ...] = ()

    def __init__(self, check: Callable[..., object], backend: str, **options: Any) -> None:
        super().__init__()
        given = {k: options.pop(k) for k in self.tensors if isinstance(options[k], Tensor)}
        check(type(self).__name__, **options, **dict.fromkeys(given, 1.0))
        for name, value in given.items():
            check_scalar(type(self).__name__, name, value, value.device)
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)
        self.registered, self.constants = tuple(given), options | {"backend": backend}

    @property
    def options(self) -> dict[str, Any]:
        # The module may have moved its parameters and buffers, or got others.
        return self.constants | {name: getattr(self, name) for name in self.registered}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.constants.items())


class SCLLoss(_Loss):
    """:func:`fastseq.scl_loss` as a module; see there for the formula, shapes and defaults.

    ``temperature`` as an ``nn.Parameter`` is one of the module, as another tensor a buffer of it;
    ``variance`` as a tensor is a buffer.

    Example:
        >>> import torch
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
            **self.options,
        )


class SoftDTW(_Loss):
    """:func:`fastseq.soft_dtw` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> loss = SoftDTW(gamma=0.1, cost="cosine", reduction="mean")
        >>> x, y = torch.randn(4, 80, 128), torch.randn(4, 60, 128)
        >>> loss(x, y, lengths_x=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        gamma: float = 1.0,
        cost: str = "sqeuclidean",
        bandwidth: int | None = None,
        divergence: bool = False,
        reduction: str = "none",
        backend: str = "auto",
    ):
        super().__init__(
            SoftDTWOptions.checked,
            backend,
            gamma=gamma,
            cost=cost,
            bandwidth=bandwidth,
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


class TCCLoss(_Loss):
    """:func:`fastseq.tcc_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> loss = TCCLoss(loss_type="classification")
        >>> x = torch.randn(4, 80, 128)
        >>> loss(x, lengths_x=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    tensors = ("temperature",)

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


class TCNLoss(nn.Module):
    """:func:`fastseq.tcn_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
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


class ContrastiveIDM(_Loss):
    """:func:`fastseq.contrastive_idm` as a module; see there for the formula, shapes and defaults.

    A window for each sequence is the function's alone.

    Example:
        >>> import torch
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


class LAVLoss(_Loss):
    """:func:`fastseq.lav_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
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


class QueueNCE(_Loss):
    """:func:`fastseq.queue_nce` as a module; see there for the formula, shapes and defaults.

    ``temperature`` as an ``nn.Parameter`` is one of the module, as another tensor a buffer of it.

    Example:
        >>> import torch
        >>> queue = FeatureQueue(4096, 128)
        >>> q, keys = torch.randn(8, 128), torch.randn(8, 3, 128)
        >>> QueueNCE()(q, keys, queue.features).shape
        torch.Size([])
        >>> queue.enqueue(keys)
    """

    tensors = ("temperature",)

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


class VCLRLoss(_Loss):
    """:func:`fastseq.vclr_loss` as a module; see there for the formula, shapes and defaults.

    ``temperature`` as an ``nn.Parameter`` is one of the module, as another tensor a buffer of it.

    Example:
        >>> import torch
        >>> q, queue = torch.randn(8, 128), FeatureQueue(4096, 128)
        >>> classifier = torch.nn.Linear(2 * 3 * 16, 4)
        >>> order = (*torch.randn(2, 8, 3, 16), torch.zeros(8, dtype=torch.long), classifier)
        >>> VCLRLoss()(inter=(q, q, queue.features), order=order).shape
        torch.Size([])
    """

    tensors = ("temperature",)

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
