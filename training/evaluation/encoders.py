"""From a run directory to encoders of whole videos, which share what they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.baselines import TIME_INDEX, TIME_INDEX_DEFINITION
from training.support.command import UserError

if TYPE_CHECKING:
    import torch

    from training.data.features import FeatureStore

BACKBONE = "backbone alone"
BACKBONE_CENTRED = "backbone, less the video's mean"
UNTRAINED = "untrained"
TRAINED = "trained"
UNTRAINED_WITHOUT_POSITIONS = "untrained, positions off"
TRAINED_WITHOUT_POSITIONS = "trained, positions off"

ROW_DEFINITIONS = {
    BACKBONE: "The pooled features of the pre-trained backbone, as given; nothing is trained.",
    BACKBONE_CENTRED: (
        "The same features less their mean over the video: what all its frames share, as place and "
        "person, counts no longer."
    ),
    UNTRAINED: "The same network and seed before the first training step.",
    TRAINED: "The network after training.",
    UNTRAINED_WITHOUT_POSITIONS: "The untrained network without its positional encoding.",
    TRAINED_WITHOUT_POSITIONS: "The trained network, positional encoding left out at test time.",
}


def row_definitions(rows: Iterable[str], backbone_share: float) -> dict[str, str]:
    """A sentence for each of these rows of a table, in the order of the rows' definitions."""
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
    """A whole video to one embedding per frame, in two steps, without gradients.

    Attributes:
        features: uint8 frames (1, T, 3, S, S) to features (1, T, F), on the encoder's device.
            Encoders that share the function share its results: it runs once for each video. None:
            ``embed`` takes the frames themselves.
        embed: features, or frames, to embeddings (1, T, E), not normalised.
        store: where the results of ``features`` may lie (``data.cache=features``).
    """

    features: Callable[[torch.Tensor], torch.Tensor] | None
    embed: Callable[[torch.Tensor], torch.Tensor]
    store: FeatureStore | None = None


def make_encoder(
    model: Any,
    *,
    use_positions: bool = True,
    features: Callable[[torch.Tensor], torch.Tensor] | None = None,
    store: FeatureStore | None = None,
) -> Encoder:
    """The encoder of a model in eval mode.

    Args:
        model: of `training.models`.
        use_positions: False leaves the positional encoding out, which shows how much of a result
            comes from the pictures alone.
        features: what `backbone_features` gives for this model or for one with the same backbone.
        store: of these features.
    """
    import torch

    from training.models import CarlModel, VCLRModel

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
    if isinstance(model, VCLRModel):
        return Encoder(features, _as_it_is, store)  # the features are the embeddings
    return Encoder(features, embed, store) if stored else Encoder(None, embed)


def backbone_features(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model's backbone as a function for `Encoder.features`."""
    import torch

    device = next(chain(model.parameters(), model.buffers())).device

    def features(frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model.features(frames.to(device))

    return features


def backbone_encoders(
    model: Any,
    cfg: Any,
    *,
    features: Callable[[torch.Tensor], torch.Tensor] | None = None,
    store: FeatureStore | None = None,
) -> dict[str, Encoder]:
    """The rows that the backbone alone gives: its pooled features, and these less their mean.

    Args:
        model: in eval mode, with the backbone as it was pre-trained.
        cfg: the run's configuration.
        features, store: see `make_encoder`; without them those of ``model``, and with
            ``data.cache=features`` the store in ``data.folder``.
    """
    if features is None:
        features, store = backbone_features(model), feature_store(model, cfg)
    return {
        BACKBONE: Encoder(features, _as_it_is, store),
        BACKBONE_CENTRED: Encoder(features, _less_mean, store),
    }


def _beside_backbone(h: torch.Tensor, features: torch.Tensor, model: Any) -> torch.Tensor:
    """Embeddings with ``model.backbone_share`` of their squared length the backbone's features.

    Both have unit length before, so the cosine similarity of two frames is the mean of the two
    similarities with these weights.
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
    """The store of a model's features in a folder, its own by default; None without one."""
    if cfg.data.cache != "features":
        return None
    from training.data.features import FeatureStore

    return FeatureStore(Path(folder or cfg.data.folder), model, cfg)


def load_encoder(run: str | Path, folder: str | Path | None = None) -> tuple[Encoder, Any]:
    """The trained encoder of a run, on the GPU when there is one, and the run's configuration.

    ``folder``: of the videos it will be used on, which may have stored features; the run's own by
    default.
    """
    model, cfg = _load(run, untrained=False)
    return make_encoder(model, store=feature_store(model, cfg, folder)), cfg


def load_compared_encoders(
    run: str | Path, folder: str | Path | None = None
) -> tuple[dict[str, Encoder], Any]:
    """The encoders that are compared, in the order of their rows, and the run's configuration.

    The backbone alone where it is pre-trained (``model.weights``), the untrained and the trained
    model, and both without positions if they have any. Where training has left the backbone as it
    was, all of them share its features. ``folder``: see `load_encoder`.
    """
    untrained, cfg = _load(run, untrained=True)
    trained, _ = _load(run, untrained=False)
    models = {UNTRAINED: untrained, TRAINED: trained}
    if _same_backbone(untrained, trained):
        features, store = backbone_features(trained), feature_store(trained, cfg, folder)
        made = {name: {"features": features, "store": store} for name in models}
    else:
        made = {
            name: {"features": backbone_features(m), "store": feature_store(m, cfg, folder)}
            for name, m in models.items()
        }
    encoders = backbone_encoders(untrained, cfg, **made[UNTRAINED]) if cfg.model.weights else {}
    encoders |= {name: make_encoder(model, **made[name]) for name, model in models.items()}
    if trained.use_positions:
        without = {UNTRAINED: UNTRAINED_WITHOUT_POSITIONS, TRAINED: TRAINED_WITHOUT_POSITIONS}
        for name, model in models.items():
            encoders[without[name]] = make_encoder(model, use_positions=False, **made[name])
    return encoders, cfg


def _same_backbone(a: Any, b: Any) -> bool:
    """Whether two models of one run have backbones that give the same features."""
    import torch

    if not (hasattr(a, "backbone") and hasattr(b, "backbone")):
        return False
    other = b.backbone.state_dict()
    return all(torch.equal(x, other[name]) for name, x in a.backbone.state_dict().items())


def _load(run: str | Path, *, untrained: bool) -> tuple[Any, Any]:
    import torch

    from training.runs.model import load_run

    try:
        model, cfg = load_run(run, untrained=untrained)
    except ValueError as error:  # UserError, and options that do not fit together
        raise UserError(f"{run}: {error}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), cfg
