"""LAV's Contrastive-IDM and the regularisers that its paper compares it with."""

from fastseq.ops.contrastive_idm.op import contrastive_idm

__all__ = ["contrastive_idm"]
