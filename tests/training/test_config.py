import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from training.data.folders import filters_of
from training.recipe.load import (
    ConfigError,
    differences,
    find_recipe,
    load_config,
    loss_terms,
    may_change,
)
from training.recipe.schema import plain_config


def test_published_recipe():
    cfg = load_config("recipes/carl.yaml")
    paper = {
        "data.num_frames": 240,
        "data.batch_size": 4,
        "data.alpha": 1.5,
        "data.beta": 0.2,
        "data.crop_base": "clip",
        "augmentation.size": 224,
        "model.backbone": "resnet50",
        "model.train_from": "layer4",
        "model.layers": 3,
        "model.hidden_size": 256,
        "model.heads": 8,
        "model.embedding_size": 128,
        "loss.scl.variance": 10.0,
        "loss.scl.temperature": 0.1,
        "optim.lr": 1e-4,
        "optim.weight_decay": 1e-5,
        "train.epochs": 300,
    }
    assert {key: OmegaConf.select(cfg, key) for key in paper} == paper


def test_every_recipe_loads_by_either_path():
    for path in find_recipe("recipes/carl.yaml").parent.glob("*.yaml"):
        assert load_config(path) == load_config(f"recipes/{path.name}")


def test_a_configuration_that_is_changed_changes_no_other():
    before = OmegaConf.to_container(load_config("recipes/carl.yaml"))
    changed = load_config("recipes/carl.yaml")
    changed.train.seed, changed.augmentation.size, changed.optim.betas = 99, 7, (0.1, 0.2)
    assert OmegaConf.to_container(load_config("recipes/carl.yaml")) == before


def test_any_loss_goes_with_either_encoder():
    for name in ("lav", "tcc", "tcn", "lav_tcc"):
        cfg = load_config(f"recipes/{name}.yaml", ["model.encoder=fve", "data.num_context=1"])
        assert (cfg.model.encoder, cfg.model.layers, cfg.model.num_context) == ("fve", 3, 1)
        assert [term for term, *_ in loss_terms(cfg.loss)] == name.split("_")
    cfg = load_config("recipes/carl.yaml", ["model.encoder=conv3d", "data.num_context=2"])
    assert [term for term, *_ in loss_terms(cfg.loss)] == ["scl"]


