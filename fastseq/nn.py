"""nn.Module twins of the losses: options in the constructor, tensors in the call."""

from torch import Tensor, nn

from fastseq.feature_queue import FeatureQueue
from fastseq.ops.common.validate import (
    check_bool,
    check_choice,
    check_nonnegative,
    check_positive,
)
from fastseq.ops.contrastive_idm import options as idm_options
from fastseq.ops.contrastive_idm.op import contrastive_idm
from fastseq.ops.lav.op import FORMS as LAV_FORMS
from fastseq.ops.lav.op import lav_loss
from fastseq.ops.queue_nce.op import queue_nce
from fastseq.ops.queue_nce.options import REDUCTIONS as QUEUE_REDUCTIONS
from fastseq.ops.scl.op import scl_loss
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS
from fastseq.ops.soft_dtw import options as soft_dtw_options
from fastseq.ops.soft_dtw.op import soft_dtw
from fastseq.ops.tcc.op import Durations, Lengths, tcc_loss
from fastseq.ops.tcc.op import check_options as check_tcc_options
from fastseq.ops.tcn.op import tcn_loss

__all__ = [
    "ContrastiveIDM",
    "FeatureQueue",
    "LAVLoss",
    "QueueNCE",
    "SCLLoss",
    "SoftDTW",
    "TCCLoss",
    "TCNLoss",
]


