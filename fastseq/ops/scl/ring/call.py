"""The link from the ring's backends to PyTorch."""

from torch import Tensor

from fastseq.ops.common.fused import FusedLoss
from fastseq.ops.scl.ring.options import RingOptions
from fastseq.ops.scl.ring.reference import ring_reference


def _shapes(z1: Tensor, z2: Tensor, *_, backend: str, opts: RingOptions, needs):
    """Shapes of the loss, of the statistics of this rank's rows and of the row coefficients."""
    n, frames = z1.shape[0], z1.shape[1] + z2.shape[1]
    return (n,) if opts.reduction == "none" else (), (2, n, frames), (2, n)


FUSED = FusedLoss(
    "scl_loss",
    "fastseq.ops.scl.ring",
    inputs=("z1", "z2", "tau?", "var?", "t1?", "t2?", "valid1?", "valid2?"),
    differentiable=3,
    options=RingOptions,
    reference=ring_reference,
    kept=2,
    shapes=_shapes,
    stem="scl_ring",
)
