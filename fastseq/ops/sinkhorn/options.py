"""The options of one call, and the numbers of each pair that the backends share.

Rows are frames of x and columns are frames of y. With a virtual frame, row 0 and column 0 are
virtual and the real frames follow. Place i of N' frames has the relative time (i + 1) / N'.
"""

import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.dtypes import accumulator
from fastseq.ops.common.lengths import Lengths, prepare_valid, real_first, reorder
from fastseq.ops.common.validate import (
    REDUCTIONS,
    check_choice,
    check_nonnegative,
    check_pair,
    check_positive,
)

COSTS = ("sqeuclidean", "cosine")


class SinkhornOptions(NamedTuple):
    """What the backends receive. The numbers of each pair are in `Numbers`."""

    iterations: int | None
    virtual: bool


class AlignmentOptions(NamedTuple):
    """The checked options of sinkhorn_alignment."""

    epsilon: float
    iterations: int
    cost: str
    prior_width: float | None
    virtual_cost: float | None
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        epsilon: float,
        iterations: int,
        cost: str,
        prior_width: float | None,
        virtual_cost: float | None,
        reduction: str = "none",
    ) -> "AlignmentOptions":
        check_choice(op, "cost", cost, COSTS)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        return cls(
            check_positive(op, "epsilon", epsilon),
            check_iterations(op, iterations),
            cost,
            None if prior_width is None else check_positive(op, "prior_width", prior_width),
            None if virtual_cost is None else check_nonnegative(op, "virtual_cost", virtual_cost),
            reduction,
        )


def check_iterations(op: str, iterations: int) -> int:
    # Integers of numpy too. isinstance with an abstract class takes ten times as long as type.
    if type(iterations) is not int and (
        isinstance(iterations, bool) or not isinstance(iterations, numbers.Integral)
    ):
        raise TypeError(f"{op}: iterations must be an integer, got {iterations!r}")
    if not 1 <= iterations <= 10_000:
        raise ValueError(f"{op}: iterations must lie between 1 and 10,000, got {iterations}")
    return int(iterations)


class Numbers(NamedTuple):
    """One number of each pair, (N,), or one for all pairs."""

    inverse_epsilon: Tensor | float
    step_a: Tensor | float  # 1 / N', the weight of a row
    step_b: Tensor | float  # 1 / M', the weight of a column
    rate: Tensor | float  # 1 / (2 width^2) of the Gaussian priors, in relative time
    kappa: Tensor | float  # weight of 1 / (gap^2 + 1) in the log weights
    phi: Tensor | float  # share of the prior of the diagonal; the rest is that of the centres
    virtual_cost: Tensor | float
    log_virtual: Tensor | float  # log weight of a cell with exactly one virtual frame

    def stacked(self, num: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(N, 8): the input ``pairs`` of the backends."""
        columns = [torch.as_tensor(n, dtype=torch.float64, device=device) for n in self]
        return torch.stack([c.expand(num) for c in columns], 1).to(dtype)


class Frames(NamedTuple):
    """Checked frames of a batch of pairs, real frames first."""

    x: Tensor  # (N, T, D)
    y: Tensor  # (N, S, D)
    lengths_x: Tensor | None
    lengths_y: Tensor | None
    orders: tuple[Tensor | None, Tensor | None]  # where the frames were, for masks

    @classmethod
    def checked(
        cls,
        op: str,
        x: Tensor,
        y: Tensor,
        lengths: tuple[Lengths, Lengths],
        valid: tuple[Tensor | None, Tensor | None],
    ) -> "Frames":
        check_pair(op, "x", x, "y", y)
        if x.dim() == 2:
            x, y = x[None], y[None]
        if x.dtype != y.dtype:
            wider = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(wider), y.to(wider)
        (order_x, lengths_x), (order_y, lengths_y) = (
            real_first(prepare_valid(op, name, n, mask, len(z), z.shape[1], z.device))
            for name, n, mask, z in zip(("_x", "_y"), lengths, valid, (x, y), strict=True)
        )
        orders = order_x, order_y
        return cls(reorder(x, order_x), reorder(y, order_y), lengths_x, lengths_y, orders)

    def without_empty(self) -> "Frames":
        """The same with length 0 on both sides where one side has no real frame."""
        n, m = counts(self.x, self.lengths_x), counts(self.y, self.lengths_y)
        if self.lengths_x is None and self.lengths_y is None and self.x.shape[1] * self.y.shape[1]:
            return self
        both = (n > 0) & (m > 0)
        return self._replace(lengths_x=n * both, lengths_y=m * both)

    @property
    def dtype(self) -> torch.dtype:
        return accumulator(self.x.dtype)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Numbers of real frames of x and of y, (N,) each, in float64."""
        return counts(self.x, self.lengths_x).double(), counts(self.y, self.lengths_y).double()


def counts(z: Tensor, lengths: Tensor | None) -> Tensor:
    """Numbers of real frames, (N,), between 0 and T."""
    frames = z.shape[1]
    if lengths is None:
        return torch.full((len(z),), frames, device=z.device)
    return lengths.clamp(0, frames)
