"""Checkpoints as released code saves them: VCLR's, SeCo's, LAV's, MoCo's."""

import sys
import types
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from narrow import NARROW_RESNET, narrow_resnet
from torch import nn
from vclr_cases import RECIPE as VCLR_RECIPE

from training import convert
from training.models import load_backbone_weights, resnet
from training.recipe.load import load_config
from training.runs.model import initial_model, load_run

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
FEATURES, SIZE = 128, 8
VCLR = ["model.backbone=resnet18", "model.pool=mean", f"model.projection_hidden={FEATURES}"]
VCLR += ["augmentation.size=32", f"model.projection_size={SIZE}", "model.weights_parts=all"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)


def drawn(state, seed):
    """The same names and shapes with other values."""
    torch.manual_seed(seed)
    return {k: torch.rand_like(v) if v.is_floating_point() else v + seed for k, v in state.items()}


def under(prefix, state):
    return OrderedDict((f"{prefix}{name}", value) for name, value in state.items())


def head(out=SIZE, mlp=True):
    hidden = {"0.weight": torch.rand(FEATURES, FEATURES), "0.bias": torch.rand(FEATURES)}
    last = {"2.weight": torch.rand(out, FEATURES), "2.bias": torch.rand(out)}
    return hidden | last if mlp else {"0.weight": last["2.weight"], "0.bias": last["2.bias"]}


def network(seed, heads=("inter", "intra", "order", "tsn"), order=(4, 6 * SIZE), mlp=True):
    """State dict of resnet_mlp in VCLR's and SeCo's code: no fc, but fc_inter and others."""
    state = drawn(narrow_resnet(18, "all").state_dict(), seed)
    for name in heads:
        state |= under(f"fc_{name}.", head(mlp=mlp))
    classifier = {"weight": torch.rand(*order), "bias": torch.rand(order[0])}
    return state | under("fc_order_classifier.", classifier)


def current_pth(online, average, queues=("contrast", "contrast_tsn")):
    """What save_checkpoint of VCLR's and SeCo's code writes."""
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    memory = {"params": torch.tensor([-1]), "memory": torch.rand(20, SIZE)}
    return {
        "opt": Namespace(data_dir="/data", model_mlp=True, nce_k=20, lr_decay_epochs=[120, 160]),
        "model": under("module.", online),
        "model_ema": OrderedDict(average),
        **{name: OrderedDict(memory) for name in queues},
        "optimizer": optimizer.state_dict(),
        "scheduler": {"multiplier": 100, "total_epoch": 5, "_step_count": 8, "_last_lr": [0.1]},
        "epoch": 7,
    }


def started(*options):
    Path("tiny.yaml").write_text(VCLR_RECIPE)
    return initial_model(load_config("tiny.yaml", [*VCLR, *options]))


def check_backbone(module, state):
    own = module.state_dict()
    assert len(own) == 122 - 2  # ResNet-18 of torchvision without fc
    for name, value in own.items():
        assert torch.equal(value, state[name]), name


