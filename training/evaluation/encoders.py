"""Loads encoders of whole videos from a run directory; they share common computations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.baselines import TIME_INDEX, TIME_INDEX_DEFINITION
from training.support.command import UserError

if TYPE_CHECKING:
    import torch

    from training.data.features import FeatureStore
    from training.runs.model import Restored

BACKBONE = "backbone alone"
BACKBONE_CENTRED = "backbone, less the video's mean"
UNTRAINED = "untrained"
TRAINED = "trained"
UNTRAINED_WITHOUT_POSITIONS = "untrained, positions off"
TRAINED_WITHOUT_POSITIONS = "trained, positions off"

ROW_DEFINITIONS = {
    BACKBONE: "The pooled features of the pre-trained backbone, without any training.",
    BACKBONE_CENTRED: (
        "The same features minus their mean over the video, which removes what all its frames "
        "share, such as place and person."
    ),
    UNTRAINED: "The same network and seed before the first training step.",
    TRAINED: "The network after training.",
    UNTRAINED_WITHOUT_POSITIONS: "The untrained network without its positional encoding.",
    TRAINED_WITHOUT_POSITIONS: "The trained network, evaluated without its positional encoding.",
}


def row_definitions(rows: Iterable[str], backbone_share: float) -> dict[str, str]:
    """A sentence about each of these rows of a table, in a fixed order."""
    kept = (
        f" {backbone_share:g} of the squared length of its embeddings is the backbone's features "
        "(model.backbone_share)."
    )
    networks = (UNTRAINED, TRAINED, UNTRAINED_WITHOUT_POSITIONS, TRAINED_WITHOUT_POSITIONS)
    return {
        name: text + kept if backbone_share and name in networks else text
        for name, text in ({TIME_INDEX: TIME_INDEX_DEFINITION} | ROW_DEFINITIONS).items()
        if name in rows
    }


@dataclass(frozen=True)
class Encoder:
    """Maps a whole video to one embedding per frame, in two steps, without gradients.

    Attributes:
        features: function of uint8 frames (1, T, 3, S, S) that returns features (1, T, F), or of
            clips (1, K, L, 3, S, S) that returns (1, K, F), on the encoder's device. Encoders with
            the same function share its results, so it runs once per video. None: ``embed`` accepts
            the frames themselves.
        embed: function of features or frames that returns embeddings (1, T, E), not normalised.
        store: the store of the results of ``features`` (``data.cache=features``), or None.
        weights: where the run's weights are from and what else than the video embeddings depend
            on; None: the encoder is not one of a run as it is on the disk.
    """

    features: Callable[[torch.Tensor], torch.Tensor] | None
    embed: Callable[[torch.Tensor], torch.Tensor]
    store: FeatureStore | None = None
    weights: Weights | None = None


@dataclass(frozen=True)
class Weights:
    """Where an encoder's weights are from, and everything but the video that it depends on.

    Attributes:
        checkpoint: name of the checkpoint, empty for weights before the first step.
        step: number of training steps.
        about: plain values that determine the embeddings of a video.
    """

    checkpoint: str
    step: int | None
    about: dict[str, Any]


def make_encoder(
    model: Any,
    *,
    use_positions: bool = True,
    features: Callable[[torch.Tensor], torch.Tensor] | None = None,
    store: FeatureStore | None = None,
) -> Encoder:
    """The encoder of a model in eval mode.

    Args:
        model: a model of `training.models`.
        use_positions: False omits the positional encoding, which shows how much of a result comes
            from the pictures alone.
        features: result of `backbone_features` for this model or one with the same backbone.
        store: the store of these features.
    """
    import torch

    from training.models import CarlModel

    device = next(chain(model.parameters(), model.buffers())).device
    stored = {"stored": True} if isinstance(model, CarlModel) else {}

    def embed(x: torch.Tensor) -> torch.Tensor:
        before = model.use_positions
        model.use_positions = before and use_positions
        try:
            with torch.inference_mode():
                h = model.encode(x.to(device), **stored)
                return _beside_backbone(h, x.to(device), model) if stored else h
        finally:
            model.use_positions = before

    features = features or backbone_features(model)
    if model.pooled:
        return Encoder(features, _as_it_is, store)  # the features are the embeddings
    return Encoder(features, embed, store) if stored else Encoder(None, embed)


def backbone_features(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model's backbone as a function for `Encoder.features`, of frames and of clips."""
    import torch

    device = next(chain(model.parameters(), model.buffers())).device

    def features(frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            call = model.clip_features if frames.dim() == 6 else model.features
            return call(frames.to(device))

    return features


def backbone_encoders(
    model: Any,
    cfg: Any,
    *,
    features: Callable[[torch.Tensor], torch.Tensor] | None = None,
    store: FeatureStore | None = None,
) -> dict[str, Encoder]:
    """The encoders of the backbone alone: its pooled features, and these minus their mean.

    Args:
        model: a model in eval mode with the pre-trained backbone.
        cfg: the run's configuration.
        features, store: see `make_encoder`; the defaults are the features of ``model`` and, with
            ``data.cache=features``, the store in ``data.folder``.
    """
    if features is None:
        features, store = backbone_features(model), feature_store(model, cfg)
    return {
        BACKBONE: Encoder(features, _as_it_is, store),
        BACKBONE_CENTRED: Encoder(features, _less_mean, store),
    }


def _beside_backbone(h: torch.Tensor, features: torch.Tensor, model: Any) -> torch.Tensor:
    """Embeddings joined with features, which have ``model.backbone_share`` of the squared length.

    Both are normalised to unit length first, so the cosine similarity of two frames is the mean of
    the two similarities with these weights.
    """
    import torch
    import torch.nn.functional as F

    share = model.backbone_share
    if not share:
        return h
    x = _less_mean(features) if model.centre else features
    parts = ((1 - share, h), (share, x))
    return torch.cat([part**0.5 * F.normalize(y.float(), dim=-1) for part, y in parts], dim=-1)


def _as_it_is(features: torch.Tensor) -> torch.Tensor:
    return features


def _less_mean(features: torch.Tensor) -> torch.Tensor:
    return features - features.mean(1, keepdim=True)


def feature_store(model: Any, cfg: Any, folder: str | Path | None = None) -> FeatureStore | None:
    """The store of a model's features in a folder (default: the run's folders); None without."""
    if cfg.data.cache != "features":
        return None
    from training.data.features import FeatureStore
    from training.data.folders import folders_of

    return FeatureStore(folders_of(cfg, folder), model, cfg)


def load_encoder(
    run: str | Path, folder: str | Path | None = None, *, checkpoint: str | None = None
) -> tuple[Encoder, Any]:
    """The trained encoder of a run, on the GPU if there is one, and the run's configuration.

    Args:
        folder: folder of the videos to encode, which may have stored features (default: the run's).
        checkpoint: see `training.runs.model.restore`.
    """
    found = _load(run, untrained=False, checkpoint=checkpoint)
    encoder = make_encoder(found.model, store=feature_store(found.model, found.cfg, folder))
    return replace(encoder, weights=_weights(found)), found.cfg


def load_compared_encoders(
    run: str | Path, folder: str | Path | None = None, *, checkpoint: str | None = None
) -> tuple[dict[str, Encoder], Any]:
    """The encoders to compare, in the order of their rows, and the run's configuration.

    These are the backbone alone if it is pre-trained (``model.weights``), the untrained and the
    trained model, and both without positions if they have any. If training did not change the
    backbone, all of them share its features. ``folder``, ``checkpoint``: see `load_encoder`.
    """
    before = _load(run, untrained=True, checkpoint=None)
    after = _load(run, untrained=False, checkpoint=checkpoint)
    untrained, trained, cfg = before.model, after.model, before.cfg
    models = {UNTRAINED: untrained, TRAINED: trained}
    if _same_backbone(untrained, trained):
        features, store = backbone_features(trained), feature_store(trained, cfg, folder)
        made = {name: {"features": features, "store": store} for name in models}
    else:
        made = {
            name: {"features": backbone_features(m), "store": feature_store(m, cfg, folder)}
            for name, m in models.items()
        }
    encoders = {}
    if cfg.model.weights:
        alone = _weights(before, part=untrained.backbone)
        for name, encoder in backbone_encoders(untrained, cfg, **made[UNTRAINED]).items():
            encoders[name] = replace(encoder, weights=alone)
    weights = {UNTRAINED: _weights(before), TRAINED: _weights(after)}
    for name, model in models.items():
        encoders[name] = replace(make_encoder(model, **made[name]), weights=weights[name])
    if trained.use_positions:
        without = {UNTRAINED: UNTRAINED_WITHOUT_POSITIONS, TRAINED: TRAINED_WITHOUT_POSITIONS}
        for name, model in models.items():
            encoder = make_encoder(model, use_positions=False, **made[name])
            encoders[without[name]] = replace(encoder, weights=weights[name])
    return encoders, cfg


def _weights(found: Restored, part: torch.nn.Module | None = None) -> Weights:
    """The description of a restored model, or of one ``part`` of it."""
    from omegaconf import OmegaConf

    from fastseq.video import decode_side
    from training.data.features import decoder, weights_digest

    cfg, backbone = found.cfg, getattr(found.model, "backbone", None)
    model = OmegaConf.to_container(cfg.model, resolve=True)
    size = cfg.augmentation.size
    about = {
        "model": {k: v for k, v in model.items() if not k.startswith("weights")},
        "code": getattr(backbone, "code_version", str)(),  # a backbone may be a user's function
        "weights_sha256": weights_digest(found.model if part is None else part),
        "image_size": size,
        "side": decode_side(size, cfg.data.cache_side),
        "decoder": decoder(cfg),
    }
    if backbone is not None and backbone.clips:
        about["clip"] = [found.model.clip_frames, found.model.clip_stride]
    return Weights(found.checkpoint, found.step, about)


def _same_backbone(a: Any, b: Any) -> bool:
    """Whether two models of one run have backbones that return the same features."""
    import torch

    if not (hasattr(a, "backbone") and hasattr(b, "backbone")):
        return False
    other = b.backbone.state_dict()
    return all(torch.equal(x, other[name]) for name, x in a.backbone.state_dict().items())


def _load(run: str | Path, *, untrained: bool, checkpoint: str | None) -> Restored:
    import torch

    from training.runs.checkpoint import CheckpointError
    from training.runs.model import restore

    try:
        found = restore(run, untrained=untrained, checkpoint=checkpoint)
    except CheckpointError:  # it names the file or the run
        raise
    except ValueError as error:  # UserError, or options that do not fit together
        raise UserError(f"{run}: {error}") from error
    return replace(found, model=found.model.to("cuda" if torch.cuda.is_available() else "cpu"))
