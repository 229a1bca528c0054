"""Exports under the names of torchvision, mmaction2 and timm, and training from them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from layout_networks import MMResNet, Recognizer, resnet, timm_lite0, video_resnet
from narrow import NARROW_RESNET
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from training.export import main
from training.models import resnet as resnets
from training.models.efficientnet_lite import EfficientNetLite0
from training.models.layouts import EXPORTS, MMACTION2_3D
from training.models.weights import load_backbone_weights
from training.recipe.load import load_config
from training.runs.checkpoint import save_checkpoint
from training.runs.model import initial_model
from training.runs.weight_writers import export_weights
from training.support.command import UserError

FVE = "{encoder: fve, backbone: %s, train_from: all, hidden_size: 16, layers: 1, heads: 2}"
VCLR = "{encoder: vclr, backbone: %s, train_from: all, pool: mean}"
CONV3D = "{encoder: conv3d, backbone: %s, backbone_to: conv4c, train_from: all, conv3d_size: 8}"
EXTRA = {
    FVE: "",
    VCLR: "data: {clips: tuples}\nloss: {vclr: {weight: 1, queue_size: 20}}",
    CONV3D: "data: {clips: videos, num_context: 2}\nloss: {lav: {weight: 1}}",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resnets, "WIDTHS", NARROW_RESNET)


def randomize(model):
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value) * 0.1)
            if name.endswith(("var", "bn1.weight", "bn2.weight", "bn3.weight")):
                value.abs_().add_(0.5)
    return model.eval()


def run(encoder, backbone, *options):
    """A run directory of a model with drawn weights, and the model."""
    recipe = f"model: {encoder % backbone}\n{EXTRA[encoder]}\ntrain: {{steps: 1}}\n"
    Path("recipe.yaml").write_text(recipe)
    cfg = load_config("recipe.yaml", ["augmentation.size=32", *options])
    model = randomize(initial_model(cfg))
    Path("run").mkdir()
    OmegaConf.save(cfg, "run/config.yaml", resolve=True)
    save_checkpoint("run/checkpoints", 1, {"model": model.state_dict()})
    return model, cfg


def exported(layout, name, *options):
    assert main(["run", name, "--layout", layout, *options]) == 0
    if name.endswith("safetensors"):
        return load_file(name)
    return torch.load(name, weights_only=True)


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def trained_on(name, encoder, backbone):
    """The backbone that a run with model.weights=NAME starts from."""
    recipe = f"model: {encoder % backbone}\n{EXTRA[encoder]}\ntrain: {{steps: 1, seed: 5}}\n"
    Path("next.yaml").write_text(recipe)
    options = ["augmentation.size=32", f"model.weights={name}"]
    return initial_model(load_config("next.yaml", options)).eval().backbone


IMAGES = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)


def check_round_trip(name, model, encoder, backbone):
    again = trained_on(name, encoder, backbone)
    with torch.no_grad():
        assert torch.equal(again(IMAGES), model.backbone(IMAGES))


@pytest.mark.parametrize(
    ("layout", "name", "encoder", "depth", "left"),
    [
        ("torchvision", "out.pth", FVE, 18, "fc_block (16), layers (12), embedding (2)"),
        ("timm", "out.safetensors", VCLR, 50, "encoder (16), momentum (335), order (2), queues"),
    ],
)
def test_torchvisions_and_timms_names_of_a_resnet(layout, name, encoder, depth, left, capsys):
    model, _ = run(encoder, f"resnet{depth}")
    state = exported(layout, name)
    assert shapes(state) == resnet(depth, NARROW_RESNET)
    out = capsys.readouterr().out
    network = (
        f"resnet{depth}()" if layout == "torchvision" else f'timm.create_model("resnet{depth}")'
    )
    assert f"network of {layout}: {network}\n" in out
    assert "no classifier: load_state_dict(..., strict=False)" in out
    assert "minus [0.485, 0.456, 0.406], divided by [0.229, 0.224, 0.225]" in out
    assert f"left out, because {layout} has no counterpart: " in out
    assert left in out
    assert torch.equal(state["layer4.1.conv2.weight"], model.backbone.layer4[1].conv2.weight)
    check_round_trip(name, model, encoder, f"resnet{depth}")


@pytest.mark.parametrize("depth", [18, 50])
def test_mmaction2s_resnet_has_equal_outputs(depth, capsys):
    model, _ = run(VCLR, f"resnet{depth}")
    state = exported("mmaction2", "out.pth")
    assert [*state] == ["state_dict"]
    features = NARROW_RESNET[-1] * (1 if depth < 50 else 4)
    network = Recognizer(MMResNet(depth, NARROW_RESNET), features, 5).eval()
    found = network.load_state_dict(state["state_dict"], strict=False)
    assert found.missing_keys == ["cls_head.fc_cls.weight", "cls_head.fc_cls.bias"]
    assert found.unexpected_keys == []
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(network.backbone(IMAGES), model.backbone.maps(IMAGES))
    assert f"network of mmaction2: ResNet(depth={depth})" in capsys.readouterr().out
    check_round_trip("out.pth", model, FVE, f"resnet{depth}")
    with pytest.raises(ValueError, match=r"; set model.backbone=resnet"):
        trained_on("out.pth", VCLR, "resnet34")


def with_classifier(model, classes=5):
    linear = nn.Linear(model.backbone.out_features, classes)
    model.heads["action"] = nn.Sequential(nn.Dropout(0.5), linear)
    return linear


@pytest.mark.parametrize("depth", [18, 101])
def test_mmaction2s_tsm_wraps_the_first_convolutions(depth):
    model, _ = run(FVE, f"resnet{depth}", "model.pool=mean")
    linear = with_classifier(model)
    model.eval()
    shifted = SimpleNamespace(
        model=SimpleNamespace(shift=8, backbone_to="last"), data=SimpleNamespace(segments=16)
    )
    found = export_weights(model, shifted, "mmaction2")
    network = Recognizer(MMResNet(depth, NARROW_RESNET, segments=2), linear.in_features, 5)
    network.load_state_dict(found.weights)  # strict
    assert torch.equal(network.cls_head.fc_cls.weight, linear.weight)
    assert found.network == (
        f"Recognizer2D(backbone=ResNetTSM(depth={depth}, num_segments=16, shift_div=8), "
        f"cls_head=TSMHead(num_classes=5, in_channels={linear.in_features}, num_segments=16))"
    )
    torch.save({"state_dict": found.weights}, "tsm.pth")
    again = model.backbone.__class__(depth, "all")
    load_backbone_weights(again, "tsm.pth")
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert export_weights(model, shifted, "timm").notes == [
        "the run's network shifts channels over time (model.shift=8)"
    ]


def test_a_classifier_has_the_name_that_each_project_has():
    model, cfg = run(FVE, "resnet18")
    linear = with_classifier(model)
    features = linear.in_features
    head = f"TSNHead(num_classes=5, in_channels={features})"
    for layout, name, network in (
        ("torchvision", "fc", "resnet18(num_classes=5)"),
        ("timm", "fc", 'timm.create_model("resnet18", num_classes=5)'),
        (
            "mmaction2",
            "cls_head.fc_cls",
            f"Recognizer2D(backbone=ResNet(depth=18), cls_head={head})",
        ),
    ):
        found = export_weights(model, cfg, layout)
        assert torch.equal(found.weights[f"{name}.weight"], linear.weight)
        assert torch.equal(found.weights[f"{name}.bias"], linear.bias)
        assert (found.network, found.classes) == (network, 5)
        assert "heads" not in found.left_out
        assert found.left_out["layers"] == 12
    model.__dict__["_modules"]["backbone"] = EfficientNetLite0("all")
    assert "classifier.weight" in export_weights(model, cfg, "timm").weights


@pytest.mark.parametrize("end", ["last", "stage5"])
def test_timms_names_of_efficientnet_lite0(end, capsys):
    model, _ = run(FVE, "efficientnet_lite0", f"model.backbone_to={end}")
    state = exported("timm", "out.safetensors")
    expected = timm_lite0()
    if end == "stage5":
        gone = ("blocks.5.", "blocks.6.", "conv_head.", "bn2.")
        expected = {name: shape for name, shape in expected.items() if not name.startswith(gone)}
    assert shapes(state) == expected
    out = capsys.readouterr().out
    assert "tf_efficientnet_lite0" in out
    assert "minus [0.498, 0.498, 0.498], divided by [0.502, 0.502, 0.502]" in out
    assert 'create_model("tf_efficientnet_lite0")\n' in out
    earlier = "differs: the run's network ends earlier: model.backbone_to=stage5\n"
    assert out.endswith(earlier) if end == "stage5" else "differs" not in out
    again = EfficientNetLite0("all", end).eval().to(memory_format=torch.channels_last)
    assert load_backbone_weights(again, "out.safetensors").layout == "timm"
    if end == "stage5":
        with torch.no_grad():
            assert torch.equal(again(IMAGES), model.backbone(IMAGES))
    # EfficientNet-Lite1 has the same widths, and more blocks in some stages.
    block = {k: v for k, v in state.items() if k.startswith("blocks.1.1.")}
    state |= {k.replace("blocks.1.1.", "blocks.1.2."): v for k, v in block.items()}
    torch.save(state, "lite1.pth")
    with pytest.raises(ValueError, match="have no place in the backbone"):
        load_backbone_weights(again, "lite1.pth")


@pytest.mark.parametrize("depth", [18, 50])
def test_mmaction2s_names_of_a_video_resnet(depth):
    names = video_resnet(depth, NARROW_RESNET)
    network = MMResNet(depth, NARROW_RESNET, clips=True)
    assert {MMACTION2_3D.theirs(k): v for k, v in names.items()} == shapes(network.state_dict())
    assert {MMACTION2_3D.ours(k): v for k, v in shapes(network.state_dict()).items()} == names


@pytest.mark.parametrize("layout", EXPORTS)
def test_both_directions_of_all_names_agree(layout):
    for backbone, names in EXPORTS[layout].items():
        own = [*(video_resnet if backbone.startswith("r3d") else resnet)(50, NARROW_RESNET)]
        if backbone == "efficientnet_lite0":
            own = [*EfficientNetLite0("all").state_dict()]
        theirs = [names.theirs(name) for name in own]
        assert len({*theirs}) == len(own)
        assert [names.ours(name) for name in theirs] == own


def test_the_part_of_a_run_of_lav(capsys):
    model, _ = run(CONV3D, "resnet50")
    state = exported("mmaction2", "out.pth")["state_dict"]
    assert "backbone.layer3.2.conv3.bn.bias" in state
    assert "backbone.layer3.3.conv1.conv.weight" not in state
    out = capsys.readouterr().out
    assert "convolutions (14), embedding (6), projection (9)" in out
    assert "differs: the run's network ends earlier: model.backbone_to=conv4c" in out
    check_round_trip("out.pth", model, CONV3D, "resnet50")


def test_the_average_of_the_weights_is_exported():
    model, _ = run(FVE, "resnet18")
    average = {k: v / 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_checkpoint("run/checkpoints", 2, {"model": model.state_dict(), "ema": average})
    state = exported("torchvision", "out.pth")
    assert torch.equal(state["conv1.weight"], average["backbone.conv1.weight"])
    state = exported("torchvision", "first.pth", "--checkpoint", "step_1")
    assert torch.equal(state["conv1.weight"], model.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        ("small_cnn", ["out.pth", "--layout", "timm"], "expected one of resnet18, resnet34"),
        ("efficientnet_lite0", ["out.pth", "--layout", "mmaction2"], "it has no such network"),
        ("resnet18", ["out.safetensors", "--layout", "mmaction2"], "ends in one of .pth, .pt for"),
    ],
)
def test_what_a_project_does_not_have_is_refused(backbone, arguments, message, capsys):
    run(FVE, backbone)
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path(arguments[0]).exists()


def test_the_reason_against_r2plus1d_in_mmaction2():
    model = SimpleNamespace(backbone=SimpleNamespace(name="r2plus1d_18"))
    cfg = SimpleNamespace(model=SimpleNamespace(shift=0))
    with pytest.raises(UserError, match=r"other widths .* --layout own writes"):
        export_weights(model, cfg, "mmaction2")
