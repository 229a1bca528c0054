"""Grad-CAM (Selvaraju et al., arXiv 1610.02391): where in a frame the network's score is from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord

BATCH = 16  # images or clips of a call of the backbone

# What y is, for the text under the pictures.
SIMILARITY = (
    "y = <f, v> / |v|: f is the backbone's feature of the frame and v the mean of f over the "
    "frames of the line, so y is the similarity with the video, without labels"
)
CLASS = "y is the classifier's score of the class that it predicts for the frames of the line"


@dataclass(frozen=True)
class Heat:
    """The maps of one video by one network.

    Attributes:
        maps: float32 (K, S, S), at least 0, for each of K frames.
        score: what y is: SIMILARITY or CLASS.
        predicted: the class that the classifier predicts, "" without a classifier.
    """

    maps: np.ndarray
    score: str
    predicted: str = ""


@dataclass(frozen=True)
class SeenVideo:
    """What networks of one configuration see of a video, and where they look.

    Attributes:
        record: the video.
        numbers: int64 (K,), the frames' numbers.
        frames: uint8 (K, S, S, 3), the pixels that the networks get.
        aspect: width / height of the crop that is resized to S x S.
        heat: name of the network -> its maps.
    """

    record: VideoRecord
    numbers: np.ndarray
    frames: np.ndarray
    aspect: float
    heat: Mapping[str, Heat]


def grad_cam(maps: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """ReLU(sum_c w_c A_c), where w_c is the mean of dy/dA_c over the positions of the map.

    Args:
        maps: the A of n images (n, C, h, w) or of n clips (n, C, t, h, w), floating point.
        score: function of maps that returns y (n,). y_i may depend on map i only.

    Returns:
        (n, h, w) or (n, t, h, w) of the maps' type. The gradient is that with respect to the maps,
        so the network's parameters may be frozen. Positions of a clip include time.
    """
    maps = maps.detach().requires_grad_()
    with torch.enable_grad():
        y = score(maps)
        (gradient,) = torch.autograd.grad(y.sum(), maps)
    weights = gradient.mean(tuple(range(2, maps.dim())), keepdim=True)
    return (weights * maps).sum(1).relu().detach()


def video_heat(
    model: Any, frames: Tensor, classes: Sequence[str] = (), *, batch: int = BATCH
) -> Heat:
    """Grad-CAM of the last map of a model's backbone for frames of one video.

    y is a class's score if the model has a classifier of actions (``model.heads["action"]``), and
    a similarity without labels otherwise, see CLASS and SIMILARITY. The backbone alone is used: of
    CARL's, TCC's and LAV's encoders the layers behind it do not count. The model runs in eval mode
    and 32-bit floating point; ``batch`` does not change the result.

    Args:
        model: a model of `training.models`, in eval mode.
        frames: uint8 (K, 3, S, S); for a backbone of clips (K, L, 3, S, S), whose map in the middle
            of each clip is used. A model whose clips are spread over the video (TSM's) gets the K
            frames as one clip.
        classes: names of the classifier's classes.

    Raises UserError if the backbone returns no map of at least two positions.
    """
    backbone = _backbone_of(model)
    device = next(backbone.parameters()).device
    spread = _is_spread(model)
    given = frames[None] if spread else frames
    with torch.no_grad():
        made = [
            backbone.maps(_normalised(part.to(device), backbone)) for part in given.split(batch)
        ]
        _check_maps(made[0], backbone)
        made = [maps.float() if maps.dtype.itemsize < 4 else maps for maps in made]
        features = torch.cat([backbone.pool(maps) for maps in made])
        classifier = classifier_of(model)
        if classifier is None:
            mean = features.mean(0)
            towards = mean / mean.norm().clamp(min=1e-12)
        else:
            number = int(classifier(features).mean(0).argmax())

    def score(maps: Tensor) -> Tensor:
        pooled = backbone.pool(maps)
        return pooled @ towards if classifier is None else classifier(pooled)[:, number]

    heat = [_enlarged(grad_cam(maps, score), given.shape) for maps in made]
    maps = torch.cat(heat)[0] if spread else torch.cat([one[:, one.shape[1] // 2] for one in heat])
    if classifier is None:
        return Heat(maps.float().cpu().numpy(), SIMILARITY)
    name = classes[number] if number < len(classes) else f"class {number}"
    return Heat(maps.float().cpu().numpy(), CLASS, name)


def heat_of_videos(
    models: Mapping[str, Any],
    records: Sequence[VideoRecord],
    cfg: Any,
    columns: int,
    left_out: LeftOut,
    *,
    classes: Sequence[str] = (),
    progress: bool = True,
) -> Iterator[SeenVideo]:
    """Yield each video with the maps of all models.

    The K = ``columns`` frames are the middles of K equal parts of the video, cropped as by
    `extract`. A backbone of clips sees ``data.tuple_frames`` frames around each, ``tuple_stride``
    frames apart; beyond the ends of the video they repeat.

    Args:
        models: name -> model, all of one configuration ``cfg``.
        left_out: receives the videos that cannot be read.
        classes: names of the classifier's classes.
    """
    from tqdm import tqdm

    from fastseq.video import Clip, decode_side
    from fastseq.video.augment import eval_draw
    from fastseq.video.gaps import frames_of
    from fastseq.video.readings import area_of, reading_of
    from training.data.dataset import open_evaluation_engine, read_each

    of_clips = any(_backbone_of(model).clips and not _is_spread(model) for model in models.values())
    length = cfg.data.tuple_frames if of_clips else 1
    steps = (np.arange(length) - length // 2) * (cfg.data.tuple_stride if of_clips else 1)
    side = decode_side(cfg.augmentation.size, cfg.data.cache_side)

    def places(record: VideoRecord) -> tuple[np.ndarray, np.ndarray]:
        """The middle frames (K,) and the frames of the clips around them (K, L)."""
        sound = frames_of(record)
        middle = ((np.arange(columns) + 0.5) / columns * len(sound)).astype(np.int64)
        return sound[middle], sound[(middle[:, None] + steps).clip(0, len(sound) - 1)]

    def crop(record: VideoRecord) -> Any:
        area = area_of(record, side)
        return eval_draw(area.height, area.width)

    def reading(record: VideoRecord, _: int) -> Any:
        return reading_of(record, side, [Clip(places(record)[1].flatten(), crop(record))])

    engine = open_evaluation_engine(records, cfg)
    counts = [int(len(frames_of(record)) > 0) for record in records]
    read = read_each(records, counts, reading, engine=engine)
    bar = tqdm(zip(records, read, strict=True), "Grad-CAM", len(records), disable=not progress)
    try:
        for record, frames in bar:
            if isinstance(frames, Exception):
                left_out.add(record.id, frames.reason)
                continue
            clips = frames.unflatten(0, (columns, length))
            shown = clips[:, length // 2]
            given = clips if of_clips else shown
            heat = {name: video_heat(model, given, classes) for name, model in models.items()}
            seen, draw = shown.cpu().movedim(1, 3).numpy(), crop(record)
            yield SeenVideo(record, places(record)[0], seen, draw.width / draw.height, heat)
    finally:
        engine.close()


def has_map(model: Any) -> bool:
    """Whether a model has a backbone, whose map `video_heat` can use."""
    return hasattr(getattr(model, "backbone", None), "maps")


def _backbone_of(model: Any) -> nn.Module:
    if not has_map(model):
        raise UserError(f"Grad-CAM needs a backbone with maps, and {type(model).__name__} has none")
    return model.backbone


def classifier_of(model: Any) -> nn.Module | None:
    """The classifier of actions, which maps features (n, F) to scores (n, classes)."""
    heads = getattr(model, "heads", {})
    # nn.ModuleDict has no get.
    return heads["action"] if "action" in heads else None  # noqa: SIM401


def _is_spread(model: Any) -> bool:
    """Whether the frames of a clip are spread over the video, see `TSNModel.clips_of`."""
    return bool(getattr(model, "segments", None))


def _normalised(frames: Tensor, backbone: Any) -> Tensor:
    """uint8 (n, 3, S, S) or (n, L, 3, S, S) to the backbone's input, clips as (n, 3, L, S, S)."""
    mean, std = (
        torch.tensor(values, device=frames.device).view(3, 1, 1)
        for values in (backbone.pixel_mean, backbone.pixel_std)
    )
    dtype = next(backbone.parameters()).dtype
    x = ((frames.float() / 255 - mean) / std).to(dtype)
    return x.movedim(2, 1) if x.dim() == 5 else x


def _check_maps(maps: Any, backbone: Any) -> None:
    if isinstance(maps, Tensor) and maps.dim() in (4, 5) and maps.shape[-2:].numel() > 1:
        return
    got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
    raise UserError(
        f"Grad-CAM needs a map with several positions, and {getattr(backbone, 'name', 'backbone')} "
        f"returns {got} for a batch of images: choose larger images (augmentation.size), or an "
        "earlier last stage (model.backbone_to)"
    )


def _enlarged(heat: Tensor, shape: Sequence[int]) -> Tensor:
    """Maps (n, h, w) or (n, t, h, w) to the frames' size: (n, 1, S, S) or (n, L, S, S)."""
    size = tuple(shape[-2:])
    if heat.dim() == 3:
        return F.interpolate(heat[:, None], size, mode="bilinear", align_corners=False)
    return F.interpolate(
        heat[:, None], (shape[1], *size), mode="trilinear", align_corners=False
    ).squeeze(1)
