"""Recipes: typed configuration from a YAML file and ``key=value`` overrides."""

import difflib
import functools
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training.data.folders import names_of
from training.data.label_values import SPLITS, known_hint
from training.models import check_backbone
from training.recipe.action import check_action
from training.recipe.dpc import check_dpc
from training.recipe.errors import ConfigError
from training.recipe.losses import LossConfig, loss_terms
from training.recipe.schema import RENAMED, SHORT_CLIPS, Config
from training.support.command import UserError

TRAINING_FOLDER = Path(__file__).parents[1]
SPLIT_TIME_LOSSES = ("scl", "classification")  # those with data.split_time above 1


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Merge the defaults, the recipe and ``key=value`` overrides key by key, and check the result.

    Raises ConfigError, which names the key, for an unknown key, a wrong type or a value out of
    range.
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
    """The path of a recipe, which is relative to the current folder or to training/."""
    for path in (Path(recipe), TRAINING_FOLDER / recipe):
        if path.is_file():
            return path
    available = ", ".join(sorted(p.name for p in (TRAINING_FOLDER / "recipes").glob("*.yaml")))
    raise ConfigError(f"recipe {recipe} does not exist; training/recipes contains {available}")


def make_paths_absolute(config: DictConfig) -> None:
    """Make data.folder and model.weights absolute, as RUN/config.yaml has them."""
    folders = [str(Path(one).resolve()) for one in names_of(config.data.folder) if one]
    config.data.folder = folders if len(folders) > 1 else "".join(folders)
    if config.model.weights and config.model.weights != "package":
        config.model.weights = str(Path(config.model.weights).resolve())


def differences(a: DictConfig, b: DictConfig) -> list[str]:
    """Dotted keys whose resolved values differ."""
    return [key for key in _leaves(Config) if OmegaConf.select(a, key) != OmegaConf.select(b, key)]


def may_change() -> set[str]:
    """Dotted keys that may change when a run is resumed."""
    return {key for key, leaf in _leaves(Config).items() if leaf.metadata.get("may_change")}


@functools.cache
def _schema() -> DictConfig:
    """The defaults. Callers must not change them: every recipe is merged into a copy."""
    schema = OmegaConf.structured(Config)
    # A frozen dataclass becomes a read-only node, but a recipe may set its fields.
    OmegaConf.set_readonly(schema.augmentation, False)
    return schema


def _merge(config: DictConfig, values: Any, source: str) -> DictConfig:
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{source}: expected sections with keys, got a {type(values).__name__}")
    _check_keys(values, Config, "", source)
    try:
        return OmegaConf.merge(config, values)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a section in place of a list
        for key, leaf in _leaves(Config).items():
            got = OmegaConf.select(values, key, default=config)
            if got is config:  # not given
                continue
            try:
                OmegaConf.update(config.copy(), key, got)
            except (OmegaConfBaseException, TypeError):
                expected = _expected(leaf)
                raise ConfigError(f"{source}: {key}: expected {expected}, got {got!r}") from error
        raise ConfigError(f"{source}: {error}") from error


def _expected(leaf: Any) -> str:
    """The type of a key in an error message."""
    if leaf.metadata.get("names"):
        return "a name or a list of names" + (", or null" if leaf.default is None else "")
    return leaf.type.__name__ if isinstance(leaf.type, type) else str(leaf.type)


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
                raise ConfigError(
                    f"{source}: {key} is a section; set its keys, for example {key}.x=..."
                )
            _check_keys(inside, section, f"{key}.", source)


def _suggestion(key: str) -> str:
    """The nearest known key, by the whole name and by its last part alone ("lr")."""
    if key in RENAMED:
        return f"It is now called {RENAMED[key]!r}; set that key to the same value."

    def likeness(known: str) -> float:
        last, known_last = key.rpartition(".")[2], known.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        return whole + difflib.SequenceMatcher(None, last, known_last).ratio()

    leaves = _leaves(Config)
    nearest = max(leaves, key=likeness)
    return f"Did you mean {_source(leaves[nearest]) or nearest!r}?"


