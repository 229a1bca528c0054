"""Temporal cycle-consistency."""

from fastseq.ops.tcc.op import tcc_loss

__all__ = ["tcc_loss"]
