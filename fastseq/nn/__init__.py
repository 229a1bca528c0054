"""nn.Module wrappers of the losses: options go to the constructor, tensors to the call."""

from fastseq.nn.alignment import ContrastiveIDM, LAVLoss, LRPropLoss, SoftDTW, TCCLoss
from fastseq.nn.contrastive import QueueNCE, SCLLoss, TCNLoss, VCLRLoss
from fastseq.nn.drop_dtw import OTAM, DropDTW
from fastseq.nn.gta import AE2Loss, GTALoss
from fastseq.nn.transport import SinkhornAlignment, VAVALoss
from fastseq.ops.queue_nce.feature_queue import FeatureQueue

__all__ = [
    "OTAM",
    "AE2Loss",
    "ContrastiveIDM",
    "DropDTW",
    "FeatureQueue",
    "GTALoss",
    "LAVLoss",
    "LRPropLoss",
    "QueueNCE",
    "SCLLoss",
    "SinkhornAlignment",
    "SoftDTW",
    "TCCLoss",
    "TCNLoss",
    "VAVALoss",
    "VCLRLoss",
]
