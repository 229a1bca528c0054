"""The options of one call, and the parts of the definition that the backends share."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastseq.ops.common.validate import REDUCTIONS, check_bool, check_choice, check_positive

NORM_EPS = 1e-12  # as torch.nn.functional.normalize


# Differentiable inputs: q, the positives and the temperature.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class QueueNCEOptions(NamedTuple):
    """The checked options. ``temperature`` is 1 where the call has it as a tensor."""

    temperature: float
    normalize: bool
    reduction: str

    @classmethod
    def checked(
        cls, op: str, temperature: float, normalize: bool, reduction: str
    ) -> "QueueNCEOptions":
        temperature = check_positive(op, "temperature", temperature)
        check_bool(op, "normalize", normalize)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        return cls(temperature, normalize, reduction)


def keeps_mean(needs: Sequence[bool]) -> bool:
    """Whether the backward needs the queue's mean: for the gradient of q or of the temperature."""
    return needs[0] or needs[2]


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The losses (N, P), or their sum or mean."""
    return losses if reduction == "none" else losses.sum() / _count(losses, reduction)


def spread(grad: Tensor, losses: Tensor, reduction: str) -> Tensor:
    """The gradient of each loss, a tensor like ``losses``, from that of the reduced ones."""
    # Not left to autograd, whose nodes for this cost 40 us.
    return grad if reduction == "none" else (grad / _count(losses, reduction)).expand(losses.shape)


def _count(losses: Tensor, reduction: str) -> int:
    return max(1, losses.shape[0] * losses.shape[1]) if reduction == "mean" else 1
