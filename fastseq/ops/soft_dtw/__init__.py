"""Soft dynamic time warping, its expected alignment, and hard DTW."""

from fastseq.ops.soft_dtw.barycenter import soft_dtw_barycenter
from fastseq.ops.soft_dtw.cross import soft_dtw_cross
from fastseq.ops.soft_dtw.hard import dtw_cross
from fastseq.ops.soft_dtw.local import dtw_local_path_from_cost
from fastseq.ops.soft_dtw.op import soft_dtw, soft_dtw_alignment, soft_dtw_from_cost
from fastseq.ops.soft_dtw.path import dtw_path, dtw_path_from_cost
from fastseq.ops.soft_dtw.table import soft_dtw_table_from_cost

__all__ = [
    "dtw_cross",
    "dtw_local_path_from_cost",
    "dtw_path",
    "dtw_path_from_cost",
    "soft_dtw",
    "soft_dtw_alignment",
    "soft_dtw_barycenter",
    "soft_dtw_cross",
    "soft_dtw_from_cost",
    "soft_dtw_table_from_cost",
]
