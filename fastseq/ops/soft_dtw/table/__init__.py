"""The whole table R of Soft-DTW, differentiable at every cell."""

from fastseq.ops.soft_dtw.table.op import soft_dtw_table_from_cost

__all__ = ["soft_dtw_table_from_cost"]
