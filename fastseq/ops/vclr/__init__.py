"""VCLR's losses: inter-frame, intra-frame, video-level and temporal order."""

from fastseq.ops.vclr.op import intra_nce, temporal_order_loss, vclr_loss

__all__ = ["intra_nce", "temporal_order_loss", "vclr_loss"]
