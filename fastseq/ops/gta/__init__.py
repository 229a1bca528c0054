"""GTA and AE2: alignment by Soft-DTW with softmax costs."""

from fastseq.ops.gta.ae2 import ae2_loss
from fastseq.ops.gta.op import gta_loss

__all__ = ["ae2_loss", "gta_loss"]
