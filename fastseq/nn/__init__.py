"""nn.Module wrappers of the losses: options go to the constructor, tensors to the call."""

from fastseq.nn.alignment import ContrastiveIDM, LAVLoss, SoftDTW, TCCLoss
from fastseq.nn.contrastive import QueueNCE, SCLLoss, TCNLoss, VCLRLoss
from fastseq.nn.drop_dtw import OTAM, DropDTW
from fastseq.ops.queue_nce.feature_queue import FeatureQueue

__all__ = [
    "OTAM",
    "ContrastiveIDM",
    "DropDTW",
    "FeatureQueue",
    "LAVLoss",
    "QueueNCE",
    "SCLLoss",
    "SoftDTW",
    "TCCLoss",
    "TCNLoss",
    "VCLRLoss",
]
