"""nn.Module twins of the losses: options in the constructor, tensors in the call."""

from torch import Tensor, nn

from fastseq.ops.common.validate import check_bool, check_choice, check_positive
from fastseq.ops.scl.op import scl_loss
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS

__all__ = ["SCLLoss"]


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
