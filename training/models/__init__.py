"""Encoders from frames of a video to embeddings, and their backbones."""

from training.models.backbone import Backbone
from training.models.build import build_backbone, build_model, check_backbone
from training.models.carl import CarlModel
from training.models.conv3d import ContextEncoder
from training.models.efficientnet_lite import EfficientNetLite0
from training.models.encoder import VideoEncoder
from training.models.function import FunctionBackbone
from training.models.resnet import ResNet
from training.models.small_cnn import SmallCNN
from training.models.small_cnn3d import SmallCNN3d
from training.models.timm_backbone import TimmBackbone
from training.models.vclr import VCLRModel
from training.models.weights import WeightReport, load_backbone_weights

__all__ = [
    "Backbone",
    "CarlModel",
    "ContextEncoder",
    "EfficientNetLite0",
    "FunctionBackbone",
    "ResNet",
    "SmallCNN",
    "SmallCNN3d",
    "TimmBackbone",
    "VCLRModel",
    "VideoEncoder",
    "WeightReport",
    "build_backbone",
    "build_model",
    "check_backbone",
    "load_backbone_weights",
]
