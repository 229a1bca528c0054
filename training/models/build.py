"""Builds the model that the model section of a recipe describes."""

import logging
from typing import TYPE_CHECKING

import torch

from training.models import efficientnet_lite, s3d, small_cnn, small_cnn3d
from training.models.all_weights import load_all_weights
from training.models.backbone import Backbone
from training.models.carl import CarlModel
from training.models.conv3d import ContextEncoder
from training.models.dpc import build_dpc
from training.models.encoder import VideoEncoder
from training.models.function import FunctionBackbone, is_function
from training.models.heads import build_heads
from training.models.resnet import DEPTHS, ResNet, resnet_stages
from training.models.resnet3d import NETWORKS, ResNet3d, resnet3d_stages
from training.models.seco import SeCoModel
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
    "small_cnn3d": small_cnn3d.STAGES,
    **{name: resnet3d_stages(name) for name in NETWORKS},
    "s3d": s3d.STAGES,
}

CLIP_BACKBONES = ("small_cnn3d", *NETWORKS, "s3d")


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
    if name in CLIP_BACKBONES and cfg.encoder in ("fve", "conv3d"):
        raise UserError(
            f"model.backbone: {name} is a network of clips and needs model.encoder=vclr, tsn or "
            f"dpc, got model.encoder={cfg.encoder}; that encoder needs a network of images, such "
            "as resnet50"
        )
    end = "last" if name.startswith("small_cnn") else cfg.backbone_to
    STAGES[name].plan(cfg.train_from, end)


def check_clips(config: "Config") -> None:
    """Raise UserError for clips that the backbone cannot accept."""
    name, length, size = config.model.backbone, config.data.tuple_frames, config.model.image_size
    if name not in CLIP_BACKBONES:
        return
    frames, pixels = 2, 1
    if name == "s3d":
        run, _ = s3d.STAGES.plan(config.model.train_from, config.model.backbone_to)
        frames, pixels = max(frames, s3d.least_clip(run)[0]), s3d.least_clip(run)[1]
    if length < frames:
        raise UserError(
            f"data.tuple_frames: {name} is a network of clips, expected at least {frames} frames, "
            f"got {length}"
        )
    if size < pixels:
        raise UserError(
            f"augmentation.size: {name} needs at least {pixels} pixels per side, got {size}; or "
            "set model.backbone_to=mixed4"
        )


def build_backbone(cfg: "ModelConfig") -> Backbone:
    """``model.backbone`` with random weights; UserError names the key that does not fit."""
    check_backbone(cfg)
    stages = (cfg.train_from, cfg.backbone_to, cfg.pool)
    if cfg.backbone == "small_cnn":
        return small_cnn.SmallCNN(cfg.image_size, cfg.train_from)
    if cfg.backbone == "small_cnn3d":
        return small_cnn3d.SmallCNN3d(cfg.image_size, cfg.train_from)
    if cfg.shift:
        return ShiftedResNet(RESNETS[cfg.backbone], *stages, share=cfg.shift)
    if cfg.backbone in RESNETS:
        return ResNet(RESNETS[cfg.backbone], *stages)
    if cfg.backbone == "efficientnet_lite0":
        return efficientnet_lite.EfficientNetLite0(*stages)
    if cfg.backbone in NETWORKS:
        return ResNet3d(cfg.backbone, *stages)
    if cfg.backbone == "s3d":
        return s3d.S3D(*stages)
    kind = TimmBackbone if is_timm(cfg.backbone) else FunctionBackbone
    return kind(cfg.backbone, cfg.image_size, *stages)


def build_model(config: "Config", *, load_weights: bool = True) -> VideoEncoder | VCLRModel:
    """The encoder that a recipe describes, initialised from torch's current random state.

    ``load_weights=False`` skips the pre-trained weights, for a checkpoint of the whole model that
    is loaded next.
    """
    cfg = config.model
    check_clips(config)
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
    if backbone.clips:
        model.whole_videos_by(config.data.tuple_frames, config.data.tuple_stride)
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
    # A network of clips has 3-D convolutions, unless it shifts between images.
    layout = torch.channels_last_3d if backbone.clips and not cfg.shift else torch.channels_last
    backbone.to(memory_format=layout)
    if cfg.encoder == "tsn":
        return build_tsn(config, backbone)
    if cfg.encoder == "dpc":
        return build_dpc(config, backbone)
    calls = {
        "chunk_frames": config.train.chunk_frames,
        "checkpointing": config.train.checkpointing,
    }
    if cfg.encoder == "vclr":
        loss = config.loss.seco if config.loss.seco.weight else config.loss.vclr
        encoder = VCLREncoder(
            backbone,
            [name for name in LOSSES if loss.get(name)],
            hidden=cfg.projection_hidden,
            size=cfg.projection_size,
            **calls,
        )
        model = SeCoModel if loss is config.loss.seco else VCLRModel
        return model(
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
