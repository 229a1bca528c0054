"""Which calls on the CPU are short: small enough to keep a number for each pair of frames."""

import math
from collections.abc import Sequence

from torch import Tensor

# Bytes of one number for each pair of frames, in all sequences together. Up to here a forward keeps
# them for the backward, which then forms no score again. Above, memory is linear in the frames.
KEPT_BYTES = 8 << 20


def kept_pairs(z1: Tensor, z2: Tensor, needs: Sequence[bool]) -> tuple[int, int, int] | None:
    """The shape (N, T1, T2) of what a forward keeps; None: no gradient is wanted, there are too
    many pairs, or no CPU."""
    if z1.device.type != "cpu" or not any(needs):
        return None
    shape = (*z1.shape[:2], z2.shape[1])
    size = 8 if z1.dtype.itemsize == 8 else 4  # halves are float32 inside
    return shape if size * math.prod(shape) <= KEPT_BYTES else None