def check_head(sequential, state, name):
    x = torch.rand(3, FEATURES)
    inside = F.linear(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"]).relu()
    expected = F.linear(inside, state[f"{name}.2.weight"], state[f"{name}.2.bias"])
    assert torch.equal(sequential(x), expected)


@pytest.mark.parametrize("old", [False, True])
def test_the_backbone_of_vclrs_checkpoint_needs_no_key(old):
    online, average = network(1), network(2)
    saving = {"_use_new_zipfile_serialization": not old}
    torch.save(current_pth(online, average), "current.pth", **saving)
    backbone = narrow_resnet(18, "all")
    report = load_backbone_weights(backbone, "current.pth")
    assert (report.taken, report.missing) == ("model.module.", [])
    assert "fc_inter (4), fc_intra (4), fc_order (4), fc_tsn (4)" in str(report)
    check_backbone(backbone, online)
    load_backbone_weights(backbone, "current.pth", "model_ema")
    check_backbone(backbone, average)
    deeper = narrow_resnet(50, "all")
    with pytest.raises(ValueError, match=r"another architecture; set model.backbone=resnet18$"):
        load_backbone_weights(deeper, "current.pth")


def test_vclr_starts_from_all_of_its_checkpoint(caplog):
    caplog.set_level("INFO")
    online, average = network(1), network(2)
    torch.save(current_pth(online, average), "current.pth")
    fresh = started("model.weights_parts=backbone")
    model = started("model.weights=current.pth")
    for own, state in ((model.encoder, online), (model.momentum.module, average)):
        check_backbone(own.backbone, state)
        for ours, theirs in zip(
            ("inter", "intra", "order", "video"),
            ("fc_inter", "fc_intra", "fc_order", "fc_tsn"),
            strict=True,
        ):
            check_head(own.heads[ours], state, theirs)
    assert torch.equal(model.order.weight, online["fc_order_classifier.weight"])
    for name, queue in model.queues.items():
        assert torch.equal(queue.features, fresh.queues[name].features)
    assert "its queues are not used" in caplog.text
    assert "loaded from model.* and model_ema.* of current.pth (names of VCLR's" in caplog.text
    rest = "7 not used: model_ema (2), contrast (2), contrast_tsn (2), optimizer (1)"
    assert caplog.messages[-1].endswith(f"0 missing, {rest}")
    assert "random values" not in caplog.text
    averages = started("model.weights=current.pth", "model.weights_key=model_ema")
    check_backbone(averages.encoder.backbone, average)


def test_heads_of_another_shape_start_from_random_values(caplog):
    caplog.set_level("INFO")
    online = network(1, mlp=False)
    torch.save(current_pth(online, network(2, mlp=False)), "current.pth")
    fresh, model = started(), started("model.weights=current.pth")
    check_backbone(model.encoder.backbone, online)
    assert torch.equal(model.order.bias, online["fc_order_classifier.bias"])
    for name, sequential in model.encoder.heads.items():
        for ours, before in zip(
            sequential.parameters(), fresh.encoder.heads[name].parameters(), strict=True
        ):
            assert torch.equal(ours, before)
        assert f"encoder.heads.{name} starts from random values" in caplog.text
    with pytest.raises(ValueError, match=r"model.backbone or model.backbone_to"):
        started("model.weights=current.pth", "model.backbone=resnet34")


def test_seco_has_no_head_of_tuples(caplog):
    caplog.set_level("INFO")
    heads, order = ("inter", "intra", "order"), (2, 3 * SIZE)
    online, average = network(1, heads, order), network(2, heads, order)
    torch.save(current_pth(online, average, ["contrast"]), "current.pth")
    backbone = narrow_resnet(18, "all")
    assert load_backbone_weights(backbone, "current.pth").taken == "model.module."
    check_backbone(backbone, online)
    model = started("model.weights=current.pth")
    check_head(model.encoder.heads["intra"], online, "fc_intra")
    check_head(model.momentum.module.heads["intra"], average, "fc_intra")
    assert "is a file of SeCo's code" in caplog.text
    fresh = [line.split()[0] for line in caplog.messages if "random values" in line]
    assert fresh == ["encoder.heads.video", "momentum.module.heads.video", "order"]


def test_seco_starts_from_all_of_its_checkpoint(caplog):
    caplog.set_level("INFO")
    heads, order = ("inter", "intra", "order"), (2, 3 * SIZE)
    online, average = network(1, heads, order), network(2, heads, order)
    torch.save(current_pth(online, average, ["contrast"]), "current.pth")
    seco = ["loss.vclr.weight=0", "loss.seco.weight=1", "loss.seco.queue_size=20"]
    model = started("model.weights=current.pth", "data.segments=2", *seco)
    for own, state in ((model.encoder, online), (model.momentum.module, average)):
        check_backbone(own.backbone, state)
        for name in heads:
            check_head(own.heads[name], state, f"fc_{name}")
    assert torch.equal(model.order.weight, online["fc_order_classifier.weight"])
    assert "random values" not in caplog.text


def moco_v2(seed=1):
    online, average = (drawn(narrow_resnet(18, "all").state_dict(), seed + n) for n in (0, 1))
    online |= under("fc.", head())
    state = under("module.encoder_q.", online) | under("module.encoder_k.", average)
    state |= under("module.encoder_k.fc.", head())
    queue = {"module.queue": torch.rand(SIZE, 20), "module.queue_ptr": torch.zeros(1).long()}
    return online, {"epoch": 200, "arch": "resnet50", "state_dict": state | queue}


def moco_v3(seed=1):
    """The projector has 2 layers with a norm after each, the last without weights."""
    online, average = (drawn(narrow_resnet(18, "all").state_dict(), seed + n) for n in (0, 1))
    norm = {"weight": 12, "bias": 12, "running_mean": 12, "running_var": 12}
    projector = {"fc.0.weight": (12, FEATURES), "fc.3.weight": (6, 12), "fc.4.running_mean": (6,)}
    projector |= {f"fc.1.{name}": (size,) for name, size in norm.items()}
    state = under("module.base_encoder.", online) | under("module.momentum_encoder.", average)
    for network in ("base_encoder", "momentum_encoder"):
        state |= {f"module.{network}.{k}": torch.rand(*shape) for k, shape in projector.items()}
    state["module.predictor.0.weight"] = torch.rand(12, 6)
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3}
    content = {"epoch": 1000, "arch": "resnet50", "state_dict": state, "scaler": scaler}
    return online, content


