"""Recipes: typed configuration from a YAML file and ``key=value`` overrides."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import II, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS
from fastseq.video.augment import Augmentation

TRAINING_FOLDER = Path(__file__).parent


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message names the key."""


def _one_of(default: Any, *choices: Any) -> Any:
    return field(default=default, metadata={"choices": choices})


def _above(default: Any, limit: float) -> Any:
    return field(default=default, metadata={"above": limit})


def _at_least(default: Any, minimum: float) -> Any:
    return field(default=default, metadata={"minimum": minimum})


def _share(default: Any) -> Any:
    return field(default=default, metadata={"minimum": 0, "maximum": 1})


@dataclass
class DataConfig:
    """Which videos, and how two views are drawn from each (CARL, section 3.2)."""

    folder: str = ""  # prepared with python -m training.prepare
    num_frames: int = _at_least(240, 2)  # T, frames per view
    batch_size: int = _at_least(4, 1)  # videos per step, two views each
    sampling: str = _one_of("random", "random", "even")
    crop_base: str = _one_of("clip", "clip", "video", "span")
    alpha: float = _at_least(1.5, 1)
    beta: float = _share(0.2)
    span: tuple[float, float] = (0.3, 1.0)
    cache: str = _one_of("none", "none", "ram")
    cache_side: int | None = _at_least(None, 1)  # short side of cached frames, in pixels
    workers: int = _at_least(4, 0)
    train_split: str = "train"
    test_split: str = "test"


@dataclass
class ModelConfig:
    """The frame-level video encoder and the projection head (CARL, sections 3.3 and 3.4)."""

    backbone: str = _one_of("resnet50", "resnet50", "resnet18", "small_cnn")
    train_from: str = _one_of("layer4", "all", "layer3", "layer4", "none")
    weights: str | None = None  # file with a pre-trained backbone
    image_size: int = II("augmentation.size")
    num_frames: int = II("data.num_frames")
    frames_per_chunk: int = _at_least(80, 0)  # frames per backbone call, 0 = all at once
    fc_layers: int = _at_least(2, 0)
    fc_size: int = _at_least(512, 1)
    fc_dropout: float = _share(0.1)
    layers: int = _at_least(3, 0)
    hidden_size: int = _at_least(256, 2)
    heads: int = _at_least(8, 1)
    ff_size: int = _at_least(1024, 1)
    dropout: float = _share(0.1)
    positions: str = _one_of("vaswani", "vaswani", "released", "none")
    embedding_size: int = _at_least(128, 1)
    projection_hidden: int = _at_least(128, 1)
    projection_size: int = _at_least(128, 1)


@dataclass
class LossConfig:
    """The options of fastseq.scl_loss."""

    variance: float = 10.0
    temperature: float = 0.1
    normalize: bool = True
    objective: str = _one_of("kl", *OBJECTIVES)
    negatives: str = _one_of("cross", *NEGATIVES)
    reduction: str = _one_of("mean", *(name for name in REDUCTIONS if name != "none"))
    backend: str = "auto"


@dataclass
class OptimConfig:
    """Adam with coupled weight decay; the rate follows half a cosine from ``lr`` to 0."""

    lr: float = _at_least(1e-4, 0)
    weight_decay: float = _at_least(1e-5, 0)
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = _one_of("cosine", "cosine", "constant")
    grad_clip: float | None = _above(10.0, 0)  # gradient norm; null = no clipping


