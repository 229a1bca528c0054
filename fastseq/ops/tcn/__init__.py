"""Time-contrastive network: n-pairs."""

from fastseq.ops.tcn.op import tcn_loss

__all__ = ["tcn_loss"]
