"""The options of one call, and the parts of the definition that the backends share."""

import operator
from typing import NamedTuple, overload

from torch import Tensor

from fastseq.ops.common.validate import (
    REDUCTIONS,
    check_bool,
    check_choice,
    check_nonnegative,
    check_positive,
)

COSTS = ("sqeuclidean", "cosine")
ALL_COSTS = (*COSTS, "softmax")  # of soft_dtw and its alignment
SOFTMINS = ("logsumexp", "prob", "sparse")
ENDS = ("fixed", "free")


class SoftDTWOptions(NamedTuple):
    gamma: float
    bandwidth: int | None
    begin_free: bool = False
    end_free: bool = False
    warp_penalty: float = 0.0
    softmin: str = "logsumexp"

    @classmethod
    def checked(
        cls,
        op: str,
        gamma: float,
        bandwidth: int | None,
        cost: str = "sqeuclidean",
        divergence: bool = False,
        reduction: str = "none",
        begin: str = "fixed",
        end: str = "fixed",
        warp_penalty: float = 0.0,
        softmin: str = "logsumexp",
        temperature: float = 0.1,
    ) -> "SoftDTWOptions":
        """cost, temperature, divergence and reduction are only checked here."""
        check_choice(op, "cost", cost, ALL_COSTS)
        check_bool(op, "divergence", divergence)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        check_choice(op, "softmin", softmin, SOFTMINS)
        check_positive(op, "temperature", temperature)
        ends = checked_ends(op, begin, end, warp_penalty)
        if divergence and (begin, end) != ("fixed", "fixed"):
            raise ValueError(
                f"{op}: divergence=True needs begin='fixed' and end='fixed', got {begin!r} and "
                f"{end!r}: with free ends value(x, x) is no baseline; to fix: divergence=False"
            )
        if divergence and cost == "softmax":
            raise ValueError(
                f"{op}: divergence=True needs cost='sqeuclidean' or 'cosine', got 'softmax', which "
                "is not symmetric; to fix: divergence=False"
            )
        if softmin != "logsumexp" and (begin, end) != ("fixed", "fixed"):
            raise ValueError(
                f"{op}: softmin={softmin!r} needs begin='fixed' and end='fixed', got {begin!r} and "
                f"{end!r}; to fix: softmin='logsumexp'"
            )
        bandwidth = check_bandwidth(op, bandwidth)
        return cls(check_positive(op, "gamma", gamma), bandwidth, *ends, softmin)


def checked_ends(op: str, begin: str, end: str, warp_penalty: float) -> tuple[bool, bool, float]:
    """(begin_free, end_free, warp_penalty)."""
    check_choice(op, "begin", begin, ENDS)
    check_choice(op, "end", end, ENDS)
    return begin == "free", end == "free", check_nonnegative(op, "warp_penalty", warp_penalty)


@overload
def band_limits(n: int, m: int, bandwidth: int | None) -> tuple[int, int]: ...
@overload
def band_limits(n: Tensor, m: Tensor, bandwidth: int | Tensor | None) -> tuple[Tensor, Tensor]: ...
def band_limits(n, m, bandwidth):
    """(low, high): cell (i, j), counted from 0, is allowed when low <= j - i <= high.

    n and m are the real lengths, integers or integer tensors; with tensors the bandwidth may be one
    too. The band covers ``bandwidth`` diagonals on either side of those that lead from the first
    cell to the last one, so that it always contains a path. Without a band the limits are those of
    the matrix.
    """
    if bandwidth is None:
        return -n, m
    extra = m - n
    if isinstance(extra, Tensor):
        return extra.clamp(max=0) - bandwidth, extra.clamp(min=0) + bandwidth
    return min(extra, 0) - bandwidth, max(extra, 0) + bandwidth


def check_bandwidth(op: str, bandwidth: int | None) -> int | None:
    """An integer of at least 0, or None for no band."""
    if bandwidth is None:
        return None
    try:
        if isinstance(bandwidth, bool | Tensor):
            raise TypeError
        bandwidth = operator.index(bandwidth)
    except TypeError:
        raise TypeError(
            f"{op}: bandwidth must be an integer or None, got {type(bandwidth).__name__}"
        ) from None
    if bandwidth < 0:
        raise ValueError(f"{op}: bandwidth must be 0 or more, or None, got {bandwidth}")
    return min(bandwidth, 2**30)  # equivalent to no band, and far from int64's limit