@pytest.mark.parametrize(("made", "name"), [(moco_v2, "encoder_q"), (moco_v3, "base_encoder")])
def test_mocos_trained_network_is_its_query_encoder(made, name):
    online, content = made()
    torch.save(content, "moco.pth.tar")
    backbone = narrow_resnet(18, "all")
    report = load_backbone_weights(backbone, "moco.pth.tar")
    assert (
        report.taken == f"state_dict.module.{'encoder_q' if made is moco_v2 else 'base_encoder'}."
    )
    check_backbone(backbone, online)
    with pytest.raises(ValueError, match=r"; set model.backbone=resnet18$"):
        load_backbone_weights(narrow_resnet(34, "all"), "moco.pth.tar")


def test_vclr_starts_from_moco_v2_as_its_code_does():
    online, content = moco_v2()
    torch.save(content, "moco.pth.tar")
    model = started("model.weights=moco.pth.tar")
    for own in (model.encoder, model.momentum.module):
        check_backbone(own.backbone, online)
        for sequential in own.heads.values():
            check_head(sequential, online, "fc")
    torch.save(moco_v3()[1], "v3.pth.tar")
    with pytest.raises(ValueError, match=r"MoCo v3.*: set model.weights_parts=backbone$"):
        started("model.weights=v3.pth.tar")


# LAV


class Lav(nn.Module):
    """LAV's network from its list of layers: part of a ResNet-50, and an embedder."""

    def __init__(self, base, conv=16, fc=12, out=10):
        super().__init__()
        children = [base.conv1, base.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1), base.layer1]
        children += [base.layer2, nn.Sequential(*base.layer3.children())]
        self.base_cnn = nn.Module()
        self.base_cnn.base_model = nn.Sequential(*children)
        emb = self.emb = nn.Module()
        emb.conv1, emb.bn1 = nn.Conv3d(256, conv, 3, padding=1), nn.BatchNorm1d(conv)
        emb.conv2, emb.bn2 = nn.Conv3d(conv, conv, 3, padding=1), nn.BatchNorm1d(conv)
        emb.fc1, emb.fc2 = nn.Linear(conv, fc), nn.Linear(fc, fc)
        emb.embedding_layer = nn.Linear(fc, out)

    def forward(self, frames, steps):
        """Normalised frames (steps * context, 3, H, W) to embeddings (steps, out)."""
        maps = self.base_cnn.base_model(frames)
        x = maps.unflatten(0, (steps, -1)).transpose(1, 2)  # channels before context
        for conv, norm in ((self.emb.conv1, self.emb.bn1), (self.emb.conv2, self.emb.bn2)):
            x = conv(x)
            x = norm(x.flatten(2)).view_as(x).relu()
        x = x.flatten(2).max(-1).values
        x = self.emb.fc2(self.emb.fc1(x).relu()).relu()
        return F.normalize(self.emb.embedding_layer(x), dim=-1)


