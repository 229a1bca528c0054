"""Weights of one run used in another, and the initial weights of a run whose file is gone."""

import shutil
from pathlib import Path

import pytest
import torch
from narrow import NARROW_RESNET
from runs import same, weights
from torch import nn
from vclr_cases import RECIPE as VCLR_RECIPE
from vclr_cases import tuples

import training.train
from training import export
from training.evaluation.encoders import load_compared_encoders
from training.models import SmallCNN, build_model, load_backbone_weights, resnet
from training.models.all_weights import load_all_weights
from training.models.weights import find_weights
from training.recipe.load import load_config
from training.runs.checkpoint import CheckpointError, list_checkpoints
from training.runs.model import initial_model, load_run
from training.train import main

ALL = "model.weights_parts=all"
SHORT = ["train.steps=2", "train.checkpoint_every=100"]


@pytest.fixture
def first(whole, recipe):
    """A run of 12 steps on one set of videos, as the start for others."""
    return whole


def initial(*options):
    """The weights that training would start from."""
    return initial_model(load_config("tiny.yaml", options)).state_dict()


def part(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@pytest.fixture
def places(first):
    """All files and folders that contain the weights of that run."""
    for name in ("model.safetensors", "model.pt"):
        assert export.main([first, name]) == 0
    return [
        first,
        str(list_checkpoints(f"{first}/checkpoints")[-1]),
        "model.safetensors",
        "model.pt",
    ]


def test_training_goes_on_from_another_run(places, first):
    trained = weights(first)
    for place in places:
        start = initial(f"model.weights={place}", ALL)
        assert same(start, trained)
        start = initial(f"model.weights={place}", "train.seed=1")
        assert same(part(start, "backbone."), part(trained, "backbone."))
        fresh = initial("train.seed=1")
        assert all(torch.equal(v, fresh[k]) for k, v in start.items() if "backbone" not in k)


def test_train_then_train_on(first, caplog):
    caplog.set_level("INFO")
    options = ["tiny.yaml", f"model.weights={first}", *SHORT, "optim.lr=0"]
    assert main([*options, ALL, "train.run_dir=second"]) == 0
    newest = list_checkpoints(f"{first}/checkpoints")[-1].resolve()
    count = len(weights(first))
    assert f"weights of all layers: {count} entries loaded from model.* of {newest}" in (
        caplog.text
    )
    trained, before = weights("second"), weights(first)
    learnt = [k for k in trained if "running" not in k and "num_batches" not in k]
    assert all(torch.equal(trained[k], before[k]) for k in learnt)
    assert same(load_run("second", untrained=True)[0].state_dict(), before)
    assert load_run("second")[1].model.weights == str(Path(first).resolve())


def test_a_damaged_checkpoint_of_a_run_is_passed_over(first):
    older, newest = list_checkpoints(f"{first}/checkpoints")
    newest.write_bytes(newest.read_bytes()[:500])
    assert find_weights(first, SmallCNN(16)) == older
    older.unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        find_weights(first, SmallCNN(16))
    newest.unlink()
    with pytest.raises(FileNotFoundError, match="whole has no checkpoint yet"):
        find_weights(first, SmallCNN(16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.hidden_size=32"], "change model.hidden_size=16,"),
        (["model.fc_size=24"], "change model.fc_size=16,"),
        (["model.ff_size=40"], "change model.ff_size=32,"),
        (["model.embedding_size=24"], "change model.embedding_size=16,"),
        (["model.projection_size=24"], "change model.projection_size=16,"),
        (["model.layers=2"], "it has no model.layers.1.attention_norm.weight"),
        (["model.layers=2"], "change model.layers,"),
        (["model.layers=0"], "entries have no place in this model (layers.0"),
        (["model.layers=0"], "change model.layers,"),
        (["model.fc_layers=1"], "change model.fc_"),
        (["augmentation.size=32"], "change model.backbone or model.pool or augmentation.size,"),
        (["model.encoder=conv3d", "data.num_context=2"], "it has no model.convolutions.0.weight"),
        (
            ["model.weights_key=teacher"],
            "model.weights_key=teacher is not in any prefix of the model's",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_key(first, options, message, capsys):
    run = ["train.run_dir=second", f"model.weights={first}", ALL]
    assert main(["tiny.yaml", *run, *options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert not Path("second").exists()


def test_all_layers_are_not_in_a_file_of_a_backbone(recipe, capsys):
    torch.save(SmallCNN(16).state_dict(), "backbone.pt")
    run = [recipe, "train.run_dir=run", "model.weights=backbone.pt"]
    assert main([*run, ALL]) == 2
    assert "load the backbone alone with model.weights_parts=backbone" in capsys.readouterr().err
    torch.save({f"backbone.{k}": v for k, v in SmallCNN(16).state_dict().items()}, "backbone.pt")
    assert main([*run, ALL]) == 2
    assert "it has no fc_block.1.weight" in capsys.readouterr().err


def test_a_folder_that_is_no_run(recipe, capsys):
    Path("folder").mkdir()
    assert main([recipe, "train.run_dir=run", "model.weights=folder"]) == 2
    assert "folder is a folder without config.yaml, so it is not a run" in capsys.readouterr().err


def test_vclr_goes_on_with_its_heads_and_queues_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(VCLR_RECIPE)
    cfg = load_config("tiny.yaml")
    torch.manual_seed(5)
    other = build_model(cfg)
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value))
    torch.save({"model": other.state_dict()}, "other.pt")
    model = initial_model(cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_all_weights(model, Path("other.pt"), cfg)
    after, given = model.state_dict(), other.state_dict()
    stays = {k for k in after if k.startswith("queues.") or k == "momentum.n_averaged"}
    assert {k.split(".")[0] for k in stays} == {"queues", "momentum"}
    assert same({k: after[k] for k in stays}, {k: before[k] for k in stays})
    assert all(torch.equal(v, given[k]) for k, v in after.items() if k not in stays)
    fewer = load_config("tiny.yaml", ["loss.vclr.intra=0"])
    torch.save({"model": initial_model(fewer).state_dict()}, "other.pt")
    with pytest.raises(ValueError, match=r"no model.encoder.heads.intra.0.weight.* loss.vclr"):
        load_all_weights(model, Path("other.pt"), cfg)


def test_package_is_no_path(recipe, monkeypatch):
    state = {
        k: torch.rand_like(v) if v.is_floating_point() else v
        for k, v in SmallCNN(16).state_dict().items()
    }
    torch.save(state, "in_a_package.pt")
    monkeypatch.setattr(SmallCNN, "package_weights", lambda self: Path("in_a_package.pt"))
    assert same(part(initial("model.weights=package"), "backbone."), state)
    assert main([recipe, "model.weights=package", "train.run_dir=run", *SHORT]) == 0
    assert load_run("run")[1].model.weights == "package"


# The untrained model of a run whose weights came from a file


@pytest.fixture
def resnet_file(recipe, monkeypatch):
    """Options for a narrow ResNet-18 with weights from a file."""
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)
    options = ["model.backbone=resnet18"]
    state = initial(*options, "train.seed=9")
    for value in state.values():
        if value.is_floating_point():
            value.mul_(0.9 + 0.2 * torch.rand_like(value)).add_(0.01 * torch.rand_like(value))
    torch.save(part(state, "backbone."), "resnet18.pt")
    torch.save(state, "all.pt")
    return options


@pytest.mark.parametrize(
    ("train_from", "parts"),
    [
        ("all", "backbone"),
        ("layer4", "backbone"),
        ("layer4", "all"),
        ("batch_norm", "backbone"),
        ("none", "backbone"),
    ],
)
def test_the_untrained_model_needs_no_file(resnet_file, train_from, parts):
    file = "resnet18.pt" if parts == "backbone" else "all.pt"
    options = [*resnet_file, f"model.train_from={train_from}", f"model.weights={file}"]
    options += [f"model.weights_parts={parts}"]
    before = initial(*options)
    assert main(["tiny.yaml", *options, *SHORT, "train.run_dir=run"]) == 0
    Path(file).rename("moved.pt")
    assert same(load_run("run", untrained=True)[0].state_dict(), before)
    assert not same(weights("run"), before)
    kept = torch.load("run/initial.pt", weights_only=True)
    frozen = {"all": [], "layer4": ["layer3.0.conv1.weight"], "none": ["layer4.0.bn1.weight"]}
    frozen["batch_norm"] = ["conv1.weight"]
    assert not kept.keys() & {f"backbone.{name}" for name in frozen[train_from]}  # in checkpoints
    assert ("backbone.layer4.0.bn1.running_mean" in kept) == (train_from != "none")
    assert ("embedding.weight" in kept) == (parts == "all")
    assert load_compared_encoders("run")


def test_of_vclr_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.train, "training_loader", tuples)
    recipe = "tiny.yaml"
    Path(recipe).write_text(VCLR_RECIPE)
    state = initial_model(load_config(recipe, ["train.seed=9"])).encoder.backbone.state_dict()
    torch.save(state, "backbone.pt")
    options = ["model.weights=backbone.pt"]
    before = initial_model(load_config(recipe, options)).state_dict()
    assert main([recipe, *options, "train.run_dir=run", *SHORT]) == 0
    Path("backbone.pt").unlink()
    assert same(load_run("run", untrained=True)[0].state_dict(), before)


def test_a_run_of_an_earlier_version_needs_the_file(resnet_file):
    options = [*resnet_file, "model.train_from=layer4", "model.weights=resnet18.pt"]
    before = initial(*options)
    assert main(["tiny.yaml", *options, *SHORT, "train.run_dir=run"]) == 0
    Path("run/initial.pt").unlink()
    assert same(load_run("run", untrained=True)[0].state_dict(), before)
    Path("resnet18.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"does not exist.*The run has no initial.pt"):
        load_run("run", untrained=True)
    assert load_run("run")  # its own weights are in the checkpoint


def test_initial_weights_are_written_once_and_whole(resnet_file, monkeypatch, capsys):
    options = ["tiny.yaml", *resnet_file, "model.weights=resnet18.pt", "train.run_dir=run"]
    options += ["model.train_from=all"]
    assert main([*options, *SHORT]) == 0
    path = Path("run/initial.pt")
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert main([*options, *SHORT, "--resume"]) == 0
    assert path.stat().st_mtime_ns == written
    path.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match=r"run/initial.pt cannot be read"):
        load_run("run", untrained=True)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    shutil.rmtree("run")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main([*options, *SHORT]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: run/initial.pt cannot be written (No space left on device)")
    assert not path.exists()
    assert main([*options, *SHORT, "--overwrite"]) == 0
    assert (
        main([*options[:2], "train.run_dir=run", "model.train_from=all", *SHORT, "--overwrite"])
        == 0
    )
    assert not path.exists()  # from the previous run


# Files of networks other than ResNet


class Vit(SmallCNN):
    """Names in a vision transformer of timm, DINO and MAE."""

    def __init__(self):
        nn.Module.__init__(self)
        self.name, self.left_out = "vit", ()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, 4, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in "ab")
        self.norm = nn.LayerNorm(4)

    def adapt(self, tensors):
        place = tensors.get("pos_embed")
        return tensors if place is None else tensors | {"pos_embed": place[:, :5]}


def vit(seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.rand(v.shape, generator=generator) for k, v in Vit().state_dict().items()}


MAE = {"decoder_embed.weight": (3, 4), "decoder_pos_embed": (1, 5, 3), "mask_token": (1, 1, 3)}
MAE |= {"decoder_blocks.0.0.weight": (3,), "decoder_norm.weight": (3,), "decoder_pred.bias": (3,)}
LAYOUTS = {
    "timm": ("", {"head.weight": (10, 4)}, None),
    "MAE": ("model.", MAE, None),
    "DINO": ("teacher.module.backbone.", {"head.mlp.0.weight": (4, 4)}, "teacher"),
    "MoCo v3": ("state_dict.module.base_encoder.", {"head.0.weight": (4, 4)}, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_vision_transformers(layout, tmp_path):
    prefix, heads, key = LAYOUTS[layout]
    state = vit(1)
    longer = state | {"pos_embed": torch.cat([state["pos_embed"], torch.zeros(1, 3, 4)], 1)}
    content = {f"{prefix}{k}": v for k, v in longer.items()}
    content |= {f"{prefix}{k}": torch.zeros(shape) for k, shape in heads.items()}
    other = {"DINO": "student.module.backbone.", "MoCo v3": "state_dict.module.momentum_encoder."}
    places = [prefix]
    if layout in other:
        places.append(other[layout])
        content |= {f"{other[layout]}{k}": v for k, v in vit(2).items()}
    if layout == "MAE":  # with a mean over patches, the last block has no norm
        del content["model.norm.bias"]
    torch.save(content, tmp_path / "w.pt")
    model = Vit()
    report = load_backbone_weights(model, tmp_path / "w.pt", key)
    assert report.taken == prefix
    got = model.state_dict()
    assert all(torch.equal(got[k], v) for k, v in state.items() if k not in report.missing)
    assert report.missing == (["norm.bias"] if layout == "MAE" else [])
    assert set(heads) <= set(report.unexpected)
    deeper = {f"{place}blocks.2.1.weight": torch.zeros(4, 4) for place in places}
    torch.save(content | deeper, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="another architecture"):
        load_backbone_weights(model, tmp_path / "w.pt", key)
