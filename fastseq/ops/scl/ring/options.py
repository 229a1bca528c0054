"""The options of a call with ``group=``, and what its rooms pass to each other."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fastseq.ops.scl.options import SCLOptions

SPLITS = ("frames", "videos")


class RingOptions(NamedTuple):
    """`SCLOptions`, the name of the group and the dimension along which its ranks' parts join."""

    variance: float
    temperature: float
    normalize: bool
    objective: str
    negatives: str
    reduction: str
    target: str
    group: str
    split: str

    @property
    def scl(self) -> SCLOptions:
        return SCLOptions(*self[: len(SCLOptions._fields)])


class Side(NamedTuple):
    """Frames that are rows or columns of scores.

    z: (N, T, D) in the inputs' dtype. t: times (N, T), or None if the frames have no targets.
    valid: None, lengths (N,) or mask (N, T).
    """

    z: Tensor
    t: Tensor | None
    valid: Tensor | None


class Weights(NamedTuple):
    """What the gradient needs to know of frames, each (N, T).

    lse: log of the softmax's denominator over the columns of all ranks; 1e30 where weight is 0.
    weight: relative weight of the frame's row in the loss, at most 1 in size; 0 for rows that are
    not real or have no target. target: weight / sum of g.
    """

    lse: Tensor
    weight: Tensor
    target: Tensor


class Primitives(NamedTuple):
    """What a backend computes for the rows of N sequences and some of their columns.

    ``near``: False for columns that are additional negatives, without targets. Sums of g may have a
    constant factor exp(c) of the backend's own if all calls have the same.
    """

    # statistics(rows, columns, tau, var, opts, near) -> log-sum-exp of the scores, log of the sum
    # of g = exp(e), and the mean of s - e ("ce": of s) under g, each (N, T) in the accumulator's
    # dtype. The last two are None unless near; -inf and 0 for rows with no column within reach.
    statistics: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
    # add_gradient(total, rows, columns, of_rows, of_columns, tau, var, opts, near, along): adds to
    # total (N, T, D) the gradient of the rows' embeddings, before `finish`; returns with ``along``
    # the sum of each score times its gradient, else None.
    add_gradient: Callable[..., Tensor | None]
    # finish(total, rows, top, opts) -> the gradient (N, T, D) in the dtype of z: total times the
    # scalar ``top``, through the normalisation; 0 for frames that are not real.
    finish: Callable[..., Tensor]
