"""nn.Module twins of the losses: options in the constructor, tensors in the call."""

from torch import Tensor, nn

from fastseq.ops.common.validate import check_bool, check_choice, check_positive
from fastseq.ops.scl.op import scl_loss
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS
from fastseq.ops.soft_dtw import options as soft_dtw_options
from fastseq.ops.soft_dtw.op import soft_dtw

__all__ = ["SCLLoss", "SoftDTW"]


class SCLLoss(nn.Module):
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

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class SoftDTW(nn.Module):
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

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
