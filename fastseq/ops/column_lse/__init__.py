"""Log-sum-exp over the frames of x of how well each matches a frame of y: the denominator of
``soft_dtw(cost="softmax")``."""

from fastseq.ops.column_lse.op import column_lse

__all__ = ["column_lse"]
