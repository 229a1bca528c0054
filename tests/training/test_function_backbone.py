"""Backbones that a function of the user's returns: model.backbone=package.module:function."""

import copy
import itertools
import sys

import pytest
import torch
from runs import same, weights

from training.models import build_model, load_backbone_weights
from training.models.function import FunctionBackbone
from training.recipe.load import load_config
from training.runs.model import load_run
from training.support.command import UserError
from training.train import main

SOURCE = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1))

class Staged(nn.Module):
    pixel_mean = (0.5, 0.25, 0.125)
    pixel_std = [0.5, 0.5, 0.25]

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Conv2d(4, 5, 3, 2, 1)
        self.stages = {"stem": self.stem, "body": self.body}
        self.strides = {"stem": 8, "body": 16}

class Loose(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = {"a": nn.Conv2d(3, 4, 1)} if LOOSE else {"a": 3}

class Odd(Staged):
    def __init__(self, **changes):
        super().__init__()
        for key, value in changes.items():
            setattr(self, key, value)

LOOSE = True
number = 3
loose = Loose
odd_strides = lambda: Odd(strides={"stem": 8})
odd_mean = lambda: Odd(pixel_mean=(1, 2))
odd_std = lambda: Odd(pixel_std=(1, 2, 0))
odd_stage = lambda: Odd(stages={"stem": 3})
text = lambda: "a network"
tokens = lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2))
one_channel = lambda: nn.Conv2d(1, 8, 3)

def needs_one(depth):
    return plain()

class Detached(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).detach()

detached = lambda: Detached(3, 4, 1)
"""
_numbers = itertools.count()  # a module is imported once a process: each test has one of its own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the current folder, by its name."""
    monkeypatch.chdir(tmp_path)
    name = f"own_backbones_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    return name


def made(name, train_from="all", end="last", pool="max"):
    return FunctionBackbone(name, 32, train_from, end, pool)


def test_a_function_without_stages(own):
    model = made(f"{own}:plain")
    assert (model.out_channels, model.out_features, model.stride) == (6, 6, 4)
    assert (model.pixel_mean, model.stages) == ((0.485, 0.456, 0.406), ("network",))
    assert [*model.state_dict()] == [*model.network.state_dict()]
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), model.network.eval()(x).amax((2, 3)))
    assert not model.network.training
    assert model.train().network.training
    frozen = made(f"{own}:plain", "none").train()
    assert frozen.all_frozen
    assert not any(m.training for m in frozen.modules())
    assert not any(m.training for m in frozen.network.modules())
    norms = made(f"{own}:plain", "batch_norm")
    assert {k for k, p in norms.named_parameters() if p.requires_grad} == {"1.weight", "1.bias"}


def test_a_function_with_stages(own):
    model = made(f"{own}:Staged", "last", pool="grid").train()
    assert (model.stages, model.stride, model.out_channels) == (("stem", "body"), 16, 5)
    assert model.pixel_std == (0.5, 0.5, 0.25)
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert trained == {"body.weight", "body.bias"}
    assert not model.network.stem[1].training
    assert model.network.body.training
    x = torch.rand(2, 3, 32, 32)
    inner = model.network
    torch.testing.assert_close(model.maps(x), inner.body(inner.stem(x)))
    shorter = made(f"{own}:Staged", "none", "stride8").eval()
    assert (shorter.stages, shorter.out_channels, shorter.stride) == (("stem",), 4, 8)
    with pytest.raises(UserError, match=r"no stage of .* has a map of stride 16|has stages"):
        made(f"{own}:Staged", "third")


def test_the_code_of_a_function_has_a_version(own, tmp_path):
    version = made(f"{own}:plain").code_version()
    assert made(f"{own}:Staged").code_version() == version  # both are of the same file
    path = tmp_path / f"{own}.py"
    path.write_text(path.read_text() + "\n# other code\n")
    assert made(f"{own}:plain").code_version() != version


def test_copies_are_independent_and_whole(own):
    model = made(f"{own}:plain")
    other = copy.deepcopy(model)
    assert same(model.state_dict(), other.state_dict())
    x = torch.rand(1, 3, 32, 32)
    before = model.eval()(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert torch.equal(model(x), before)
    assert not torch.equal(other.eval()(x), before)  # its own network has the changed ones
    other.double()
    assert other(x.double()).dtype == torch.double
    assert {p.dtype for p in other.network.parameters()} == {torch.double}
    assert {p.dtype for p in model.parameters()} == {torch.float}


ERRORS = {
    "nowhere": "has no nowhere",
    "number": "number is a int, expected a function",
    "needs_one": "calling it without arguments failed in .*TypeError",
    "text": r"returned a str, expected a torch\.nn\.Module",
    "tokens": r"expected floating-point maps \(n, C, h, w\), got torch.float32 \(1, 8, 64\)",
    "one_channel": "fails with one image of 32 x 32 pixels",
    "odd_strides": "strides has stem, but stages has stem, body",
    "odd_mean": "pixel_mean is .* expected three numbers",
    "odd_std": "pixel_std is .* above 0",
    "odd_stage": r"stages\['stem'\] is a int",
    "loose": r"stages\['a'\] is not a submodule",
    "detached": "maps do not depend on the parameters that model.train_from trains",
}


@pytest.mark.parametrize("function", ERRORS)
def test_functions_that_are_no_backbone(function, own):
    with pytest.raises(UserError, match=ERRORS[function]):
        made(f"{own}:{function}")


def test_modules_that_cannot_be_imported(own, tmp_path):
    with pytest.raises(UserError, match=r"no module there_is_none, neither in the current"):
        made("there_is_none:f")
    (tmp_path / f"{own}_b.py").write_text("import there_is_none_either\n")
    with pytest.raises(UserError, match=r"importing it failed in .*there_is_none_either"):
        made(f"{own}_b:f")
    (tmp_path / f"{own}_c.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"importing it failed in .*line 1: ZeroDivisionError"):
        made(f"{own}_c:f")


def test_a_run_with_a_function(own, recipe):
    source = made(f"{own}:Staged")
    torch.save({"net": source.state_dict()}, "own.pt")
    assert load_backbone_weights(made(f"{own}:Staged"), "own.pt").missing == []
    options = [f"model.backbone={own}:Staged", "model.weights=own.pt", "model.train_from=last"]
    model = build_model(load_config(recipe, options))
    assert same(model.backbone.state_dict(), source.state_dict())
    frames = torch.full((1, 1, 3, 1, 1), 255, dtype=torch.uint8)
    got = model._normalise(frames[0]).flatten()
    torch.testing.assert_close(got, torch.tensor([1.0, 1.5, 3.5]))
    run = ["train.run_dir=run", *options, "train.checkpoint_every=2"]
    assert main([recipe, *run, "train.steps=2"]) == 0
    state = weights("run")
    assert torch.equal(state["backbone.stem.0.weight"], source.state_dict()["stem.0.weight"])
    assert not torch.equal(state["backbone.body.weight"], source.state_dict()["body.weight"])
    assert load_run("run")[1].model.backbone == f"{own}:Staged"
