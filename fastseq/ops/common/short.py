"""Which calls on the CPU are short: small enough to keep one number for each pair of frames."""

import math
from collections.abc import Sequence

from torch import Tensor

# Limit in bytes for one number per pair of frames, over all sequences. Up to it a forward keeps
# these numbers, and the backward computes no score again. Above it memory is linear in the frames.
KEPT_BYTES = 8 << 20


def kept_pairs(z1: Tensor, z2: Tensor, needs: Sequence[bool]) -> tuple[int, int, int] | None:
    """The shape (N, T1, T2) of the numbers that a forward keeps; None: no gradient is needed,
    there are too many pairs, or the tensors are not on the CPU."""
    if z1.device.type != "cpu" or not any(needs):
        return None
    shape = (*z1.shape[:2], z2.shape[1])
    size = 8 if z1.dtype.itemsize == 8 else 4  # float16 and bfloat16 are computed in float32
    return shape if size * math.prod(shape) <= KEPT_BYTES else None
