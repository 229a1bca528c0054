"""The frame-level video encoder of CARL and its backbones."""

from training.models.build import build_backbone, build_model
from training.models.carl import CarlModel
from training.models.resnet import ResNet
from training.models.small_cnn import SmallCNN
from training.models.weights import WeightReport, load_backbone_weights

__all__ = [
    "CarlModel",
    "ResNet",
    "SmallCNN",
    "WeightReport",
    "build_backbone",
    "build_model",
    "load_backbone_weights",
]