def _source(leaf: Any) -> str:
    """The key from which a key takes its value ("${augmentation.size}"); "" if it has a value."""
    default = str(leaf.default)
    return default[2:-1] if default.startswith("${") else ""


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
        except OmegaConfBaseException as error:  # ${...} that refers to an unknown key
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{key}: {reason}") from error
        if leaf.metadata.get("names"):
            _check_names(config, key, leaf, value)
        choices, minimum = leaf.metadata.get("choices"), leaf.metadata.get("minimum")
        above, maximum = leaf.metadata.get("above"), leaf.metadata.get("maximum")
        if choices and value not in choices:
            if choices == SPLITS:
                raise ConfigError(f"{key}: there is no split {value!r}{known_hint(value, SPLITS)}")
            names = ", ".join(map(str, choices))
            raise ConfigError(f"{key}: expected one of {names}, got {value!r}")
        if minimum is not None and value is not None and not value >= minimum:
            raise ConfigError(f"{key}: expected at least {minimum}, got {value}")
        if maximum is not None and value is not None and not value <= maximum:
            raise ConfigError(f"{key}: expected at most {maximum}, got {value}")
        if above is not None and value is not None and not value > above:
            raise ConfigError(f"{key}: expected more than {above}, got {value}")
    if config.model.image_size != config.augmentation.size:
        raise ConfigError(
            f"model.image_size is {config.model.image_size} and augmentation.size "
            f"{config.augmentation.size}: augmentation.size sets the size of the images; leave "
            "model.image_size out, or set both to the same value"
        )
    _check_weights(config)
    _check_loss_and_data(config)
    steps, epochs = config.train.steps, config.train.epochs
    if steps is None and epochs is None:
        raise ConfigError(
            "train.steps and train.epochs are both null: set one of them, such as train.epochs=100"
        )
    if steps is not None and epochs is not None:
        raise ConfigError(
            f"train.steps is {steps} and train.epochs {epochs}: set one of them and the other to "
            "null, for example train.epochs=null"
        )
    try:
        check_backbone(config.model)
    except UserError as error:
        raise ConfigError(str(error)) from error
    if config.model.hidden_size % config.model.heads:
        raise ConfigError(
            f"model.hidden_size: expected a multiple of model.heads {config.model.heads}, got "
            f"{config.model.hidden_size}"
        )
    if config.optim.warmup_steps and config.optim.warmup_epochs:
        raise ConfigError(
            f"optim.warmup_steps is {config.optim.warmup_steps} and optim.warmup_epochs "
            f"{config.optim.warmup_epochs}: set one of them and leave the other 0"
        )
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError(
            f"optim.betas: expected two numbers in [0, 1), got {[*config.optim.betas]}"
        )
    try:
        OmegaConf.to_object(config.augmentation)
    except ValueError as error:
        raise ConfigError(f"augmentation: {error}") from error


def _check_names(config: DictConfig, key: str, leaf: Any, value: Any) -> None:
    """Check a key that has a name or a list of names; numbers among them become names."""
    if value is None and leaf.default is None:
        return
    many = isinstance(value, ListConfig)
    names = [*value] if many else [value]
    kinds = {type(name) for name in names}
    if not kinds <= {str, int, float} or (many and "" in names):
        quotes = f"; quote it: '{key}=\"no\"'" if isinstance(value, bool) else ""
        raise ConfigError(f"{key}: expected {_expected(leaf)}, got {value!r}{quotes}")
    if not all(isinstance(name, str) for name in names):  # YAML reads 2024 as a number
        names = [str(name) for name in names]
        OmegaConf.update(config, key, names if many else names[0])


def _check_weights(config: DictConfig) -> None:
    """Check that data.weights has a number above 0 for each folder."""
    weights, folders = config.data.weights, names_of(config.data.folder)
    if weights is None:
        return
    if not all(0 < weight < math.inf for weight in weights):
        raise ConfigError(f"data.weights: expected finite numbers above 0, got {[*weights]}")
    if len(weights) != len(folders):
        raise ConfigError(
            f"data.weights: expected a number for each of the {len(folders)} folders of "
            f"data.folder, got {len(weights)}: {[*weights]}"
        )


def _check_vclr(config: DictConfig, losses: list[str]) -> None:
    """The losses, clips and encoder of VCLR or SeCo are used together and with nothing else."""
    needed = {"data.clips": "tuples", "model.encoder": "vclr"}
    have = {key: OmegaConf.select(config, key) == value for key, value in needed.items()}
    parts = {"vclr": ("inter", "intra", "video", "order"), "seco": ("inter", "intra", "order")}
    name = next((name for name in parts if name in losses), None)
    others = [other for other in losses if other != name]
    if name is not None:
        if others:
            raise ConfigError(f"loss.{name} cannot be combined with loss.{others[0]}")
        for key, value in needed.items():
            if not have[key]:
                got = OmegaConf.select(config, key)
                raise ConfigError(f"loss.{name} needs {key}={value}, got {got}")
        if not any(config.loss[name][part] for part in parts[name]):
            first = ", ".join(parts[name][:-1])
            raise ConfigError(
                f"loss.{name}: {first} and {parts[name][-1]} are all 0; set at least one"
            )
        if config.data.num_context > 1:
            raise ConfigError(
                "data.num_context: data.clips=tuples has no context frames, expected 1, got "
                f"{config.data.num_context}"
            )
        if config.data.segments < 2:
            raise ConfigError(
                f"data.segments: a tuple has at least 2 segments, got {config.data.segments}"
            )
        if name == "seco" and config.data.segments != 2:
            raise ConfigError(
                "data.segments: loss.seco compares the two halves of a video, expected 2, got "
                f"{config.data.segments}"
            )
    else:
        for key, value in needed.items():
            if have[key]:
                raise ConfigError(
                    f"{key}={value} works only with loss.vclr or loss.seco, got loss.{others[0]}"
                )
        if not config.augmentation.per_clip:
            raise ConfigError(
                "augmentation.per_clip: false works only with data.clips=tuples, got "
                f"{config.data.clips}"
            )


