"""CARL's sequence contrastive loss."""

from fastseq.ops.scl.op import scl_loss

__all__ = ["scl_loss"]
