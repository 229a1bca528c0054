"""Builds the model that the model section of a recipe describes."""

import logging
from typing import TYPE_CHECKING

import torch

from training.models import efficientnet_lite, small_cnn
from training.models.all_weights import load_all_weights
from training.models.backbone import Backbone
from training.models.carl import CarlModel
from training.models.conv3d import ContextEncoder
from training.models.encoder import VideoEncoder
from training.models.function import FunctionBackbone, is_function
from training.models.heads import build_heads
from training.models.resnet import DEPTHS, ResNet, resnet_stages
from training.models.timm_backbone import TimmBackbone, is_timm
from training.models.tsm import ShiftedResNet
from training.models.tsn import build_tsn
from training.models.vclr import LOSSES, VCLREncoder, VCLRModel
from training.models.weights import find_weights, load_backbone_weights
from training.support.command import UserError

if TYPE_CHECKING:
    from training.recipe.schema import Config, ModelConfig

logger = logging.getLogger(__name__)


RESNETS = {f"resnet{depth}": depth for depth in DEPTHS}
STAGES = {
    "small_cnn": small_cnn.STAGES,
    **{name: resnet_stages(depth) for name, depth in RESNETS.items()},
    "efficientnet_lite0": efficientnet_lite.STAGES,
}


def check_backbone(cfg: "ModelConfig") -> None:
    """Raise UserError for an unknown backbone or unknown stages.

    Networks of timm and functions are checked only in `build_backbone`.
    """
    name = cfg.backbone
    if is_timm(name) or is_function(name):
        return
    if name not in STAGES:
        raise UserError(
            f"model.backbone: expected one of {', '.join(STAGES)}, timm:NAME or "
            f"package.module:function, got {name!r}"
        )
    end = "last" if name == "small_cnn" else cfg.backbone_to
    STAGES[name].plan(cfg.train_from, end)


def build_backbone(cfg: "ModelConfig") -> Backbone:
    """``model.backbone`` with random weights; UserError names the key that does not fit."""
    check_backbone(cfg)
    stages = (cfg.train_from, cfg.backbone_to, cfg.pool)
    if cfg.backbone == "small_cnn":
        return small_cnn.SmallCNN(cfg.image_size, cfg.train_from)
    if cfg.shift:
        return ShiftedResNet(RESNETS[cfg.backbone], *stages, share=cfg.shift)
    if cfg.backbone in RESNETS:
        return ResNet(RESNETS[cfg.backbone], *stages)
    if cfg.backbone == "efficientnet_lite0":
        return efficientnet_lite.EfficientNetLite0(*stages)
    kind = TimmBackbone if is_timm(cfg.backbone) else FunctionBackbone
    return kind(cfg.backbone, cfg.image_size, *stages)


def build_model(config: "Config", *, load_weights: bool = True) -> VideoEncoder | VCLRModel:
    """The encoder that a recipe describes, initialised from torch's current random state.

    ``load_weights=False`` skips the pre-trained weights, for a checkpoint of the whole model that
    is loaded next.
    """
    cfg = config.model
    for name in ("centre", "backbone_share"):
        if getattr(cfg, name) and cfg.encoder != "fve":
            raise UserError(
                f"model.{name} works only with model.encoder=fve, got model.encoder={cfg.encoder}"
            )
    backbone = build_backbone(cfg)
    takes_all = cfg.weights_parts == "all"
    if load_weights and cfg.weights and not takes_all:
        report = load_backbone_weights(backbone, cfg.weights, cfg.weights_key)
        logger.info("weights of the backbone: %s", report)
    model = _build_encoder(config, backbone)
    if isinstance(model, VideoEncoder):
        model.heads.update(build_heads(config))
    if load_weights and cfg.weights and takes_all:
        path = find_weights(cfg.weights, backbone)
        report = load_all_weights(model, path, config, cfg.weights_key)
        logger.info("weights of all layers: %s", report)
    return model


def _build_encoder(config: "Config", backbone: Backbone) -> VideoEncoder | VCLRModel:
    cfg = config.model
    # Convolutions over frames are several times faster in the channels-last layout.
    backbone.to(memory_format=torch.channels_last)
    if cfg.encoder == "tsn":
        return build_tsn(config, backbone)
    calls = {
        "chunk_frames": config.train.chunk_frames,
        "checkpointing": config.train.checkpointing,
    }
    if cfg.encoder == "vclr":
        loss = config.loss.vclr
        encoder = VCLREncoder(
            backbone,
            [name for name in LOSSES if loss[name]],
            hidden=cfg.projection_hidden,
            size=cfg.projection_size,
            **calls,
        )
        return VCLRModel(
            encoder,
            segments=config.data.segments,
            queue_size=loss.queue_size,
            momentum=loss.momentum,
        )
    shared = calls | {
        "fc_layers": cfg.fc_layers,
        "fc_size": cfg.fc_size,
        "fc_dropout": cfg.fc_dropout,
        "embedding_size": cfg.embedding_size,
        "projection_hidden": cfg.projection_hidden,
        "projection_size": cfg.projection_size,
    }
    if cfg.encoder == "conv3d":
        return ContextEncoder(
            backbone,
            num_context=cfg.num_context,
            context_stride=cfg.context_stride,
            conv_layers=cfg.conv3d_layers,
            conv_size=cfg.conv3d_size,
            **shared,
        )
    return CarlModel(
        backbone,
        num_frames=cfg.num_frames,
        centre=cfg.centre,
        backbone_share=cfg.backbone_share,
        layers=cfg.layers,
        hidden_size=cfg.hidden_size,
        heads=cfg.heads,
        ff_size=cfg.ff_size,
        dropout=cfg.dropout,
        positions=cfg.positions,
        **shared,
    )
