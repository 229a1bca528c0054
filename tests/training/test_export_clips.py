"""Exports of classifiers of actions: networks of clips, and shifted ones of images."""

import json
from pathlib import Path

import pytest
import torch
from layout_networks import MMResNet, Recognizer, video_resnet
from narrow import NARROW_RESNET, narrow_resnet
from safetensors import safe_open
from safetensors.torch import load_file

from training import convert
from training.export import main
from training.models import load_backbone_weights, resnet, resnet3d
from training.models.resnet3d import ResNet3d
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.runs.weight_writers import write_run

RECIPE = """
data: {clips: segments, segments: 4, tuple_frames: %d}
augmentation: {size: 32}
model: {encoder: tsn, backbone: %s, train_from: all, pool: mean, shift: %d}
loss: {action: {weight: 1, classes: 5}}
train: {steps: 1}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)
    monkeypatch.setattr(resnet3d, "WIDTHS", NARROW_RESNET)


def run(backbone, frames=4, shift=0):
    """A run with drawn weights and statistics, and its model."""
    Path("recipe.yaml").write_text(RECIPE % (frames, backbone, shift))
    cfg = load_config("recipe.yaml")
    model = initial_model(cfg).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    write_run(Path("run"), model.state_dict(), cfg)
    return model


def scores(model, x):
    with torch.no_grad():
        return model.heads["action"](model.backbone(x))


@pytest.mark.parametrize("depth", [18, 50])
def test_mmaction2s_resnet3d_has_equal_scores(depth, capsys):
    model = run(f"r3d_{depth}")
    assert main(["run", "out.pth", "--layout", "mmaction2"]) == 0
    out = capsys.readouterr().out
    network = f"Recognizer3D(backbone=ResNet3d(depth={depth}, conv1_kernel=(3, 7, 7)"
    assert f"network of mmaction2: {network}" in out
    assert "cls_head=I3DHead(num_classes=5, in_channels=" in out
    pixels = "minus [110.2008, 100.6398, 95.9947], divided by [58.1477, 56.4698, 55.3322]"
    assert f"its pixels: RGB in 0 to 255, {pixels}\n" in out
    assert "left out" not in out
    features = NARROW_RESNET[-1] * (1 if depth < 50 else 4)
    network = Recognizer(MMResNet(depth, NARROW_RESNET, clips=True), features, 5).eval()
    state = torch.load("out.pth", weights_only=True)["state_dict"]
    network.load_state_dict(state)  # strict
    clips = torch.rand(2, 3, 5, 32, 32)
    with torch.no_grad():
        found = network.cls_head.fc_cls(network.backbone(clips).mean((2, 3, 4)))
    torch.testing.assert_close(found, scores(model, clips), rtol=1e-5, atol=1e-6)
    again = ResNet3d(f"r3d_{depth}", "all")
    assert load_backbone_weights(again, "out.pth").layout == "mmaction2"
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    torch.save(again.state_dict(), "r3d.pth")
    with pytest.raises(ValueError, match=f"; set model.backbone=r3d_{depth}$"):
        load_backbone_weights(narrow_resnet(depth, "all"), "r3d.pth")


def test_the_classes_are_printed_and_in_the_file(capsys):
    run("resnet18", frames=1)
    names = ["a", "b", "c", "d", "e"]
    Path("run/classes.json").write_text(json.dumps({"classes": [[name] for name in names]}))
    for options in ([], ["--layout", "timm"]):
        assert main(["run", "out.safetensors", "--overwrite", *options]) == 0
        with safe_open("out.safetensors", "pt") as file:
            assert json.loads(file.metadata()["classes"]) == names
        assert "classes, in the order of the scores: a; b; c; d; e\n" in capsys.readouterr().out
    assert main(["run", "out.pth", "--layout", "mmaction2"]) == 0
    meta = torch.load("out.pth", weights_only=True)["meta"]
    assert meta == {"dataset_meta": {"classes": names}}


def test_a_full_disk_is_named(capsys):
    run("resnet18", frames=1)
    cut = "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"

    def full(*_, **__):
        raise RuntimeError(cut)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main(["run", "out.pth"]) == 2
        message = "out.pth could not be written completely, probably because the disk is full"
        assert message in capsys.readouterr().err
        options = ["model.weights=run/model.safetensors", "model.weights_parts=all"]
        assert convert.main(["recipe.yaml", *options, "--out", "other"]) == 2
        assert "other could not be written completely" in capsys.readouterr().err
    assert not Path("out.pth").exists()
    assert not Path("other").exists()


def test_a_network_of_images_is_no_network_of_clips():
    torch.save(narrow_resnet(18, "all").state_dict(), "resnet18.pth")
    with pytest.raises(ValueError, match=r"; set model.backbone=resnet18$"):
        load_backbone_weights(ResNet3d("r3d_18", "all"), "resnet18.pth")


def test_torchvisions_names_of_a_network_of_clips():
    run("r3d_18")
    assert main(["run", "out.safetensors", "--layout", "torchvision"]) == 0
    state = load_file("out.safetensors")
    classifier = {"fc.weight": (5, NARROW_RESNET[-1]), "fc.bias": (5,)}
    expected = video_resnet(18, NARROW_RESNET) | classifier
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_s3ds_classifier_is_a_convolution():
    model = run("s3d", frames=8)
    assert main(["run", "out.pth", "--layout", "torchvision"]) == 0
    state = torch.load("out.pth", weights_only=True)
    linear = model.heads["action"][-1]
    assert torch.equal(state["classifier.1.weight"], linear.weight[:, :, None, None, None])
    assert torch.equal(state["classifier.1.bias"], linear.bias)
    assert torch.equal(state["features.0.0.0.weight"], model.backbone.features[0][0][0].weight)


def test_mmaction2s_tsm_has_equal_scores(capsys):
    model = run("resnet18", frames=1, shift=8)
    assert main(["run", "out.pth", "--layout", "mmaction2"]) == 0
    network = "Recognizer2D(backbone=ResNetTSM(depth=18, num_segments=4, shift_div=8), cls_head="
    assert f"network of mmaction2: {network}" in capsys.readouterr().out
    network = Recognizer(MMResNet(18, NARROW_RESNET, segments=4), NARROW_RESNET[-1], 5).eval()
    network.load_state_dict(torch.load("out.pth", weights_only=True)["state_dict"])
    clips = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad():
        maps = network.backbone(clips.transpose(1, 2).flatten(0, 1))
        found = network.cls_head.fc_cls(maps.mean((2, 3)).unflatten(0, (2, 4)).mean(1))
    torch.testing.assert_close(found, scores(model, clips), rtol=1e-5, atol=1e-6)
