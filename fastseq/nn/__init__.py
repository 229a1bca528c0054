"""nn.Module wrappers of the losses: options go to the constructor, tensors to the call."""

from fastseq.nn.alignment import ContrastiveIDM, LAVLoss, SoftDTW, TCCLoss
from fastseq.nn.contrastive import QueueNCE, SCLLoss, TCNLoss, VCLRLoss
from fastseq.nn.transport import SinkhornAlignment, VAVALoss
from fastseq.ops.queue_nce.feature_queue import FeatureQueue

__all__ = [
    "ContrastiveIDM",
    "FeatureQueue",
    "LAVLoss",
    "QueueNCE",
    "SCLLoss",
    "SinkhornAlignment",
    "SoftDTW",
    "TCCLoss",
    "TCNLoss",
    "VAVALoss",
    "VCLRLoss",
]
