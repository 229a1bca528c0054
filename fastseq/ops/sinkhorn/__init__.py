"""Entropic optimal transport between the frames of two videos, and VAVA's loss."""

from fastseq.ops.sinkhorn.op import sinkhorn_alignment, sinkhorn_plan
from fastseq.ops.sinkhorn.vava import vava_loss, vava_phi

__all__ = ["sinkhorn_alignment", "sinkhorn_plan", "vava_loss", "vava_phi"]
