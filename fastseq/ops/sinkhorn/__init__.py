"""Entropic optimal transport between the frames of two videos, and VAVA's loss."""

from fastseq.ops.sinkhorn.op import sinkhorn_alignment, sinkhorn_plan

__all__ = ["sinkhorn_alignment", "sinkhorn_plan"]
