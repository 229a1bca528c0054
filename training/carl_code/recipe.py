"""Converts a configuration file of CARL_code to a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from training.support.command import UserError

# Keys without a counterpart here: paths of the released code, how often it prints, and keys that it
# never reads.
IGNORED = (
    "LOGDIR",
    "PATH_TO_DATASET",
    "DATASETS",
    "NUM_GPUS",
    "SHARD_ID",
    "SSL",
    "EVAL",
    "LOGGING",
    "CHECKPOINT",
    "args",
    "MODEL.TRAIN_BASE",
    "MODEL.PROJECTION",
    "MODEL.PROJECTION_HIDDEN_SIZE",
    "MODEL.BASE_MODEL.NETWORK",
    "MODEL.EMBEDDER_MODEL.CONV_LAYERS",
    "MODEL.EMBEDDER_MODEL.FLATTEN_METHOD",
    "MODEL.EMBEDDER_MODEL.USE_BN",
    "SCL.POSITIVE_WINDOW",
    "TCC.CYCLE_LENGTH",
    "TCC.FRACTION",
    "TCC.STOCHASTIC_MATCHING",
    "TCC.LABEL_SMOOTHING",
    "TCC.HUBER_DELTA",
    "OPTIMIZER.LR.WARMUP_LR",
    "OPTIMIZER.LR.FINAL_LR",
    "OPTIMIZER.LR.NUM_WARMUP_STEPS",
    "DATA.FRACTION",
    "DATA.ADDITION_TRAINSET",
    "DATA.FRAME_LABELS",
    "DATA.SAMPLE_ALL_STRIDE",
    "DATA.DYNAMIC_FRAMES",
    "DATA.CONSISTENT_VIEWS",
    "AUGMENTATION.CONSISTENT_VIEWS",
)

_NEGATIVES = {"single_noself": "cross", "single": "video", "batch_noself": "batch"}
_SAMPLING = {"time_augment": "random", "offset_uniform": "offset_uniform"}
_ALGORITHMS = ("scl", "tcc", "tcn", "classification")
_LAYERS = {3: "layer4", 2: "layer3"}
_SCHEDULES = {"cosine": "cosine", "fixed": "constant"}


@dataclass
class Converted:
    """A recipe, and the keys of the released configuration that it leaves out."""

    recipe: dict[str, Any]
    ignored: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def convert_config(config: Mapping[str, Any]) -> Converted:
    """Convert the keys of one of CARL_code's configurations.

    Raises UserError for a value that has no counterpart, such as another optimizer.
    """
    flat = flatten(config)
    out = Converted({})
    algorithm = str(flat.pop("TRAINING_ALGO", "scl"))
    if algorithm not in _ALGORITHMS:
        known = ", ".join(_ALGORITHMS)
        raise UserError(f"TRAINING_ALGO is {algorithm!r}; only {known} can be converted")
    _put(out.recipe, f"loss.{algorithm}.weight", 1.0)
    for key, value in flat.items():
        if key in _RENAMED:
            _put(out.recipe, *_RENAMED[key](value))
        elif key not in _HANDLED and not (key == "DATA.FRACTION" and algorithm == "classification"):
            known = any(key == one or key.startswith(f"{one}.") for one in IGNORED)
            (out.ignored if known else out.unknown).append(key)
    _model(flat, out.recipe)
    _data(flat, out.recipe, algorithm)
    _augmentation(flat, out.recipe)
    if flat.get("USE_AMP") is False:
        _put(out.recipe, "train.precision", "fp32")
    if algorithm == "tcc":
        _put(out.recipe, "loss.tcc.normalize", bool(flat.get("MODEL.L2_NORMALIZE", True)))
        _put(out.recipe, "loss.tcc.pairs", "all")
    if algorithm == "tcn":
        _put(out.recipe, "loss.tcn.normalize", bool(flat.get("MODEL.L2_NORMALIZE", True)))
    if algorithm == "classification":
        _classification(flat, out.recipe)
    return out


def _classification(flat: Mapping[str, Any], recipe: dict[str, Any]) -> None:
    if flat.get("MODEL.L2_NORMALIZE", True):
        raise UserError(
            "MODEL.L2_NORMALIZE is true; with TRAINING_ALGO classification only false can be "
            "converted"
        )
    share = flat.get("DATA.FRACTION", 1.0)
    _put(recipe, "loss.classification.label_share", float(share))
    dropout = flat.get("MODEL.EMBEDDER_MODEL.FC_DROPOUT_RATE", 0.1)
    _put(recipe, "loss.classification.dropout", float(dropout))


def _plain(name: str) -> Callable[[Any], tuple[str, Any]]:
    return lambda value: (name, value)


def _chosen(key: str, name: str, choices: Mapping[Any, Any]) -> Callable[[Any], tuple[str, Any]]:
    def convert(value: Any) -> tuple[str, Any]:
        if value not in choices:
            expected = ", ".join(map(str, choices))
            raise UserError(f"{key} is {value!r}; only {expected} can be converted")
        return name, choices[value]

    return convert


_RENAMED: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "IMAGE_SIZE": _plain("augmentation.size"),
    "RNG_SEED": _plain("train.seed"),
    "TRAIN.MAX_EPOCHS": _plain("train.epochs"),
    "TRAIN.NUM_FRAMES": _plain("data.num_frames"),
    "MODEL.BASE_MODEL.LAYER": _chosen("MODEL.BASE_MODEL.LAYER", "model.train_from", _LAYERS),
    "MODEL.EMBEDDER_MODEL.HIDDEN_SIZE": _plain("model.hidden_size"),
    "MODEL.EMBEDDER_MODEL.D_FF": _plain("model.ff_size"),
    "MODEL.EMBEDDER_MODEL.NUM_HEADS": _plain("model.heads"),
    "MODEL.EMBEDDER_MODEL.NUM_LAYERS": _plain("model.layers"),
    "MODEL.EMBEDDER_MODEL.FC_DROPOUT_RATE": _plain("model.fc_dropout"),
    "SCL.LABEL_VARIENCE": _plain("loss.scl.variance"),
    "SCL.SOFTMAX_TEMPERATURE": _plain("loss.scl.temperature"),
    "SCL.NEGATIVE_TYPE": _chosen("SCL.NEGATIVE_TYPE", "loss.scl.negatives", _NEGATIVES),
    "TCC.SOFTMAX_TEMPERATURE": _plain("loss.tcc.temperature"),
    "TCC.LOSS_TYPE": _plain("loss.tcc.loss_type"),
    "TCC.NORMALIZE_INDICES": _plain("loss.tcc.normalize_indices"),
    "TCC.VARIANCE_LAMBDA": _plain("loss.tcc.variance_lambda"),
    "TCC.SIMILARITY_TYPE": _plain("loss.tcc.similarity"),
    "TCN.POSITIVE_WINDOW": _plain("data.positive_window"),
    "TCN.REG_LAMBDA": _plain("loss.tcn.reg_lambda"),
    "OPTIMIZER.WEIGHT_DECAY": _plain("optim.weight_decay"),
    "OPTIMIZER.GRAD_CLIP": _plain("optim.grad_clip"),
    "OPTIMIZER.LR.INITIAL_LR": _plain("optim.lr"),
    "OPTIMIZER.LR.DECAY_TYPE": _chosen("OPTIMIZER.LR.DECAY_TYPE", "optim.schedule", _SCHEDULES),
    "DATA.SAMPLING_REGION": lambda value: ("data.alpha", max(1.0, float(value))),
    "DATA.CONSISTENT_OFFSET": _plain("data.beta"),
    "DATA.NUM_CONTEXTS": _plain("data.num_context"),
    "DATA.CONTEXT_STRIDE": _plain("data.context_stride"),
    "DATA.NUM_WORKERS": _plain("data.workers"),
    "AUGMENTATION.STRENGTH": _plain("augmentation.strength"),
}
# Keys that the functions below read, several of them together.
_HANDLED = {
    "USE_AMP",
    "TRAIN.BATCH_SIZE",
    "MODEL.EMBEDDER_TYPE",
    "MODEL.L2_NORMALIZE",
    "MODEL.PROJECTION_SIZE",
    "MODEL.BASE_MODEL.FRAMES_PER_BATCH",
    "MODEL.EMBEDDER_MODEL.FC_LAYERS",
    "MODEL.EMBEDDER_MODEL.CAPACITY_SCALAR",
    "MODEL.EMBEDDER_MODEL.EMBEDDING_SIZE",
    "SCL.POSITIVE_TYPE",
    "OPTIMIZER.TYPE",
    "DATA.SAMPLING_STRATEGY",
    *(
        f"AUGMENTATION.{name}"
        for name in (
            "RANDOM_FLIP",
            "RANDOM_CROP",
            "BRIGHTNESS",
            "BRIGHTNESS_MAX_DELTA",
            "CONTRAST",
            "CONTRAST_DELTA",
            "CONTRAST_MAX_DELTA",
            "HUE",
            "HUE_MAX_DELTA",
            "SATURATION",
            "SATURATION_DELTA",
            "SATURATION_MAX_DELTA",
        )
    ),
}


def _model(flat: Mapping[str, Any], recipe: dict[str, Any]) -> None:
    kind = flat.get("MODEL.EMBEDDER_TYPE", "transformer")
    if kind not in ("transformer", "conv"):
        raise UserError(
            f"MODEL.EMBEDDER_TYPE is {kind!r}; only transformer and conv can be converted"
        )
    batch = int(flat.get("TRAIN.BATCH_SIZE", 1))
    _put(recipe, "data.batch_size", batch)
    chunk = int(flat.get("MODEL.BASE_MODEL.FRAMES_PER_BATCH", 40))
    _put(recipe, "train.chunk_frames", 2 * batch * chunk)  # the released value counts time steps
    wide = int(flat.get("MODEL.EMBEDDER_MODEL.CAPACITY_SCALAR", 2))
    layers = flat.get("MODEL.EMBEDDER_MODEL.FC_LAYERS", [[256, True]] * 2)
    sizes = {int(layer[0]) for layer in layers}
    if len(sizes) != 1:
        raise UserError(
            f"MODEL.EMBEDDER_MODEL.FC_LAYERS is {layers}; only layers of one width can be converted"
        )
    _put(recipe, "model.fc_layers", len(layers))
    _put(recipe, "model.fc_size", wide * sizes.pop())
    embedding = int(flat.get("MODEL.EMBEDDER_MODEL.EMBEDDING_SIZE", 128))
    _put(recipe, "model.embedding_size", embedding)
    # The released head has hidden width PROJECTION_SIZE and output width EMBEDDING_SIZE.
    _put(recipe, "model.projection_hidden", int(flat.get("MODEL.PROJECTION_SIZE", 128)))
    _put(recipe, "model.projection_size", embedding)
    if kind == "conv":
        _put(recipe, "model.encoder", "conv3d")
        _put(recipe, "model.backbone_to", "layer3")
        _put(recipe, "model.train_from", "all")
        recipe["model"].pop("positions", None)
    else:
        _put(recipe, "model.positions", "released")


def _data(flat: Mapping[str, Any], recipe: dict[str, Any], algorithm: str) -> None:
    positive = flat.get("SCL.POSITIVE_TYPE", "gauss")
    if algorithm == "scl" and positive != "gauss":
        raise UserError(
            f"SCL.POSITIVE_TYPE is {positive!r}; only gauss can be converted (the released loss is "
            "0 for all others)"
        )
    optimizer = flat.get("OPTIMIZER.TYPE", "AdamOptimizer")
    if optimizer != "AdamOptimizer":
        raise UserError(f"OPTIMIZER.TYPE is {optimizer!r}; only AdamOptimizer can be converted")
    strategy = flat.get("DATA.SAMPLING_STRATEGY", "time_augment")
    if strategy not in _SAMPLING:
        raise UserError(
            f"DATA.SAMPLING_STRATEGY is {strategy!r}; only {', '.join(_SAMPLING)} can be converted"
        )
    sampling = "anchors" if algorithm == "tcn" else _SAMPLING[strategy]
    _put(recipe, "data.sampling", sampling)
    if sampling == "random":
        # Among the released data sets, only FineGym crops as in the paper.
        finegym = any("finegym" in str(name).lower() for name in flat.get("DATASETS") or [])
        _put(recipe, "data.crop_base", "clip" if finegym else "video")
    if algorithm == "tcc":
        _put(recipe, "data.clips", "videos")


def _augmentation(flat: Mapping[str, Any], recipe: dict[str, Any]) -> None:
    if flat.get("SSL") is False:  # other operations, with their own ranges
        for key, value in _SUPERVISED.items():
            _put(recipe, f"augmentation.{key}", value)
        for name, (key, default) in _RANGES.items():
            _put(recipe, f"augmentation.{key}", flat.get(f"AUGMENTATION.{name}", default))
        if flat.get("AUGMENTATION.RANDOM_CROP", True) is False:
            _put(recipe, "augmentation.ratio", [1.0, 1.0])
    spec = {name: flat.get(f"AUGMENTATION.{name}", True) for name in _SWITCHES}
    for name, (key, off) in _SWITCHES.items():
        if spec[name] is False:
            _put(recipe, f"augmentation.{key}", off)


_SWITCHES: dict[str, tuple[str, Any]] = {
    "RANDOM_FLIP": ("flip", 0.0),
    "RANDOM_CROP": ("scale", [1.0, 1.0]),
    "BRIGHTNESS": ("brightness", 0.0),
    "CONTRAST": ("contrast", 0.0),
    "SATURATION": ("saturation", 0.0),
    "HUE": ("hue", 0.0),
}


# With SSL false every clip is jittered, and neither grey nor blurred. Ranges: TCC's defaults.
_SUPERVISED = {"jitter": 1.0, "strength": 1.0, "grayscale": 0.0, "blur": 0.0}
_RANGES = {
    "BRIGHTNESS_MAX_DELTA": ("brightness", 32 / 255),
    "CONTRAST_MAX_DELTA": ("contrast", 0.5),
    "SATURATION_MAX_DELTA": ("saturation", 0.5),
    "HUE_MAX_DELTA": ("hue", 0.2),
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _put(recipe: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        recipe = recipe.setdefault(section, {})
    recipe[last] = value