def _check_speed(config: DictConfig) -> None:
    """Check that the clips have two speeds and that embeddings can show them."""
    if config.data.sampling != "speeds":
        raise ConfigError(f"loss.speed needs data.sampling=speeds, got {config.data.sampling}")
    cause = "loss.speed needs embeddings that depend on the other frames of the clip"
    if config.model.encoder != "fve":
        raise ConfigError(f"{cause}: model.encoder must be fve, got {config.model.encoder}")
    if not config.model.layers:
        raise ConfigError(f"{cause}: model.layers must be at least 1, got {config.model.layers}")


def _check_split_time(config: DictConfig, losses: list[str]) -> None:
    """Check that the losses support data.split_time parts of clips; `check_ranks` checks T."""
    parts = config.data.split_time
    whole = [name for name in losses if name not in SPLIT_TIME_LOSSES]
    if parts > 1 and whole:
        supported = " and ".join(f"loss.{name}" for name in SPLIT_TIME_LOSSES)
        raise ConfigError(
            f"data.split_time: got {parts}, but loss.{whole[0]} compares whole clips, so that "
            f"ranks cannot share one; only {supported} support parts of clips. Set "
            "data.split_time=1: ranks then share the clips of a batch"
        )


def _check_loss_and_data(config: DictConfig) -> None:
    """Check that the losses support the clips that the recipe draws."""
    losses = [name for name, *_ in loss_terms(config.loss)]
    if not losses:
        names = ", ".join(f"loss.{f.name}.weight" for f in fields(LossConfig))
        raise ConfigError(f"loss: every weight is 0; set the weight of at least one of {names}")
    _check_vclr(config, losses)
    check_action(config, losses)
    check_dpc(config, losses)
    _check_split_time(config, losses)
    if config.data.tuple_frames > 1 and config.data.clips not in SHORT_CLIPS:
        raise ConfigError(
            f"data.tuple_frames: got {config.data.tuple_frames}, but data.clips={config.data.clips}"
            f" has clips of data.num_frames frames; leave the key out, or set data.clips to one of "
            f"{', '.join(SHORT_CLIPS)}"
        )
    options = config.loss.classification
    chosen = [key for key in ("label_share", "label_videos") if options[key] not in (1, None)]
    if chosen and options.weight is None:
        raise ConfigError(
            f"loss.classification.{chosen[0]} is {options[chosen[0]]}, but no label is used: set "
            "loss.classification.weight, such as 1"
        )
    if losses == ["sal"] and config.model.encoder == "fve" and config.model.positions != "none":
        raise ConfigError(
            "loss.sal: positions reveal the order of the frames; set model.positions=none, got "
            f"{config.model.positions}"
        )
    if options.label_videos is not None and options.label_share != 1:
        raise ConfigError(
            f"loss.classification: label_videos is {options.label_videos} and label_share "
            f"{options.label_share}; set one of them"
        )
    views = [name for name in losses if name in ("scl", "nearest")]
    if views and config.data.clips not in ("views", "synchronised"):
        raise ConfigError(
            f"loss.{views[0]} compares times of one video or of synchronised videos: data.clips "
            f"must be views or synchronised, got {config.data.clips}"
        )
    soft_dtw = config.loss.soft_dtw
    if "soft_dtw" in losses and soft_dtw.divergence and soft_dtw.cost == "softmax":
        raise ConfigError(
            "loss.soft_dtw: divergence=true needs cost=sqeuclidean or cosine, got softmax, which "
            "is not symmetric"
        )
    if "tcn" in losses and config.data.sampling != "anchors":
        raise ConfigError(
            "loss.tcn needs anchors and positives: data.sampling must be anchors, "
            f"got {config.data.sampling}"
        )
    if "speed" in losses:
        _check_speed(config)
    if config.data.sampling == "speeds" and config.data.clips != "views":
        raise ConfigError(
            "data.sampling=speeds draws one part of a video at two speeds: data.clips must be "
            f"views, got {config.data.clips}"
        )
    if config.data.sampling == "anchors" and config.data.num_frames % 2:
        raise ConfigError("data.num_frames: sampling=anchors draws pairs, expected an even number")
    if config.model.encoder == "fve" and config.model.num_context > 1:
        raise ConfigError(
            "data.num_context: model.encoder=fve encodes single frames, expected 1, "
            f"got {config.data.num_context}"
        )
