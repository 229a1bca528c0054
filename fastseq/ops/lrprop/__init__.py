"""Sequence contrastive loss between two videos, with times that hard DTW carries over."""

from fastseq.ops.lrprop.op import lrprop_loss

__all__ = ["lrprop_loss"]