def test_sections_merge_key_by_key_and_the_command_line_wins(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {num_frames: 12}\ntrain: {steps: 5, seed: 3}\n")
    cfg = load_config(recipe, ["train.seed=4", "data.span=[0.5,1]"])
    assert (cfg.data.num_frames, cfg.data.alpha, *cfg.data.span) == (12, 1.5, 0.5, 1.0)
    assert (cfg.train.steps, cfg.train.seed) == (5, 4)
    assert cfg.model.num_frames == 12  # determined by the data
    assert cfg.model.image_size == cfg.augmentation.size == 224


def test_folders_and_filters_are_names_or_lists_of_names(tmp_path):
    values = ["data.folder=[a,2024]", "data.weights=[3,1]", "data.action=7"]
    cfg = load_config("recipes/carl.yaml", [*values, 'data.where.view=["no",ego]'])
    assert [*cfg.data.folder] == ["a", "2024"]
    assert [*cfg.data.weights] == [3.0, 1.0]
    assert cfg.data.action == "7"
    assert filters_of(cfg.data) == {"data.action": ["7"], "data.where.view": ["no", "ego"]}
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    again = load_config(tmp_path / "config.yaml")
    assert differences(cfg, again) == []
    one = load_config(tmp_path / "config.yaml", ["data.folder=b", "data.weights=null"])
    assert one.data.folder == "b"  # the command line replaces the list of the recipe
    assert sorted(differences(one, again)) == ["data.folder", "data.weights"]


def test_saved_configuration_loads_back_the_same(tmp_path):
    cfg = load_config("recipes/carl_demo.yaml", ["train.seed=9"])
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    assert differences(cfg, load_config(tmp_path / "config.yaml")) == []
    assert differences(cfg, load_config("recipes/carl_demo.yaml")) == ["train.seed"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "loss.temprature=0.2",
            "unknown key 'loss.temprature'. Did you mean 'loss.scl.temperature'",
        ),
        ("lr=1e-3", "unknown key 'lr'. Did you mean 'optim.lr'"),
        ("model.num_layers=2", "Did you mean 'model.layers'"),
        ("data.image_size=32", "unknown key 'data.image_size'. Did you mean 'augmentation.size'"),
        ("model.image_size=32", "augmentation.size 224: augmentation.size sets the size of the"),
        ("train.epochs=many", "train.epochs: expected int | None, got 'many'"),
        ("data.span=[0.1,b]", "data.span: expected tuple[float, float]"),
        ("data.folder=null", "data.folder: expected a name or a list of names, got None"),
        (
            "data.folder=[a,null]",
            "data.folder: expected a name or a list of names, got ['a', None]",
        ),
        ("data.folder={a: 1}", "data.folder: expected a name or a list of names, got {'a': 1}"),
        ("data.action=[golf,no]", "data.action: expected a name or a list of names, or null, got"),
        ("data.action=no", "got False; quote it: 'data.action=\"no\"'"),
        ("data.where.vew=ego", "unknown key 'data.where.vew'. Did you mean 'data.where.view'"),
        ("data.where=ego", "data.where is a section"),
        ("data.weights=2", "data.weights: expected list[float] | None, got 2"),
        ("data.weights=[1,0]", "data.weights: expected finite numbers above 0, got [1.0, 0.0]"),
        ("data.weights=[1,2]", "a number for each of the 1 folders of data.folder, got 2"),
        ("data.beta=1.5", "data.beta: expected at most 1, got 1.5"),
        ("model.dropout=2", "model.dropout: expected at most 1, got 2.0"),
        ("train.timeout=.inf", "train.timeout: expected at most 1000000.0, got inf"),
        ("optim.grad_clip=0", "optim.grad_clip: expected more than 0, got 0.0"),
        ("train.max_minutes=0", "train.max_minutes: expected more than 0, got 0.0"),
        ("optim.betas=[0.9,1]", "optim.betas: expected two numbers in [0, 1), got [0.9, 1.0]"),
        ("optim.lr=${optim.rate}", "optim.lr: Interpolation key 'optim.rate' not found"),
        ("data.alpha=0.5", "data.alpha: expected at least 1, got 0.5"),
        ("loss.vava.iterations=20000", "loss.vava.iterations: expected at most 10000, got 20000"),
        ("loss.scl.temperature=cold", "loss.scl.temperature: expected float, got 'cold'"),
        (
            "model.backbone=resnet35",
            "model.backbone: expected one of small_cnn, resnet18, resnet34, resnet50, resnet101, "
            "efficientnet_lite0, small_cnn3d, r3d_18, r3d_50, r2plus1d_18, s3d, timm:NAME or "
            "package.module:function, got 'resnet35'",
        ),
        ("model.backbone=a.b", "model.backbone: expected one of small_cnn"),
        (
            "model.train_from=layer5",
            "model.train_from: resnet50 has stages stem, layer1, layer2, layer3, layer4; expected "
            "all, last, none, batch_norm or one of them, got 'layer5'",
        ),
        ("model.train_from=conv4c", "batch_norm or one of them, got 'conv4c'"),
        ("model.pool=median", "model.pool: expected one of max, mean, grid, got 'median'"),
        ("model.hidden_size=100", "multiple of model.heads"),
        ("augmentation.flip=2", "flip must be a probability"),
        ("model=resnet50", "model is a section"),
        ("resume", "expected key=value"),
        (
            "train.steps=5",
            "train.steps is 5 and train.epochs 300: set one of them and the other to null, for "
            "example train.epochs=null",
        ),
        ("train.epochs=null", "train.epochs are both null: set one of them, such as train.epochs="),
        ("data.test_split=tset", "data.test_split: there is no split 'tset', did you mean 'test'?"),
        ("data.val_split=dev", "data.val_split: there is no split 'dev'; known: train, val, test"),
        ("data.train_split=trian", "there is no split 'trian', did you mean 'train'?"),
    ],
)
def test_errors_name_the_key(override, message):
    with pytest.raises(ConfigError) as error:
        load_config("recipes/carl.yaml", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_name_the_file(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("optim: {learning_rate: 1}\n")
    with pytest.raises(ConfigError, match=r"r\.yaml: unknown key 'optim.learning_rate'"):
        load_config(recipe)
    recipe.write_text("optim: [broken\n")
    with pytest.raises(ConfigError, match=r"not valid YAML.*line 2") as error:
        load_config(recipe)
    assert "\n" not in str(error.value)
    with pytest.raises(
        ConfigError, match=r"does not exist; training/recipes contains .*carl\.yaml"
    ):
        load_config("recipes/nothing.yaml")


def test_plain_values_are_carl_s_recipe():
    """The configuration for steps without omegaconf: the same values, those of CARL."""
    last = {"model.train_from": "layer4"}  # the paper's name of ResNet's last stage
    plain = plain_config({"data.num_frames": 480, "augmentation.size": 64} | last)
    recipe = load_config("recipes/carl.yaml", ["data.num_frames=480", "augmentation.size=64"])
    ours = OmegaConf.to_container(OmegaConf.structured(plain), resolve=True)
    theirs = OmegaConf.to_container(recipe, resolve=True)
    for section in ("model", "optim"):
        assert ours[section] == theirs[section]
    assert loss_terms(plain.loss) == loss_terms(recipe.loss)
    assert plain.model.num_frames == 480
    with pytest.raises(ValueError, match=r"unknown key 'data\.frames'"):
        plain_config({"data.frames": 1})


@pytest.mark.process
def test_a_step_needs_neither_omegaconf_nor_av():
    code = """
import sys
sys.modules |= dict.fromkeys(("omegaconf", "av", "tqdm", "yaml"))
import training.studies.memory_step, training.models
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_divergence_needs_a_symmetric_cost():
    options = ["data.clips=videos", "loss.soft_dtw.weight=1", "loss.soft_dtw.divergence=true"]
    load_config("recipes/lav.yaml", [*options, "loss.soft_dtw.cost=cosine"])
    with pytest.raises(ConfigError, match="divergence=true needs cost=sqeuclidean or cosine"):
        load_config("recipes/lav.yaml", [*options, "loss.soft_dtw.cost=softmax"])


def test_what_a_resumed_run_may_change_is_where_it_runs_and_what_it_writes():
    losses = ("scl", "soft_dtw", "contrastive_idm", "lav", "gta", "ae2", "vava", "drop_dtw")
    losses += ("lrprop", "tcc", "vclr", "seco")
    assert may_change() == {
        "data.folder",
        "data.class_set",
        "data.cache",
        "data.workers",
        "data.split_time",
        "loss.classification.classes",
        "loss.action.classes",
        "model.weights",
        "model.weights_key",
        "model.backbone_share",
        *(f"loss.{name}.backend" for name in losses),
        "train.run_dir",
        "train.device",
        "train.checkpointing",
        "train.compile",
        "train.max_minutes",
        "train.log_every",
        "train.checkpoint_every",
        "train.evaluate_every",
        "train.keep_best",
        "train.patience",
        "train.keep_checkpoints",
        "train.max_nonfinite",
        "train.timeout",
        "train.deterministic",
        "log.writer",
        "log.project",
        "log.name",
        "log.mode",
    }
