"""Drop-DTW and OTAM: alignments in which frames may stay unmatched."""

from fastseq.ops.drop_dtw.op import drop_dtw, otam
from fastseq.ops.drop_dtw.path import drop_dtw_path

__all__ = ["drop_dtw", "drop_dtw_path", "otam"]