def lightning(network, patch):
    """A file of Lightning 1.5: hyper-parameters in its own dict, the callback's class as a key."""

    class EasyDict(dict):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            super().__setitem__(name, value)

    class AttributeDict(dict):
        pass

    class CheckpointEveryNSteps:
        pass

    parsing = "pytorch_lightning.utilities.parsing"
    classes = {"easydict": EasyDict, parsing: AttributeDict, "utils": CheckpointEveryNSteps}
    for module in (
        "easydict",
        "utils",
        "pytorch_lightning",
        "pytorch_lightning.utilities",
        parsing,
    ):
        patch.setitem(sys.modules, module, types.ModuleType(module))
    for module, made in classes.items():
        made.__module__, made.__qualname__ = module, made.__name__
        setattr(sys.modules[module], made.__name__, made)
    config = EasyDict()
    config.DATA = EasyDict()
    config.DATA.NUM_CONTEXT = 2
    content = {
        "epoch": 3,
        "global_step": 600,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": network.state_dict(),
        "callbacks": {CheckpointEveryNSteps: {"best_model_score": None}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(config=config),
    }
    torch.save(content, "lav.pth")


LAV_RECIPE = """
data: {clips: videos, num_frames: 4, num_context: 2, context_stride: 3, folder: videos}
augmentation: {size: 32}
model: {encoder: conv3d, backbone: resnet50, backbone_to: conv4c, train_from: all,
        conv3d_size: 16, fc_size: 12, embedding_size: 10, weights: lav.pth, weights_parts: all}
loss: {lav: {weight: 1}}
train: {steps: 1}
"""


@pytest.fixture
def lav():
    torch.manual_seed(0)
    network = Lav(narrow_resnet(50, "all", "conv4c")).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
    with pytest.MonkeyPatch.context() as patch:
        lightning(network, patch)
    Path("lav.yaml").write_text(LAV_RECIPE)
    return network


def test_the_whole_network_of_lav_has_equal_outputs(lav, caplog):
    caplog.set_level("INFO")
    model = initial_model(load_config("lav.yaml")).eval()
    frames = torch.randint(0, 256, (1, 5, 2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        normalised = (frames.flatten(0, 2) / 255 - MEAN) / STD
        expected = lav(normalised, 5)
        found = F.normalize(model.encode(frames)[0], dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(0).min() > 1e-3
    assert "projection starts from random values" in caplog.text
    assert "names of LAV's code" in caplog.text


def full_disk(*_):
    raise OSError("no space left on device")


def test_a_run_of_released_weights(lav, capsys):
    start = ["lav.yaml", "--out", "run"]
    assert convert.main([*start, "model.weights=null", "model.weights_parts=backbone"]) == 2
    assert "model.weights is null" in capsys.readouterr().err
    assert convert.main([*start, "model.conv3d_size=8"]) == 2
    assert "change model.conv3d_size=16" in capsys.readouterr().err
    assert not Path("run").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.runs.weight_writers.write_safetensors", full_disk)
        assert convert.main(start) == 2
    assert "no space left" in capsys.readouterr().err
    assert not Path("run").exists()
    assert convert.main(start) == 0
    parts = "backbone (204), convolutions (14), embedding (6), projection (9)"
    assert capsys.readouterr().out == f"written: run, 233 tensors: {parts}\n"
    model, cfg = load_run("run")
    assert cfg.model.weights == str(Path("lav.pth").resolve())
    assert torch.equal(model.embedding[6].weight, lav.emb.embedding_layer.weight)
    torch.save(lav.state_dict(), "alone.pth")  # without Lightning's containers
    again = initial_model(load_config("lav.yaml", ["model.weights=alone.pth"]))
    assert torch.equal(again.embedding[6].weight, lav.emb.embedding_layer.weight)
    assert convert.main(start) == 2
    assert "run exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.conv3d_size=8", "change model.conv3d_size=16"),
        ("model.embedding_size=8", "change model.embedding_size=10"),
        ("model.conv3d_layers=3", "change model.conv3d_layers"),
        ("model.backbone_to=layer3", "change model.backbone or model.backbone_to"),
    ],
)
def test_what_does_not_fit_lav_is_named(lav, option, message):
    with pytest.raises(ValueError, match=message):
        initial_model(load_config("lav.yaml", [option]))


def test_the_backbone_of_lav(lav):
    backbone = narrow_resnet(50, "all", "conv4c")
    report = load_backbone_weights(backbone, "lav.pth")
    assert report.taken == "state_dict.base_cnn.base_model."
    assert report.missing == []
    assert torch.equal(backbone.layer3[2].conv3.weight, lav.base_cnn.base_model[6][2].conv3.weight)
    assert torch.equal(backbone.conv1.weight, lav.base_cnn.base_model[0].weight)
    with pytest.raises(ValueError, match=r"part of one; set model.backbone_to=conv4c$"):
        load_backbone_weights(narrow_resnet(50, "all"), "lav.pth")
    with pytest.raises(ValueError, match=r"; set model.backbone=resnet50$"):
        load_backbone_weights(narrow_resnet(18, "all"), "lav.pth")


# Networks of clips


def video_resnet(bottleneck=False, factorised=False):
    """Names and shapes of a few entries of torchvision's video ResNets, all blocks."""
    counts = (3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)
    state = {"stem.0.weight": (16, 3, 3, 7, 7), "stem.1.weight": (16,)}
    if factorised:
        state |= {"stem.3.weight": (16, 16, 3, 1, 1), "stem.4.weight": (16,)}
    for stage, count in enumerate(counts, 1):
        for block in range(count):
            for layer in range(1, 4 if bottleneck else 3):
                name = f"layer{stage}.{block}.conv{layer}"
                inner = ".0" if factorised else ""
                state[f"{name}.0{inner}.weight"] = (16, 16, 3, 3, 3)
                state[f"{name}.1.weight"] = (16,)
        state[f"layer{stage}.0.downsample.0.weight"] = (16, 16, 1, 1, 1)
    return {name: torch.zeros(shape) for name, shape in state.items()}


@pytest.mark.parametrize("prefix", ["", "state_dict.module.encoder_q."])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "r3d_18"),
        ({"bottleneck": True}, "r3d_50"),
        ({"factorised": True}, "r2plus1d_18"),
    ],
)
def test_a_network_of_clips_is_no_network_of_images(options, name, prefix):
    torch.save(dict(under(prefix, video_resnet(**options))), "video.pth")
    for depth in (18, 50):
        with pytest.raises(ValueError, match=f"; set model.backbone={name}$"):
            load_backbone_weights(narrow_resnet(depth, "all"), "video.pth")


def test_s3d_has_no_name_of_a_resnet():
    names = ("features.0.0.0.weight", "features.5.branch0.0.weight", "classifier.1.weight")
    torch.save({"state_dict": dict.fromkeys(names, torch.zeros(1))}, "video.pth")
    with pytest.raises(ValueError, match=r"another architecture.*; set model.backbone=s3d$"):
        load_backbone_weights(narrow_resnet(18, "all"), "video.pth")
