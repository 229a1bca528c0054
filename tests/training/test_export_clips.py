"""Exports of classifiers of actions: networks of clips, and shifted ones of images."""

from pathlib import Path

import pytest
import torch
from layout_networks import MMResNet, Recognizer, video_resnet
from narrow import NARROW_RESNET, narrow_resnet
from safetensors.torch import load_file

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
    assert f"ResNet3d(depth={depth}, conv1_kernel=(3, 7, 7)" in out
    assert "minus [0.4322, 0.3947, 0.3765], divided by [0.228, 0.2215, 0.217]" in out
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
    network = "ResNetTSM(depth=18, num_segments=4, shift_div=8)"
    assert f"network of mmaction2: {network}" in capsys.readouterr().out
    network = Recognizer(MMResNet(18, NARROW_RESNET, segments=4), NARROW_RESNET[-1], 5).eval()
    network.load_state_dict(torch.load("out.pth", weights_only=True)["state_dict"])
    clips = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad():
        maps = network.backbone(clips.transpose(1, 2).flatten(0, 1))
        found = network.cls_head.fc_cls(maps.mean((2, 3)).unflatten(0, (2, 4)).mean(1))
    torch.testing.assert_close(found, scores(model, clips), rtol=1e-5, atol=1e-6)