class _Loss(nn.Module):
    """Shows the options of a loss, ``self.options``, in its representation."""

    options: dict

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class SCLLoss(_Loss):
    """:func:`fastseq.scl_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> loss = SCLLoss(temperature=0.1)
        >>> z1, z2 = torch.randn(2, 4, 80, 128).unbind()
        >>> loss(z1, z2, lengths1=[80, 60, 80, 7], lengths2=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        variance: float = 10.0,
        temperature: float = 0.1,
        normalize: bool = True,
        objective: str = "kl",
        negatives: str = "cross",
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__()
        check_positive("SCLLoss", "variance", variance)
        check_positive("SCLLoss", "temperature", temperature)
        check_bool("SCLLoss", "normalize", normalize)
        check_choice("SCLLoss", "objective", objective, OBJECTIVES)
        check_choice("SCLLoss", "negatives", negatives, NEGATIVES)
        check_choice("SCLLoss", "reduction", reduction, REDUCTIONS)
        self.options = {
            "variance": variance,
            "temperature": temperature,
            "normalize": normalize,
            "objective": objective,
            "negatives": negatives,
            "reduction": reduction,
            "backend": backend,
        }

    def forward(
        self,
        z1: Tensor,
        z2: Tensor,
        t1: Tensor | None = None,
        t2: Tensor | None = None,
        *,
        lengths1: Tensor | list[int] | int | None = None,
        lengths2: Tensor | list[int] | int | None = None,
        valid1: Tensor | None = None,
        valid2: Tensor | None = None,
    ) -> Tensor:
        real = {"lengths1": lengths1, "lengths2": lengths2, "valid1": valid1, "valid2": valid2}
        return scl_loss(z1, z2, t1, t2, **real, **self.options)


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
        super().__init__()
        check_positive("SoftDTW", "gamma", gamma)
        check_choice("SoftDTW", "cost", cost, soft_dtw_options.COSTS)
        soft_dtw_options.check_bandwidth("SoftDTW", bandwidth)
        check_bool("SoftDTW", "divergence", divergence)
        check_choice("SoftDTW", "reduction", reduction, soft_dtw_options.REDUCTIONS)
        self.options = {
            "gamma": gamma,
            "cost": cost,
            "bandwidth": bandwidth,
            "divergence": divergence,
            "reduction": reduction,
            "backend": backend,
        }

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        lengths_x: Tensor | list[int] | int | None = None,
        lengths_y: Tensor | list[int] | int | None = None,
    ) -> Tensor:
        return soft_dtw(x, y, lengths_x=lengths_x, lengths_y=lengths_y, **self.options)


class TCCLoss(_Loss):
    """:func:`fastseq.tcc_loss` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
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
        temperature: float = 0.1,
        variance_lambda: float = 0.001,
        label_smoothing: float = 0.1,
        huber_delta: float = 0.1,
        normalize_indices: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__()
        self.options = {
            "loss_type": loss_type,
            "similarity": similarity,
            "temperature": temperature,
            "variance_lambda": variance_lambda,
            "label_smoothing": label_smoothing,
            "huber_delta": huber_delta,
            "normalize_indices": normalize_indices,
            "reduction": reduction,
        }
        check_tcc_options("TCCLoss", **self.options)
        self.options["backend"] = backend

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
    ) -> Tensor:
        frames = {
            "duration_x": duration_x,
            "duration_y": duration_y,
            "lengths_x": lengths_x,
            "lengths_y": lengths_y,
        }
        return tcc_loss(x, y, tx, ty, **frames, **self.options)


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
        form: str = "contrastive",
        weights: str = "paper",
        distance: str = "sqeuclidean",
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__()
        check_nonnegative("ContrastiveIDM", "window", window)
        check_positive("ContrastiveIDM", "margin", margin)
        check_choice("ContrastiveIDM", "form", form, idm_options.FORMS)
        check_choice("ContrastiveIDM", "weights", weights, idm_options.WEIGHTS)
        check_choice("ContrastiveIDM", "distance", distance, idm_options.DISTANCES)
        check_choice("ContrastiveIDM", "reduction", reduction, idm_options.REDUCTIONS)
        self.options = {
            "window": window,
            "margin": margin,
            "form": form,
            "weights": weights,
            "distance": distance,
            "reduction": reduction,
            "backend": backend,
        }

    def forward(self, z: Tensor, t: Tensor | None = None, *, lengths: Lengths = None) -> Tensor:
        return contrastive_idm(z, t, lengths=lengths, **self.options)


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
        super().__init__()
        check_positive("LAVLoss", "gamma", gamma)
        check_nonnegative("LAVLoss", "alpha", alpha)
        check_nonnegative("LAVLoss", "window", window)
        check_positive("LAVLoss", "margin", margin)
        check_choice("LAVLoss", "form", form, LAV_FORMS)
        check_choice("LAVLoss", "cost", cost, soft_dtw_options.COSTS)
        check_bool("LAVLoss", "divergence", divergence)
        check_choice("LAVLoss", "reduction", reduction, soft_dtw_options.REDUCTIONS)
        self.options = {
            "gamma": gamma,
            "alpha": alpha,
            "window": window,
            "margin": margin,
            "form": form,
            "cost": cost,
            "divergence": divergence,
            "reduction": reduction,
            "backend": backend,
        }

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
    ) -> Tensor:
        frames = {
            "duration_x": duration_x,
            "duration_y": duration_y,
            "lengths_x": lengths_x,
            "lengths_y": lengths_y,
        }
        return lav_loss(x, y, tx, ty, **frames, **self.options)


class QueueNCE(_Loss):
    """:func:`fastseq.queue_nce` as a module; see there for the formula, shapes and defaults.

    Example:
        >>> import torch
        >>> queue = FeatureQueue(4096, 128)
        >>> q, keys = torch.randn(8, 128), torch.randn(8, 3, 128)
        >>> QueueNCE()(q, keys, queue.features).shape
        torch.Size([])
        >>> queue.enqueue(keys)
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__()
        check_positive("QueueNCE", "temperature", temperature)
        check_bool("QueueNCE", "normalize", normalize)
        check_choice("QueueNCE", "reduction", reduction, QUEUE_REDUCTIONS)
        self.options = {
            "temperature": temperature,
            "normalize": normalize,
            "reduction": reduction,
            "backend": backend,
        }

    def forward(self, q: Tensor, positives: Tensor, queue: Tensor) -> Tensor:
        return queue_nce(q, positives, queue, **self.options)