@dataclass
class TrainConfig:
    """How long, where, and what is written."""

    run_dir: str = ""  # default: runs/<name of the recipe>
    steps: int | None = _at_least(None, 1)  # give steps or epochs
    epochs: int | None = _at_least(None, 1)
    # Stops the run and ends the cosine by then: the result then depends on the machine's speed.
    max_minutes: float | None = _above(None, 0)
    seed: int = _at_least(0, 0)
    device: str = "auto"  # auto = cuda when there is one
    precision: str = _one_of("auto", "auto", "fp32", "bf16")  # auto = bf16 on CUDA that has it
    log_every: int = _at_least(20, 1)  # steps
    checkpoint_every: int = _at_least(1000, 1)  # steps
    keep_checkpoints: int = _at_least(2, 1)
    max_nonfinite: int = _at_least(20, 1)  # steps in a row without a finite loss before giving up


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Defaults, then the recipe, then ``key=value`` overrides, merged key by key and checked.

    Raises ConfigError that names the key for an unknown key, a wrong type or a value out of range.
    """
    path = find_recipe(recipe)
    try:
        from_file = OmegaConf.load(path)
    except Exception as error:
        reason = " ".join(str(error).split())  # a YAML error has several lines
        raise ConfigError(f"{path}: not valid YAML: {reason}") from error
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: expected key=value, such as optim.lr=1e-3")
    config = _schema()
    sources = [(str(path), from_file), ("command line", OmegaConf.from_dotlist(list(overrides)))]
    for source, values in sources:
        config = _merge(config, values, source)
    _check_values(config)
    return config


def find_recipe(recipe: str | Path) -> Path:
    """A recipe given relative to the current folder or to training/."""
    for path in (Path(recipe), TRAINING_FOLDER / recipe):
        if path.is_file():
            return path
    available = ", ".join(sorted(p.name for p in (TRAINING_FOLDER / "recipes").glob("*.yaml")))
    raise ConfigError(f"recipe {recipe} does not exist; there are: {available} in training/recipes")


def differences(a: DictConfig, b: DictConfig) -> list[str]:
    """Dotted keys whose resolved values differ."""
    return [key for key in _leaves(Config) if OmegaConf.select(a, key) != OmegaConf.select(b, key)]


def _schema() -> DictConfig:
    schema = OmegaConf.structured(Config)
    # A frozen dataclass makes a read-only node; a recipe may still set its fields.
    OmegaConf.set_readonly(schema.augmentation, False)
    return schema


def _merge(config: DictConfig, values: Any, source: str) -> DictConfig:
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{source}: expected sections with keys, got a {type(values).__name__}")
    _check_keys(values, Config, "", source)
    try:
        return OmegaConf.merge(config, values)
    except OmegaConfBaseException as error:
        for key, leaf in _leaves(Config).items():
            got = OmegaConf.select(values, key, default=config)
            if got is config:  # not given
                continue
            try:
                OmegaConf.update(config.copy(), key, got)
            except OmegaConfBaseException:
                kind = leaf.type.__name__ if isinstance(leaf.type, type) else leaf.type
                raise ConfigError(f"{source}: {key}: expected {kind}, got {got!r}") from error
        raise ConfigError(f"{source}: {error}") from error


def _check_keys(values: DictConfig, schema: type, prefix: str, source: str) -> None:
    known = {f.name: f for f in fields(schema)}
    for name in values:
        key = f"{prefix}{name}"
        if name not in known:
            inside = values._get_node(name)
            while isinstance(inside, DictConfig) and len(inside):  # "optm.lr", not "optm"
                name = next(iter(inside))
                key, inside = f"{key}.{name}", inside._get_node(name)
            raise ConfigError(f"{source}: unknown key {key!r}. {_suggestion(key)}")
        section = known[name].type
        if is_dataclass(section):
            inside = values._get_node(name)
            if not isinstance(inside, DictConfig):
                raise ConfigError(f"{source}: {key} is a section; set its keys, as {key}.x=...")
            _check_keys(inside, section, f"{key}.", source)


def _suggestion(key: str) -> str:
    """The nearest known key, by the whole name and by its last part alone ("lr")."""

    def likeness(known: str) -> float:
        last, known_last = key.rpartition(".")[2], known.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        return whole + difflib.SequenceMatcher(None, last, known_last).ratio()

    return f"Did you mean {max(_leaves(Config), key=likeness)!r}?"


def _leaves(schema: type, prefix: str = "") -> dict[str, Any]:
    """All dotted keys of a dataclass with their fields."""
    leaves = {}
    for f in fields(schema):
        if is_dataclass(f.type):
            leaves |= _leaves(f.type, f"{prefix}{f.name}.")
        else:
            leaves[f"{prefix}{f.name}"] = f
    return leaves


def _check_values(config: DictConfig) -> None:
    for key, leaf in _leaves(Config).items():
        try:
            value = OmegaConf.select(config, key)
        except OmegaConfBaseException as error:  # ${...} that leads nowhere
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{key}: {reason}") from error
        choices, minimum = leaf.metadata.get("choices"), leaf.metadata.get("minimum")
        above, maximum = leaf.metadata.get("above"), leaf.metadata.get("maximum")
        if choices and value not in choices:
            names = ", ".join(map(str, choices))
            raise ConfigError(f"{key}: expected one of {names}, got {value!r}")
        if minimum is not None and value is not None and not value >= minimum:
            raise ConfigError(f"{key}: expected at least {minimum}, got {value}")
        if maximum is not None and not value <= maximum:
            raise ConfigError(f"{key}: expected at most {maximum}, got {value}")
        if above is not None and value is not None and not value > above:
            raise ConfigError(f"{key}: expected more than {above}, got {value}")
    if (config.train.steps is None) == (config.train.epochs is None):
        raise ConfigError("set one of train.steps and train.epochs; the other one to null")
    if config.model.backbone == "small_cnn" and config.model.train_from not in ("all", "none"):
        raise ConfigError("model.train_from: small_cnn is trained whole: expected all or none")
    if config.model.hidden_size % config.model.heads:
        raise ConfigError("model.hidden_size: expected a multiple of model.heads")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError(
            f"optim.betas: expected two numbers in [0, 1), got {[*config.optim.betas]}"
        )
    try:
        OmegaConf.to_object(config.augmentation)
    except ValueError as error:
        raise ConfigError(f"augmentation: {error}") from error
