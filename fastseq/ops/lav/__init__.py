"""LAV: alignment by Soft-DTW, kept from collapsing by Contrastive-IDM."""

from fastseq.ops.lav.op import lav_loss

__all__ = ["lav_loss"]
